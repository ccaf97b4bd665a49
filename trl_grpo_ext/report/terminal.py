"""The figures of a run at the bottom of a terminal, by rich."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, TextIO


class TerminalView:
    """A progress bar and a line of figures that stay in their place; other lines go above them.

    Args:
        console: a console of rich.
        steps: optimizer steps of the whole run.
    """

    def __init__(self, console: Any, steps: int) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.console = console
        self._bar = Progress(TextColumn("step"), MofNCompleteColumn(), BarColumn(), console=console)
        self._task = self._bar.add_task("step", total=steps)
        self._live = Live(self._bar, console=console, refresh_per_second=4)
        self._live.start()

    @classmethod
    def on(cls, stream: TextIO, steps: int) -> TerminalView | None:
        """Return a view on a stream; None where it is no terminal, or rich is not installed."""
        if not stream.isatty() or find_spec("rich") is None:
            return None
        from rich.console import Console

        console = Console(file=stream)
        return cls(console, steps) if console.is_terminal and not console.is_dumb_terminal else None

    def move(self, step: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=step)

    def show(self, step: int, shown: Mapping[str, str]) -> None:
        """Show the figures of a step."""
        from rich.console import Group
        from rich.text import Text

        line = Text("   ").join(Text.assemble((f"{name} ", "dim"), (text, "bold")) for name, text in shown.items())
        self.move(step)
        self._live.update(Group(self._bar, line), refresh=True)

    def write(self, lines: Sequence[str]) -> None:
        """Put lines above the figures, as they are: completions may hold what rich takes for markup."""
        for line in lines:
            self.console.print(line, markup=False, highlight=False, emoji=False, no_wrap=True, overflow="ellipsis")

    def close(self) -> None:
        """Leave everything on the screen as it is, and give the cursor back."""
        self._live.stop()
