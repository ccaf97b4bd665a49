"""The file of figures, written after every point, so that a run that was cut off goes on where it stopped."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from step_parts.goals import goals
from step_parts.models import CUDA
from step_parts.points import Point


def environment() -> dict[str, Any]:
    """Where and how the figures are made; figures of different ones are not put into one file."""
    packages = {name: version(name) for name in ("trl", "transformers", "torch")}
    device = f"{torch.cuda.get_device_name()}, bf16" if CUDA else f"CPU, {torch.get_num_threads()} thread, fp32"
    clock = "wall seconds, synchronised" if CUDA else "CPU seconds of the process"
    return (
        packages
        | {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
        | {
            "device": device,
            "clock": clock,
        }
    )


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row is of."""
    return tuple(row[name] for name in ("part", "model", "prompt", "completion", "group", "rows", "layers"))


def place(point: Point) -> dict[str, Any]:
    """The columns that say which point a row is of."""
    return {
        **{"part": point.part, "model": point.model, "prompt": point.prompt, "completion": point.completion},
        **{"group": point.group, "rows": point.micro_rows, "layers": point.layers},
    }


class Results:
    """The rows measured so far.

    Args:
        path: the file, or None to keep them in memory only.

    Raises:
        ValueError: the file is of another environment.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.environment = path, environment()
        self.rows: list[dict[str, Any]] = []
        if path is None or not path.is_file():
            return
        document = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name, value in self.environment.items() if document["environment"].get(name) != value]
        if changed:
            raise ValueError(
                f"--json {path} holds figures of another environment ({', '.join(changed)} differ): name another "
                "file, or remove this one."
            )
        self.rows = document["results"]

    def has(self, point: Point) -> bool:
        """Whether there are figures of this point."""
        return key(place(point)) in map(key, self.rows)

    def add(self, point: Point, figures: dict[str, Any]) -> None:
        """Put figures in place of older ones of this point, and write the file."""
        row = place(point) | figures
        self.rows = [*(old for old in self.rows if key(old) != key(row)), row]
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.document(), indent=1) + "\n", encoding="utf-8")

    def document(self) -> dict[str, Any]:
        """What the file holds."""
        return {
            "name": "step",
            "environment": self.environment,
            "results": self.rows,
            "goals": goals(self.rows),
        }
