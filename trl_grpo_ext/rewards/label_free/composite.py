"""The label-free composite of ZIP-0273: self-consistency, factual grounding and step validity."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trl_grpo_ext.rewards.composition.composite import CompositeReward
from trl_grpo_ext.rewards.label_free.grounding import FactualGroundingReward
from trl_grpo_ext.rewards.label_free.lexical_judge import Judge, lexical_verdict
from trl_grpo_ext.rewards.label_free.self_consistency import SelfConsistencyReward
from trl_grpo_ext.rewards.label_free.step_validity import StepValidityReward


def label_free_reward(
    corpus: Sequence[str] | None = None,
    judge: Judge = lexical_verdict,
    weights: Mapping[str, float] | None = None,
    consistency: SelfConsistencyReward | None = None,
    extra: Mapping[str, Callable[..., Any]] | None = None,
    group_size: int | None = None,
    name: str = "label_free",
) -> CompositeReward:
    """Build the composite that ZIP-0273 describes: score, rank within the group, weigh, standardise the sum.

    A_i = (s_i - mean(s)) / std(s) over the group, with s_i = sum_c w_c * rank_c(i) and rank_c in [-1, 1] the place of
    completion i within its group under component c. Ranks make components of different scales comparable. A group that
    self-consistency skips (unanimous, without margin, won by a constant answer) is skipped whole, so that the other
    components can't drive a collapsed group on; a component that abstains on a row (no facts, no steps) adds nothing to it.

    Args:
        corpus: facts for grounding; None (default) leaves that component out.
        judge: the judge of claims; `lexical_verdict` by default, which is weak.
        weights: of `self_consistency`, `step_validity`, `factual_grounding` and the extra ones; 1.0 each by default.
        consistency: a configured `SelfConsistencyReward`; one with the defaults and `group_size` if None.
        extra: more rewards by name (a format reward, a judge), ranked like the others, None of them adding nothing.
        group_size: rows per group where no trainer is calling, see `find_groups`; None by default.
        name: the name under which TRL logs it; "label_free" by default.

    Returns:
        A `CompositeReward`; each component is in its metrics. A group's rewards have mean 0 and standard deviation 1
        (so the logged mean reward says nothing: watch the components), 0 where all are equal, None where skipped.

    Raises:
        ValueError: an unknown component in `weights`, an extra reward with the name of a component, an empty corpus.
    """
    rewards: dict[str, Callable[..., Any]] = {
        "self_consistency": consistency or SelfConsistencyReward(group_size=group_size),
        "step_validity": StepValidityReward(),
    }
    if corpus is not None:
        rewards["factual_grounding"] = FactualGroundingReward(corpus, judge)
    for extra_name, reward in (extra or {}).items():
        if extra_name in rewards:
            raise ValueError(f"label_free_reward: extra[{extra_name!r}] has the name of a component; rename it.")
        rewards[extra_name] = reward
    return CompositeReward(
        rewards,
        weights=weights or {},
        normalisation="rank",
        missing={component: "skip" if component == "self_consistency" else "omit" for component in rewards},
        total="standardise",
        group_size=group_size,
        name=name,
    )
