"""Draws by softmax of the advantage: a sum tree for the library's own temperature, Gumbel top-k for everything else.

Standard library only. Random numbers come from the caller's generator, never from the global one.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Iterable, Sequence
from random import Random
from typing import Protocol

from trl_grpo_ext.experience.trees import BestTree, SumTree

# exp() of less than -FLOOR is kept as weight 0, and the reference moves when a new weight would pass exp(CEILING):
# a sum of 2^60 weights is still finite then.
FLOOR, CEILING = 700.0, 600.0
# Below this, weights of 0 could hold a share of what is left.
_TINY = math.exp(-(FLOOR - 40.0))


class _Tree(Protocol):
    empty: float

    @property
    def total(self) -> float: ...
    def __len__(self) -> int: ...
    def __getitem__(self, place: int) -> float: ...
    def __setitem__(self, place: int, weight: float) -> None: ...
    def find(self, mark: float) -> int: ...


def check_temperature(temperature: float) -> float:
    """Return the temperature as a float.

    Raises:
        ValueError: negative, NaN or no number.
    """
    if isinstance(temperature, str | bool) or not float(temperature) >= 0:
        raise ValueError(f"temperature must be at least 0 (0: the best only, inf: uniform), not {temperature!r}.")
    return float(temperature)


def gumbel_top_k(
    items: Iterable[tuple[int, float]], count: int, temperature: float, random: Random
) -> list[tuple[int, float]]:
    """Draw without replacement from P(i) = exp(A_i / T) / sum_j exp(A_j / T), in one pass over all items.

    The k largest of A_i / T + g_i with g_i = -log(-log u_i) follow the law of k draws one after the other
    (Plackett-Luce; Kool et al., arXiv 1903.06059). Nothing is exponentiated, so nothing overflows.

    Args:
        items: (key, advantage) pairs.
        count: how many to draw; fewer come back when there are fewer.
        temperature: T >= 0. 0 takes the best, ties in random order; infinity is uniform.
        random: source of random numbers.

    Returns:
        The drawn pairs in the order of the draws.

    Raises:
        ValueError: a negative temperature.
    """
    temperature = check_temperature(temperature)

    def score(item: tuple[int, float]) -> tuple[float, float]:
        noise = -math.log(random.expovariate(1.0) or 5e-324)
        if temperature == 0.0:
            return item[1], noise
        # Dividing a huge advantage by a tiny temperature may be infinite: then only the advantage itself decides.
        return item[1] / temperature + noise, item[1]

    return heapq.nlargest(count, items, key=score)


class AdvantageSampler:
    """Keys with advantages, drawn from P(i) = exp(A_i / T) / sum_j exp(A_j / T).

    Adding, changing, removing and drawing cost O(log n); a new largest advantage that is CEILING * T above the
    reference, and growth beyond the next power of two, rebuild the tree in O(n).

    Args:
        items: (key, advantage) pairs; a key comes once.
        temperature: T >= 0. 0 draws the best only, infinity draws uniformly.

    Raises:
        ValueError: a negative temperature, an advantage that is not finite.
    """

    def __init__(self, items: Iterable[tuple[int, float]] = (), temperature: float = 1.0) -> None:
        self.temperature = check_temperature(temperature)
        pairs = list(items)
        self._keys: list[int] = [key for key, _ in pairs]
        self._advantages = array("d", [advantage for _, advantage in pairs])
        if not all(map(math.isfinite, self._advantages)):
            raise ValueError("AdvantageSampler: advantages must be finite numbers.")
        self._places = {key: place for place, key in enumerate(self._keys)}
        self._rebuild()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: int) -> bool:
        return key in self._places

    def items(self) -> Iterable[tuple[int, float]]:
        """Return every (key, advantage)."""
        return zip(self._keys, self._advantages, strict=True)

    def _rebuild(self) -> None:
        self._reference = max(self._advantages, default=0.0)
        values = self._values()
        self._tree: _Tree = SumTree(values) if self.temperature else BestTree(values)

    def _values(self) -> Iterable[float]:
        if self.temperature in (0.0, math.inf):
            return map(self._value, self._advantages)
        reference, temperature, exp = self._reference, self.temperature, math.exp
        # max(): exp of less than FLOOR is a subnormal number or 0, which the draws handle, but is slow.
        return [
            exp(scaled) if (scaled := (advantage - reference) / temperature) > -FLOOR else 0.0
            for advantage in self._advantages
        ]

    def _value(self, advantage: float) -> float:
        if self.temperature == 0.0:
            return advantage
        if self.temperature == math.inf:
            return 1.0
        scaled = (advantage - self._reference) / self.temperature
        return math.exp(min(scaled, CEILING)) if scaled > -FLOOR else 0.0

    def _outgrown(self, advantage: float) -> bool:
        scaled = self.temperature not in (0.0, math.inf)
        high = scaled and (advantage - self._reference) / self.temperature > CEILING
        return high or len(self._keys) > len(self._tree)

    def set(self, key: int, advantage: float) -> None:
        """Add a key, or change its advantage.

        Raises:
            ValueError: an advantage that is not finite.
        """
        if not math.isfinite(advantage):
            raise ValueError(f"AdvantageSampler: the advantage of {key} must be a finite number, not {advantage!r}.")
        place = self._places.setdefault(key, len(self._keys))
        if place == len(self._keys):
            self._keys.append(key)
            self._advantages.append(advantage)
        self._advantages[place] = advantage
        if self._outgrown(advantage):
            self._rebuild()
        else:
            self._tree[place] = self._value(advantage)

    def remove(self, key: int) -> None:
        """Remove a key: the last one takes its place.

        Raises:
            KeyError: no such key.
        """
        place = self._places.pop(key)
        last, advantage = self._keys.pop(), self._advantages.pop()
        value, self._tree[len(self._keys)] = self._tree[len(self._keys)], self._tree.empty
        if last != key:
            self._keys[place], self._advantages[place], self._places[last] = last, advantage, place
            self._tree[place] = value

    def draw(self, random: Random) -> int:
        """Draw one key.

        Raises:
            IndexError: there is none.
        """
        if not self._keys:
            raise IndexError("AdvantageSampler: there is nothing to draw from.")
        if self.temperature and self._tree.total < _TINY:
            self._rebuild()
        return self._keys[self._tree.find(random.random() * self._tree.total)]

    def draw_distinct(self, count: int, random: Random) -> list[int]:
        """Draw keys one after the other without replacement; all of them when there are fewer than `count`."""
        taken: list[tuple[int, float]] = []
        count = min(count, len(self._keys))
        while len(taken) < count and (not self.temperature or self._tree.total >= _TINY):
            place = self._tree.find(random.random() * self._tree.total)
            taken.append((place, self._tree[place]))
            self._tree[place] = self._tree.empty
        for place, value in taken:
            self._tree[place] = value
        places = [place for place, _ in taken]
        return [self._keys[place] for place in [*places, *self._rest(places, count - len(places), random)]]

    def _rest(self, taken: Sequence[int], count: int, random: Random) -> list[int]:
        """The draws left once every weight that has not underflowed is taken."""
        if not count:
            return []
        without = set(taken)
        rest = [(place, advantage) for place, advantage in enumerate(self._advantages) if place not in without]
        return [place for place, _ in gumbel_top_k(rest, count, self.temperature, random)]
