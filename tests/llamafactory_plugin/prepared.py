"""Everything a run prepares before the model is loaded, through LLaMA-Factory's own `run_exp`."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from llamafactory_plugin import workflow


class Prepared(NamedTuple):
    """What `run_grpo` hands to the trainer."""

    run: Any
    config: Any
    renderer: Any
    rewards: list[Any]
    data: Any

    @property
    def train(self) -> Any:
        return self.data.datasets["train_dataset"]

    @property
    def eval(self) -> Any:
        return self.data.datasets["eval_dataset"]


class _ReachedTheModel(Exception):
    pass


def prepare(args: dict[str, Any] | list[str]) -> Prepared:
    """Run up to the point where the model would be loaded."""
    from llamafactory.train.tuner import run_exp

    prepared: list[Prepared] = []

    def stop(ready: workflow.PreparedRun, *_: Any) -> None:
        prepared.append(Prepared(ready.run, ready.config, ready.renderer, ready.rewards, ready.data))
        raise _ReachedTheModel

    with pytest.MonkeyPatch.context() as patch, pytest.raises(_ReachedTheModel):
        patch.setattr(workflow, "_create_trainer", stop)
        run_exp(args)
    return prepared[0]


def flags(arguments: dict[str, Any]) -> list[str]:
    """`{"grpo_beta": 0.1}` -> `["--grpo_beta", "0.1"]`."""
    return [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
