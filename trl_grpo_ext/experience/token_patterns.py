"""What stored responses say about the next token: which tokens they share, and which may follow. Pure functions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

# From a token to the node of the texts that go on with it.
Node: TypeAlias = dict[int, "Node"]
# Key in a node where a text ends; no token has this id.
END = -1


def token_shares(
    responses: Iterable[tuple[Sequence[int], float]], excluded: frozenset[int] = frozenset()
) -> dict[int, float]:
    r"""Return the advantage-weighted share of each token: p(t) = sum_e A_e n_e(t) / |e| / sum_e A_e.

    Args:
        responses: tokens of each episode e, and its advantage A_e, above 0.
        excluded: tokens that count neither in n_e(t) nor in |e|.

    Returns:
        Shares that sum to 1; empty when no token is left.
    """
    counted = [(Counter(token for token in tokens if token not in excluded), weight) for tokens, weight in responses]
    counted = [(counts, weight) for counts, weight in counted if counts]
    # Relative to the largest advantage, so that no sum is infinite.
    largest = max((weight for _, weight in counted), default=1.0)
    total = sum(weight / largest for _, weight in counted)
    shares: dict[int, float] = {}
    for counts, weight in counted:
        for token, count in counts.items():
            shares[token] = shares.get(token, 0.0) + weight / largest * count / counts.total() / total
    return shares


def bias(shares: Mapping[int, float], strength: float, smoothing: float) -> dict[int, float]:
    r"""Return b(t) = strength * log(1 + p(t) / s) / log(1 + max p / s), in [0, strength].

    Args:
        shares: p(t); tokens that are not there have bias 0.
        strength: bias of the most frequent token, in nats.
        smoothing: s, above 0. Shares far above it differ by their logarithm, shares far below it are proportional.
    """
    highest = math.log1p(max(shares.values(), default=1.0) / smoothing)
    return {token: strength * math.log1p(share / smoothing) / highest for token, share in shares.items()}


def prefix_tree(responses: Iterable[Sequence[int]]) -> Node:
    """Return the tree of all beginnings of the responses; `END` stands where one is complete."""
    root: Node = {}
    for tokens in responses:
        node = root
        for token in tokens:
            node = node.setdefault(token, {})
        node[END] = {}
    return root


def following(tree: Node, tokens: Iterable[int]) -> Node:
    """Return the node below which the texts stand that begin with `tokens`; an empty one when none does."""
    node = tree
    for token in tokens:
        node = node.get(token, {})
    return node
