"""Where a run is, on the screen: a live table on a terminal (with rich), plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from trl_grpo_ext.training_free.report import Progress

LINE_SECONDS = 30.0
SHOWN_REWARDS = 8


def progress_figures(progress: Progress, seconds: float) -> dict[str, str]:
    """Return what is shown, by its name: step, calls, tokens, cost, lessons, rewards and time.

    Args:
        progress: where the run is.
        seconds: since it was started.
    """
    spent = progress.spent
    failed = f" ({spent.failures} failed)" if spent.failures else ""
    return {
        "step": f"{progress.step + 1}/{progress.steps}",
        "calls": f"{spent.calls:,}{failed}",
        "tokens": f"{spent.prompt_tokens:,} + {spent.completion_tokens:,}",
        "cost": f"{spent.cost:.4f}",
        "lessons": str(progress.lessons),
        "reward by step": reward_text(progress.rewards),
        "time": f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}",
    }


def reward_text(rewards: tuple[float, ...]) -> str:
    """Return the mean rewards of the steps that are done, of the last ones where there are many; "-" for none."""
    shown = " ".join(f"{reward:.3f}" for reward in rewards[-SHOWN_REWARDS:])
    return f"... {shown}" if len(rewards) > SHOWN_REWARDS else shown or "-"


class PlainLines:
    """Prints a line when a step is done, and at most every `every` seconds in between.

    Args:
        file: where to; the output by default.
        every: seconds.
        clock: seconds that only grow.
    """

    def __init__(
        self, file: TextIO | None = None, every: float = LINE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file, self._every, self._clock = file or sys.stdout, every, clock
        self._start = self._last = clock()
        self._steps: int | None = None

    def __call__(self, progress: Progress) -> None:
        """Take note of where the run is."""
        now, steps = self._clock(), len(progress.rewards)
        is_new = self._steps is not None and steps != self._steps
        self._steps = steps
        if is_new or now - self._last >= self._every:
            self._last = now
            self._print(progress, now - self._start)

    def _print(self, progress: Progress, seconds: float) -> None:
        figures = progress_figures(progress, seconds)
        print(", ".join(f"{name} {value}" for name, value in figures.items()), file=self._file, flush=True)


@contextmanager
def shown_progress(file: TextIO | None = None, every: float = LINE_SECONDS) -> Iterator[Callable[[Progress], None]]:
    """Give what `train` calls with its progress: a live table on a terminal where rich is installed, else plain lines.

    Args:
        file: where to; the output by default.
        every: seconds between two plain lines.
    """
    file = file or sys.stdout
    rich = _rich() if file.isatty() else None
    if rich is None:
        yield PlainLines(file, every)
        return
    start = time.monotonic()
    console = rich.console.Console(file=file)
    with rich.live.Live(console=console, refresh_per_second=4) as live:
        yield lambda progress: live.update(_table(rich, progress_figures(progress, time.monotonic() - start)))


def _rich() -> Any:
    try:
        import rich
        import rich.console
        import rich.live
        import rich.table
    except ImportError:
        return None
    return rich


def _table(rich: Any, figures: dict[str, str]) -> Any:
    table = rich.table.Table(title="Training-Free GRPO", show_header=False, title_justify="left")
    for name, value in figures.items():
        table.add_row(name, value)
    return table
