"""LLaMA Board: the reward below its loss curve, data sets that stay, and a log that says what the plugin says.

The page starts `llamafactory-cli train` with `LLAMABOARD_ENABLED`, and shows two files of the run: `trainer_log.jsonl`
as a curve, and `running_log.txt` as text. It never shows what a run writes to its terminal.
"""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

LIBRARY = "trl_grpo_ext"
STAGE = "GRPO"

# The lines of the live view are longer than the page is wide, and on a telephone their beginning would fill it.
CSS = "code.language-grpo { white-space: pre-wrap !important; overflow-wrap: anywhere; }"

ChangeStage = Callable[..., tuple[Any, ...]]
Draw = Callable[[list[dict[str, Any]]], Any]
Inform = Callable[..., tuple[Any, ...]]


def with_reward(draw_loss: Draw) -> Draw:
    """LLaMA-Factory's `gen_loss_plot`, with the reward of a run that logs one in a second panel below the loss."""

    @functools.wraps(draw_loss)
    def gen_loss_plot(trainer_log: list[dict[str, Any]]) -> Any:
        figure = draw_loss(trainer_log)
        points = rewards(trainer_log)
        if points:
            _add_reward(figure, *zip(*points, strict=True))
        return figure

    return gen_loss_plot


def rewards(trainer_log: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Step and mean reward of the rows that have one; a reward of 0 is one."""
    return [(row["current_steps"], row["reward"]) for row in trainer_log if row.get("reward") is not None]


def _add_reward(figure: Any, steps: Sequence[int], values: Sequence[float]) -> None:
    from llamafactory.extras.ploting import smooth

    above, below = figure.add_gridspec(2, 1)
    figure.axes[0].set_subplotspec(above)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, 2 * height)
    axes = figure.add_subplot(below)
    # One point makes no line.
    axes.plot(steps, values, color="#2ca02c", alpha=0.4, label="original", marker="." if len(values) == 1 else "")
    axes.plot(steps, smooth(list(values)), color="#2ca02c", label="smoothed")
    axes.legend()
    axes.set_xlabel("step")
    axes.set_ylabel("reward")


def keeping_data_sets(change_stage: ChangeStage) -> ChangeStage:
    """LLaMA-Factory's `change_stage`, which empties the data sets, but not for stage GRPO: it trains on any kind.

    The page calls it too after it has put a saved configuration, or a running one, into its fields, and so would lose
    the data sets of these.
    """

    @functools.wraps(change_stage)
    def changed(*arguments: Any) -> tuple[Any, ...]:
        data_sets, *others = change_stage(*arguments)
        return (_unchanged() if arguments == (STAGE,) else data_sets, *others)

    return changed


def wrapping_the_log(get_trainer_info: Inform) -> Inform:
    """LLaMA-Factory's `get_trainer_info`, with a log of stage grpo in a block that `CSS` lets the page wrap."""

    @functools.wraps(get_trainer_info)
    def informed(lang: str, output_path: Any, do_train: bool) -> tuple[Any, ...]:
        log, *others = get_trainer_info(lang, output_path, do_train)
        return (log.replace("```\n", "```grpo\n", 1) if _is_grpo(Path(output_path)) else log, *others)

    return informed


def _is_grpo(output: Path) -> bool:
    from llamafactory.extras.constants import TRAINING_ARGS

    arguments = output / TRAINING_ARGS
    return arguments.is_file() and "stage: grpo" in arguments.read_text(encoding="utf-8").splitlines()


def _unchanged() -> Any:
    import gradio

    return gradio.skip()


def show_warnings(log_callback: Any) -> None:
    """Let the warnings of `trl_grpo_ext`, as those of its health rules, reach the page's log too.

    Args:
        log_callback: LLaMA-Factory's `LogCallback`; it has a `logger_handler` in a run that LLaMA Board started.
    """
    handler = getattr(log_callback, "logger_handler", None)
    if handler is None:
        return
    logger = logging.getLogger(LIBRARY)
    # With a handler of its own the library would no longer be heard in a terminal where nobody has set up logging.
    if not logging.getLogger().handlers and logging.lastResort is not None:
        logger.addHandler(logging.lastResort)
    logger.addHandler(handler)


def live_stream() -> TextIO | None:
    """Where the live view writes: the page's log in a run that LLaMA Board started, else None, its default."""
    from llamafactory.extras.misc import is_env_enabled

    return cast(TextIO, _LogStream()) if is_env_enabled("LLAMABOARD_ENABLED") else None


class _LogStream(io.TextIOBase):
    """Each line that is written becomes an entry of LLaMA-Factory's log."""

    def write(self, text: str) -> int:
        from llamafactory.extras.logging import get_logger

        for line in filter(str.strip, text.splitlines()):
            # The page shows the log between two fences, which a completion's own would close.
            get_logger("llamafactory.grpo").info_rank0("%s", line.replace("```", "'''"))
        return len(text)
