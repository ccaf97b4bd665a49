"""Binary trees over an array: change a leaf, or find the leaf of a mark, in O(log n). Standard library only."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable


def _powers(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


class SumTree:
    """Weights in the leaves, sums above: O(log n) change and draw.

    A node is always computed from its two children, so that sums do not drift from the leaves, however many updates.

    Args:
        weights: first weights, each finite and not negative.
    """

    empty = 0.0

    def __init__(self, weights: Iterable[float] = ()) -> None:
        leaves = array("d", weights)
        self._size = _powers(len(leaves))
        leaves.extend([0.0] * (self._size - len(leaves)))
        levels = [leaves]
        while len(levels[-1]) > 1:
            below = levels[-1]
            levels.append(array("d", map(float.__add__, below[::2], below[1::2])))
        self._nodes = array("d", [0.0])
        for level in reversed(levels):
            self._nodes.extend(level)

    @property
    def total(self) -> float:
        """Sum of the weights."""
        return self._nodes[1]

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: int) -> float:
        return self._nodes[self._size + place]

    def __setitem__(self, place: int, weight: float) -> None:
        nodes, node = self._nodes, self._size + place
        nodes[node] = weight
        while node > 1:
            node >>= 1
            nodes[node] = nodes[2 * node] + nodes[2 * node + 1]

    def find(self, mark: float) -> int:
        """Return the place whose share of [0, total) holds the mark; never one of weight 0 while there is another."""
        nodes, node, size = self._nodes, 1, self._size
        while node < size:
            node *= 2
            left = nodes[node]
            # The second test: rounding can carry a mark past the end of the last weight.
            if mark >= left and nodes[node + 1] > 0.0:
                mark -= left
                node += 1
        return node - size


class BestTree:
    """The same operations at temperature 0: only places of the largest value can be drawn, all of them alike.

    Args:
        values: first values; minus infinity marks an empty place.
    """

    empty = -math.inf

    def __init__(self, values: Iterable[float] = ()) -> None:
        leaves = list(values)
        self._size = _powers(len(leaves))
        leaves.extend([self.empty] * (self._size - len(leaves)))
        self._best = array("d", [0.0] * self._size + leaves)
        self._count = array("q", [0] * self._size + [int(value > self.empty) for value in leaves])
        for node in range(self._size - 1, 0, -1):
            self._join(node)

    def _join(self, node: int) -> None:
        best, count, left, right = self._best, self._count, 2 * node, 2 * node + 1
        best[node] = max(best[left], best[right])
        count[node] = sum(count[child] for child in (left, right) if best[child] == best[node])

    @property
    def total(self) -> float:
        """Number of places that hold the largest value."""
        return float(self._count[1])

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: int) -> float:
        return self._best[self._size + place]

    def __setitem__(self, place: int, value: float) -> None:
        node = self._size + place
        self._best[node], self._count[node] = value, int(value > self.empty)
        while node > 1:
            node >>= 1
            self._join(node)

    def find(self, mark: float) -> int:
        """Return the floor(mark)-th of the places that hold the largest value."""
        node, rest = 1, int(mark)
        while node < self._size:
            best, node = self._best[node], 2 * node
            here = self._count[node] if self._best[node] == best else 0
            if rest >= here:
                rest -= here
                node += 1
        return node - self._size
