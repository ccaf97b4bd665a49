"""Several rewards as one: weights, schedules, gates and normalisation, each visible at every step."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trl_grpo_ext._suggest import did_you_mean
from trl_grpo_ext.rewards.adapters.signatures import joint_signature
from trl_grpo_ext.rewards.composition.components import (
    Gate,
    Missing,
    Reward,
    call_component,
    mean_score,
    named_rewards,
    per_component,
)
from trl_grpo_ext.rewards.composition.groups import NORMALISATIONS, Score, check_group_size, find_groups, normalise
from trl_grpo_ext.rewards.composition.schedules import Constant, Schedule, training_progress


class CompositeReward:
    """A weighted sum of rewards, as one reward function of TRL's convention.

    For row i: reward_i = sum_c w_c(p) * N_c(g_c(r_c,i)), where r_c is the reward of component c, g_c its gates, N_c
    its normalisation within the group (`composition.groups`), and w_c(p) = weight * schedule(progress of training).
    Without normalisation the range is the weighted sum of the components' ranges.

    Every call leaves its figures in `last_metrics` (name -> number) and its unweighted values, before gates and
    normalisation, in `last_components`; where TRL passes `log_metric` (TRL >= 1.0) the figures are also logged, under
    `<name>/<component>/` `mean` (before gates), `term` (its mean share of the sum), `weight` (at this step), `skipped`
    (share of None) and `gated` (share behind a closed gate). A figure without any scored row is left out. On older TRL, `RewardMetricsCallback` logs the same figures.

    The object can be pickled where its components can. It needs whole groups in each call, when it normalises. Async
    components are awaited, one component after the other.

    Args:
        rewards: reward functions with distinct names, or a mapping of names to them.
        weights: component -> weight, or one weight for all; 1.0 by default. Negative weights are penalties.
        schedules: component -> function of the progress in [0, 1], see `composition.schedules`; constant by default.
        gates: `Gate`s. A component may have several: all must be open.
        normalisation: component -> "none" (default), "standardise" or "rank", or one for all.
        missing: component -> what None (or NaN) of it means, or one for all: "skip" (default): the row is None;
            "omit": the component adds nothing to this row's sum, which is the group's mean under "standardise" and
            "rank"; a number: that score instead. A row without any component's score is None in every case.
        total: normalisation of the sum within the group: "none" (default), "standardise" or "rank".
        group_size: rows per group where no trainer is calling, see `find_groups`; None by default.
        name: the name under which TRL logs the sum; "composite" by default.

    Raises:
        ValueError: no rewards, two of one name, an unknown component, normalisation or policy, a weight that is not a
            finite number; in a call: a component with a wrong number of values or an infinite one, a schedule that
            gives no finite number, or no clean groups.
        TypeError: in a call: a component that returns something other than numbers and None.
    """

    def __init__(
        self,
        rewards: Mapping[str, Reward] | Sequence[Reward],
        weights: Mapping[str, float] | float = 1.0,
        schedules: Mapping[str, Schedule] | None = None,
        gates: Sequence[Gate] = (),
        normalisation: Mapping[str, str] | str = "none",
        missing: Mapping[str, Missing] | Missing = "skip",
        total: str = "none",
        group_size: int | None = None,
        name: str = "composite",
    ) -> None:
        self.__name__ = name
        self.rewards = named_rewards(rewards)
        names = list(self.rewards)
        self.weights = per_component("weights", weights, 1.0, names)
        self.schedules = per_component("schedules", schedules or {}, Constant(), names)
        self.normalisation = per_component("normalisation", normalisation, "none", names)
        self.missing = per_component("missing", missing, "skip", names)
        self.gates, self.total, self.group_size = tuple(gates), total, check_group_size(group_size)
        self.__signature__ = joint_signature(self.rewards.values())
        self.last_metrics: dict[str, float] = {}
        self.last_components: dict[str, list[Score]] = {}
        self._check()

    def _check(self) -> None:
        for component in self.rewards:
            weight, missing = self.weights[component], self.missing[component]
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise ValueError(f"weights: the weight of {component!r} must be a finite number, not {weight!r}.")
            number = isinstance(missing, int | float) and not isinstance(missing, bool) and math.isfinite(missing)
            if missing not in ("skip", "omit") and not number:
                raise ValueError(
                    f"missing: the policy of {component!r} must be 'skip', 'omit' or a finite number, not {missing!r}."
                )
        for where, kind in [*self.normalisation.items(), ("total", self.total)]:
            if kind not in NORMALISATIONS:
                raise ValueError(
                    f"normalisation of {where!r} must be one of {', '.join(NORMALISATIONS)}, not {kind!r}"
                    f"{did_you_mean(kind, NORMALISATIONS) or '.'}"
                )
        for gate in self.gates:
            per_component("gates", dict.fromkeys((gate.component, *gate.opens)), None, list(self.rewards))
            if gate.component in gate.opens or not gate.opens:
                raise ValueError(
                    f"gates: {gate.component!r} must open at least one component and not itself, not {gate.opens}."
                )

    def _weight(self, name: str, progress: float) -> float:
        factor = self.schedules[name](progress)
        if not math.isfinite(factor):
            raise ValueError(
                f"schedules: that of {name!r} gave {factor!r} at progress {progress}, not a finite number."
            )
        return self.weights[name] * factor

    def _closed(self, component: str, raw: Mapping[str, list[Score]]) -> list[Score]:
        """Return per row the score that a closed gate forces on the component, None where all its gates are open."""
        forced: list[Score] = [None] * len(raw[component])
        for gate in self.gates:
            if component in gate.opens:
                for row, score in enumerate(raw[gate.component]):
                    if score is None or score < gate.minimum:
                        forced[row] = gate.otherwise
        return forced

    def _fill(self, component: str, scores: Sequence[Score]) -> list[Score]:
        policy = self.missing[component]
        return list(scores) if isinstance(policy, str) else [policy if s is None else s for s in scores]

    def _sum(self, raw: Mapping[str, list[Score]], terms: Mapping[str, list[Score]]) -> list[Score]:
        def row_sum(row: int) -> Score:
            if all(scores[row] is None for scores in raw.values()):
                return None
            if any(terms[name][row] is None and self.missing[name] == "skip" for name in terms):
                return None
            known = [score for scores in terms.values() if (score := scores[row]) is not None]
            return math.fsum(known) if known else None

        return [row_sum(row) for row in range(len(next(iter(terms.values()))))]

    def _term(self, name: str, scores: Sequence[Score], groups: Sequence[range], weight: float) -> list[Score]:
        values = normalise(scores, groups, self.normalisation[name])
        return [None if value is None else weight * value for value in values]

    def __call__(self, completions: Sequence[Any], **kwargs: Any) -> list[Score]:
        """Return one reward per completion; TRL passes `prompts`, `trainer_state` and the data columns."""
        rows = len(completions)
        kwargs = {**kwargs, "completions": completions}
        progress = training_progress(kwargs.get("trainer_state"))
        raw = {name: call_component(reward, name, rows, kwargs) for name, reward in self.rewards.items()}
        weights = {name: self._weight(name, progress) for name in raw}
        groups = self._groups(rows, kwargs.get("prompts"))
        terms, gated = {}, {}
        for name, scores in raw.items():
            closed = self._closed(name, raw)
            gated[name] = sum(score is not None for score in closed) / max(rows, 1)
            filled = self._fill(name, scores)
            open_scores = [own if gate is None else gate for own, gate in zip(filled, closed, strict=True)]
            terms[name] = self._term(name, open_scores, groups, weights[name])
        self.last_components = raw
        self._record(raw, terms, weights, gated, kwargs.get("log_metric"))
        return normalise(self._sum(raw, terms), groups, self.total)

    def _groups(self, rows: int, prompts: Sequence[Any] | None) -> list[range]:
        if set(self.normalisation.values()) | {self.total} == {"none"} or not rows:
            return [range(rows)]
        if prompts is None or len(prompts) != rows:
            raise ValueError(
                f"{self.__name__}: normalisation within groups needs prompts, one per completion ({rows}); "
                "TRL passes them."
            )
        return find_groups(prompts, self.group_size)

    def _record(
        self,
        raw: Mapping[str, list[Score]],
        terms: Mapping[str, list[Score]],
        weights: Mapping[str, float],
        gated: Mapping[str, float],
        log_metric: Callable[[str, float], None] | None,
    ) -> None:
        figures: dict[str, float] = {}
        for name, scores in raw.items():
            prefix = f"{self.__name__}/{name}"
            figures[f"{prefix}/mean"] = mean_score(scores)
            figures[f"{prefix}/term"] = mean_score(terms[name])
            figures[f"{prefix}/weight"] = weights[name]
            figures[f"{prefix}/skipped"] = sum(score is None for score in scores) / max(len(scores), 1)
            figures[f"{prefix}/gated"] = gated[name]
        self.last_metrics = {name: value for name, value in figures.items() if not math.isnan(value)}
        if log_metric is not None:
            for name, value in self.last_metrics.items():
                log_metric(name, value)

    @property
    def parts(self) -> tuple[Reward, ...]:
        """The components."""
        return tuple(self.rewards.values())

    @property
    def pseudo_signal(self) -> float:
        """How well the policy pleases the components, as the collapse guard watches it; NaN before the first call.

        sum_c |w_c| * s_c / sum_c |w_c| over the components with s_c, where s_c is the component's own `pseudo_signal`,
        or its mean before gates and normalisation, which a standardised sum would hide, with the sign of its weight.
        """
        parts = []
        for name, scores in self.last_components.items():
            weight = self.weights[name]
            signal = getattr(self.rewards[name], "pseudo_signal", None)
            value = mean_score(scores) if signal is None else signal
            if weight and not math.isnan(value):
                parts.append((abs(weight), weight * value))
        return math.fsum(value for _, value in parts) / math.fsum(size for size, _ in parts) if parts else math.nan
