"""The acceptance gate: does a candidate library beat the current one on held-out problems? Pure; no I/O.

Both libraries answer the same held-out problems with the same seeds. A problem's difference is the mean over its seeds
of (reward with the candidate - reward with the current one). Problems are the units of the statistics, since the seeds
of one problem are not independent of one another. The bounds are those of `statistics`: they hold at every look.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from trl_grpo_ext.training_free.statistics import detectable_mean, lower_bound, planned_bets, upper_bound

Key: TypeAlias = tuple[str, int]
"""(problem id, seed)."""
Verdict: TypeAlias = Literal["accept", "reject", "continue"]


@dataclass(frozen=True)
class GateConfig:
    """What a candidate has to show, and how much may be spent on asking. Raises ValueError for settings out of range.

    Args:
        margin: accept if the lower bound of the improvement is above it. 0: better; below 0: not worse by more.
        alpha: the probability of accepting a library that does not clear the margin, per candidate, over all looks.
        min_pairs: (problem, seed) pairs before the first verdict.
        max_pairs: pairs after which a candidate that has not been accepted is rejected. The statistics are at their
            best at this number: where there are fewer held-out problems, take `AcceptanceGate.sized`.
        look_every: pairs that the caller adds between two looks. The bounds do not depend on it.
        seeds: pairs of one problem; a problem counts when it has all of them.
        low: the least reward there is, that of a failed rollout as a rule.
        high: the greatest.
    """

    margin: float = 0.0
    alpha: float = 0.05
    min_pairs: int = 30
    max_pairs: int = 600
    look_every: int = 30
    seeds: int = 1
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        for name in ("margin", "alpha", "low", "high"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, not {getattr(self, name)}.")
        for name in ("min_pairs", "max_pairs", "look_every", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must be above 0 and below 1, not {self.alpha}; 0.05 is usual.")
        if self.low >= self.high:
            raise ValueError(f"low must be below high, but low={self.low} and high={self.high}: the range of rewards.")
        if abs(self.margin) >= self.high - self.low:
            raise ValueError(f"margin must be smaller than high - low = {self.high - self.low}, not {self.margin}.")
        if self.max_pairs < max(self.min_pairs, self.seeds):
            raise ValueError(
                f"max_pairs must be at least min_pairs and seeds, but max_pairs={self.max_pairs}, "
                f"min_pairs={self.min_pairs}, seeds={self.seeds}."
            )


@dataclass(frozen=True)
class Decision:
    """What the pairs so far say.

    Args:
        verdict: "continue" asks for more pairs; where there are none left, it means that the current library stays.
        pairs: (problem, seed) pairs that were counted.
        effect: mean improvement of the problems; 0 where there are none.
        lower: lower bound of the improvement: wrong with a probability of at most alpha, over all looks.
        upper: upper bound, of the same kind.
        minimum_detectable_effect: the least true improvement that this many problems, as spread as these, would accept
            with a probability of about 0.8.
        reason: the verdict in one sentence.
    """

    verdict: Verdict
    pairs: int
    effect: float
    lower: float
    upper: float
    minimum_detectable_effect: float
    reason: str


class AcceptanceGate:
    """Decides whether a candidate library takes the place of the current one.

    The guarantee: if the candidate's true mean improvement is at most the margin, the probability that any `decide`
    of this comparison ever says "accept" is at most alpha. It needs that which pairs are asked, and when one looks,
    does not depend on rewards of pairs yet to come, that held-out problems are drawn independently of the candidate,
    and that failed rollouts are among the pairs, with the reward of a failure. It is for one candidate: of n worthless
    candidates, n alpha may be accepted; for a whole run's guarantee give each of them alpha / n.

    Args:
        config: margin, alpha and sizes.
    """

    def __init__(self, config: GateConfig | None = None) -> None:
        self.config = config or GateConfig()
        self._bets = planned_bets(max(1, self.config.max_pairs // self.config.seeds), self.config.alpha)

    def sized(self, problems: int) -> AcceptanceGate:
        """Return the gate for a held-out set of that many problems, before any of them has been asked.

        `max_pairs` and `min_pairs` are at most its pairs, and the statistics are at their best when it is used up.

        Raises:
            ValueError: fewer than 1 problem.
        """
        if problems < 1:
            raise ValueError(f"problems must be at least 1, not {problems}: the gate needs held-out problems.")
        pairs = min(self.config.max_pairs, problems * self.config.seeds)
        return AcceptanceGate(replace(self.config, max_pairs=pairs, min_pairs=min(self.config.min_pairs, pairs)))

    def decide(self, current: Mapping[Key, float], candidate: Mapping[Key, float]) -> Decision:
        """Compare the rewards at hand; the order of the mappings does not matter.

        Args:
            current: rewards with the current library, by (problem, seed).
            candidate: rewards with the candidate. Keys that only one of them has are left out.

        Raises:
            ValueError: a reward out of [low, high] or not finite, or more pairs of a problem than `seeds`.
        """
        config = self.config
        differences = problem_differences(current, candidate, config)
        span = config.high - config.low
        values = np.array(list(differences.values()))
        pairs, effect = len(values) * config.seeds, float(values.mean()) if len(values) else 0.0
        lower = lower_bound(values, config.alpha, -span, span, self._bets)
        upper = upper_bound(values, config.alpha, -span, span, self._bets)
        spread = float(values.std(ddof=1)) if len(values) > 1 else span
        detectable = detectable_mean(spread, len(values), config.alpha, -span, span, self._bets)
        verdict, why = _verdict(config, pairs, lower, upper)
        least = min(span, config.margin + detectable)
        found = (
            f"improvement {effect:+.4f} in [{lower:+.4f}, {upper:+.4f}] over {pairs} pairs of {len(values)} problems"
        )
        return Decision(verdict, pairs, effect, lower, upper, least, f"{why}: {found}; least detectable {least:+.4f}")


def problem_differences(
    current: Mapping[Key, float], candidate: Mapping[Key, float], config: GateConfig
) -> dict[str, float]:
    """Return the mean improvement of each problem that has all its pairs, in the order of the problems' ids.

    Raises:
        ValueError: a reward out of range, or more pairs of a problem than `config.seeds`.
    """
    for rewards in (current, candidate):
        _check_rewards(rewards, config)
    found: dict[str, list[float]] = {}
    for key in sorted(current.keys() & candidate.keys()):
        found.setdefault(key[0], []).append(candidate[key] - current[key])
    excess = next((problem for problem, values in found.items() if len(values) > config.seeds), None)
    if excess is not None:
        raise ValueError(
            f"problem {excess!r} has {len(found[excess])} pairs, but seeds={config.seeds}: give the number of seeds "
            "per problem to GateConfig."
        )
    return {name: sum(values) / config.seeds for name, values in found.items() if len(values) == config.seeds}


def _check_rewards(rewards: Mapping[Key, float], config: GateConfig) -> None:
    for key, reward in rewards.items():
        if not config.low <= reward <= config.high:
            raise ValueError(
                f"the reward of problem {key[0]!r}, seed {key[1]}, is {reward}, out of [low, high] = [{config.low}, "
                f"{config.high}]: give the range of the rewards to GateConfig; it may not be found from the data."
            )


def _verdict(config: GateConfig, pairs: int, lower: float, upper: float) -> tuple[Verdict, str]:
    confidence = f"{100 * (1 - config.alpha):g} % confidence at every look"
    if pairs < config.min_pairs:
        return "continue", f"fewer than {config.min_pairs} pairs"
    if lower > config.margin:
        return "accept", f"above {config.margin:+g} with {confidence}"
    if upper <= config.margin:
        return "reject", f"not above {config.margin:+g}, with {confidence}"
    if pairs + config.seeds > config.max_pairs:
        return "reject", f"not shown to be above {config.margin:+g} by {config.max_pairs} pairs"
    return "continue", f"open whether above {config.margin:+g}"
