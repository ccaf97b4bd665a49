"""What each phase of a trainer's step costs, seen from outside: its own methods are wrapped on the instance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from transformers import TrainerCallback

PHASES = ("prefill", "decode", "scoring", "reward", "loss forward", "backward", "optimizer", "other")
_METHODS = {
    "_generate_single_turn": "decode",
    "_generate_and_score_completions": "scoring",
    "_calculate_rewards": "reward",
    "compute_loss": "loss forward",
}


class Phases:
    """Readings of one or more meters, each difference put down to the innermost phase; outside of a step to none.

    Args:
        read: the meters' present values.
    """

    def __init__(self, read: Callable[[], tuple[float, ...]]) -> None:
        self.read, self.stack, self.is_running = read, ["other"], False
        self.last = read()
        self.totals = {name: [0.0] * len(self.last) for name in PHASES}

    @property
    def current(self) -> str:
        """The innermost phase."""
        return self.stack[-1]

    def settle(self) -> None:
        """Put what was spent since the last reading down to the present phase."""
        found = self.read()
        if self.is_running:
            spent = self.totals[self.current]
            self.totals[self.current] = [s + new - old for s, new, old in zip(spent, found, self.last, strict=True)]
        self.last = found

    def enter(self, name: str) -> None:
        """Begin a phase inside the present one."""
        self.settle()
        self.stack.append(name)

    def leave(self) -> None:
        """End it."""
        self.settle()
        self.stack.pop()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """`enter` and `leave`."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()


class StepCallback(TrainerCallback):
    """Begins and ends the step and its optimizer phase; `before_optimizer` is called when all gradients are there."""

    def __init__(self, phases: Phases, on_begin: Callable[[], None], before_optimizer: Callable[[], None]) -> None:
        self.phases, self.on_begin, self.before_optimizer = phases, on_begin, before_optimizer

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.on_begin()
        self.phases.settle()
        self.phases.is_running = True

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.before_optimizer()
        self.phases.enter("optimizer")

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.phases.leave()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.phases.settle()
        self.phases.is_running = False


def _in_phase(phases: Phases, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with phases.phase(name):
            return function(*args, **kwargs)

    return run


@contextmanager
def replaced(owner: Any, method: str, wrapper: Callable[[Any], Any]) -> Iterator[None]:
    """Put `wrapper(method)` in the place of a method of this one object."""
    own = owner.__dict__.get(method)
    setattr(owner, method, wrapper(getattr(owner, method)))
    try:
        yield
    finally:
        delattr(owner, method)
        if own is not None:
            setattr(owner, method, own)


def _watch_prefill(phases: Phases, backbone: Any, stack: ExitStack) -> None:
    """In generation, a forward pass of more than one token per row is a prefill."""

    def before(module: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if phases.current == "decode" and ids is not None and ids.shape[1] > 1:
            phases.enter("prefill")

    def after(*args: Any) -> None:
        if phases.current == "prefill":
            phases.leave()

    for handle in (
        backbone.register_forward_pre_hook(before, with_kwargs=True),
        backbone.register_forward_hook(after, always_call=True),
    ):
        stack.callback(handle.remove)


@contextmanager
def watched(trainer: Any, phases: Phases) -> Iterator[None]:
    """Let `phases` see the steps of a trainer."""
    with ExitStack() as stack:
        for method, name in _METHODS.items():
            stack.enter_context(replaced(trainer, method, lambda f, name=name: _in_phase(phases, name, f)))
        for method, name in {"backward": "backward", "clip_grad_norm_": "optimizer"}.items():
            stack.enter_context(replaced(trainer.accelerator, method, lambda f, name=name: _in_phase(phases, name, f)))
        _watch_prefill(phases, trainer.model.base_model, stack)
        yield
