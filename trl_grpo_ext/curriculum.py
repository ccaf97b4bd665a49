"""A difficulty curriculum: prompts near a target difficulty that follows the solve rate (AdaRFT, arXiv 2504.05520).

Needs no trainer. Every rank must hold the same state: the sampler then yields the same indices everywhere.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

__all__ = ["Curriculum", "CurriculumSampler"]

# Share of all prompts among which a draw chooses.
_WINDOW = 0.1


class Curriculum:
    r"""The target difficulty, how often each prompt was drawn, and the prompts drawn so far in this epoch.

    After each generation, with the share s of completions that solve their prompt and the band [low, high]:

        target <- clip(target + step * (max - min) * d, min, max),   d = +1 if s > high, -1 if s < low, else 0

    AdaRFT moves by tanh of the distance to one rate; a band leaves the target alone while the rate is inside.
    Drawn are, of the tenth of all prompts that is nearest to the target (more where they are equally near), those
    drawn least often so far, ties at random. So prompts far from the target may never be drawn, and those near it several times in an epoch.

    Args:
        difficulties: one number per dataset row, higher is harder.
        band: wanted solve rate (low, high), in [0, 1].
        step: how far one generation moves the target, as a share of the range of difficulties.
        seed: of the order among equally near prompts.

    Raises:
        ValueError: a difficulty that is not a finite number.
    """

    def __init__(self, difficulties: Sequence[float], band: tuple[float, float], step: float, seed: int) -> None:
        self.difficulties = torch.as_tensor([_number(row, value) for row, value in enumerate(difficulties)])
        self.band, self.step, self.seed = band, step, seed
        self.lowest, self.highest = self.difficulties.min().item(), self.difficulties.max().item()
        self.target = self.lowest
        self.uses = [0] * len(self.difficulties)
        self.drawn: list[int] = []

    def observe(self, solve_rate: float) -> float:
        """Take the solve rate of one generation and return the new target difficulty."""
        low, high = self.band
        direction = (solve_rate > high) - (solve_rate < low)
        target = self.target + direction * self.step * (self.highest - self.lowest)
        self.target = min(max(target, self.lowest), self.highest)
        return self.target

    def nearest(self) -> list[int]:
        """Return all rows, the nearest to the target first, ties in an order that changes with each draw."""
        generator = torch.Generator().manual_seed(hash((self.seed, sum(self.uses))) % 2**63)
        ties = torch.randperm(len(self.difficulties), generator=generator)
        distance = (self.difficulties[ties] - self.target).abs()
        return ties[distance.argsort(stable=True)].tolist()

    def draw(self, count: int) -> list[int]:
        """Draw `count` different rows for the next generation."""
        order = self.nearest()
        last = order[min(max(count, math.ceil(len(order) * _WINDOW)), len(order)) - 1]
        # All rows as near as the last one: difficulties are often a few levels.
        near = (self.difficulties - self.target).abs() <= (self.difficulties[last] - self.target).abs()
        window = (row for row in order if near[row])
        rows = sorted(window, key=lambda row: self.uses[row])[:count]
        for row in rows:
            self.uses[row] += 1
        self.drawn += rows
        return rows

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to go on."""
        return {"target": self.target, "uses": list(self.uses), "drawn": list(self.drawn)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`.

        Raises:
            ValueError: it belongs to a dataset of another size.
        """
        if len(state["uses"]) != len(self.uses):
            raise ValueError(
                f"The curriculum in the checkpoint is of a dataset of {len(state['uses'])} rows, this one has "
                f"{len(self.uses)}: resume with the same dataset."
            )
        self.target, self.uses, self.drawn = float(state["target"]), list(state["uses"]), list(state["drawn"])


def _number(row: int, value: Any) -> float:
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")
    if not abs(number) < float("inf"):
        raise ValueError(f"curriculum_column: row {row} must hold a finite number, higher is harder; got {value!r}.")
    return number


class CurriculumSampler(Sampler):
    """TRL's repeating sampler with the prompts of each generation chosen by a `Curriculum`.

    A chunk of prompts is chosen when its first index is asked for. After a resume, the epoch first repeats the chunks
    that were drawn before the checkpoint: the Trainer skips those it has trained on.

    Args:
        repeat_sampler: TRL's `RepeatSampler`, whose counts are taken over.
        curriculum: chooses the prompts.
    """

    def __init__(self, repeat_sampler: Any, curriculum: Curriculum) -> None:
        self.repeat_sampler = repeat_sampler
        self.curriculum = curriculum
        self._resumed = False

    def resume(self) -> None:
        """Let the next epoch begin with the prompts that its state says were drawn."""
        self._resumed = True

    def __len__(self) -> int:
        return len(self.repeat_sampler)

    def __iter__(self) -> Iterator[int]:
        stock = self.repeat_sampler
        for chunk in self._chunks(stock.batch_size, stock.num_samples // stock.batch_size):
            for _ in range(stock.repeat_count):
                for index in chunk:
                    yield from [index] * stock.mini_repeat_count

    def _chunks(self, size: int, count: int) -> Iterator[list[int]]:
        drawn = list(self.curriculum.drawn) if self._resumed else []
        if not self._resumed:
            self.curriculum.drawn = []
        self._resumed = False
        for start in range(0, count * size, size):
            yield drawn[start : start + size] if start < len(drawn) else self.curriculum.draw(size)
