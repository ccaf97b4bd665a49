"""What is measured: the points of each part."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

GRID = ((128, 128, 8), (128, 512, 8), (512, 128, 8), (1024, 128, 8), (1024, 256, 8), (2048, 512, 4))
LONG, SHORT = (1024, 128, 8), (128, 512, 8)
GROUPS = (2, 4, 8, 16)


@dataclass(frozen=True)
class Point:
    """One comparison of the two arms.

    Args:
        part: "update", one micro-batch forward and backward; "scaling", the same for the plot; "step", a whole step.
        model: a name in `models.MODELS`.
        prompt: tokens of the prompt.
        completion: tokens of the longest completion; the shortest has a quarter.
        group: completions of the prompt.
        rows: rows of a micro-batch; None for the whole group.
        layers: None for those of the model.
    """

    part: str
    model: str
    prompt: int
    completion: int
    group: int
    rows: int | None = None
    layers: int | None = None

    @property
    def micro_rows(self) -> int:
        """Rows of a micro-batch."""
        return self.rows or self.group

    @property
    def shape(self) -> tuple[int, int, int]:
        """(P, C, G)."""
        return self.prompt, self.completion, self.group

    @property
    def name(self) -> str:
        """As `--points` knows it."""
        more = [f"rows{self.rows}" if self.rows else "", f"layers{self.layers}" if self.layers else ""]
        return "/".join([self.part, self.model, "x".join(map(str, self.shape)), *filter(None, more)])


def full() -> list[Point]:
    """The grid of the issue, cheap points first, so that a run that is cut off has the most of them."""
    pairs = Point("update", "toy", *LONG, rows=2), Point("step", "toy", *LONG, rows=2)
    heavy = [Point("update", "half_billion", *point) for point in sorted(GRID, key=lambda point: point != LONG)]
    return [
        *(Point("update", "toy", *point) for point in GRID),
        pairs[0],
        *(Point("scaling", "toy", 1024, completion, group) for completion in (4, 128) for group in GROUPS),
        *(Point("step", "toy", *point) for point in GRID),
        pairs[1],
        heavy[0],
        Point("step", "half_billion", *LONG),
        Point("update", "half_billion", *LONG, layers=6),
        *heavy[1:],
    ]


def quick() -> list[Point]:
    """The same code paths on a small model."""
    return [
        Point("update", "quick", 64, 64, 4),
        Point("update", "quick", 256, 32, 8),
        *(Point("scaling", "quick", 256, completion, group) for completion in (4, 16) for group in (2, 4)),
        Point("step", "quick", 256, 32, 8),
        Point("step", "quick", 256, 32, 8, rows=2),
    ]


def selected(points: list[Point], patterns: list[str]) -> list[Point]:
    """The points whose name fits a pattern.

    Raises:
        ValueError: a pattern that fits none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(point.name, pattern) for point in points):
            names = ", ".join(point.name for point in points)
            raise ValueError(f"--points {pattern!r} fits no point; the points are {names}.")
    return [point for point in points if any(fnmatchcase(point.name, pattern) for pattern in patterns)]
