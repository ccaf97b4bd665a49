"""Rules with numbers about the metrics of a GRPO run: what goes wrong, how that shows, what to change. Pure functions.

The thresholds for dead groups, entropy, KL divergence, clipping and truncation are those of axolotl's table of GRPO
training stability; the others are said in each rule. Windows count log entries, which are optimizer steps at
`logging_steps: 1`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from trl_grpo_ext.health.history import History, has_risen

SHORT, WINDOW, LONG = 5, 10, 50


@dataclass(frozen=True)
class Finding:
    """What a rule has found.

    Args:
        rule: its name.
        seen: what was measured, with numbers.
        change: what to change.
    """

    rule: str
    seen: str
    change: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.seen} {self.change}"


Rule = Callable[[History], Finding | None]


def _reward_rises(history: History) -> bool:
    return has_risen(history.values("reward"))


def not_finite(history: History) -> Finding | None:
    """The loss or the gradient norm is NaN or infinite, or the mean reward infinite (NaN: no row of the step has one)."""
    latest = {name: history.latest(name) or 0.0 for name in ("loss", "grad_norm", "reward")}
    wrong = [name for name, value in latest.items() if not math.isfinite(value)]
    if wrong == ["reward"] and math.isnan(latest["reward"]):
        return None
    if not wrong:
        return None
    change = (
        "A reward function returns infinity, of which no advantage can be made: return finite numbers, or None."
        if "reward" in wrong and math.isinf(latest["reward"])
        else "Lower learning_rate, set max_grad_norm, and use bf16 in place of fp16; the weights of this run are of no use."
    )
    return Finding("not_finite", f"{wrong[0]} is {latest[wrong[0]]}.", change)


def reward_flat(history: History) -> Finding | None:
    """After 50 entries the reward has not risen beyond noise (`has_risen`), though its groups do differ."""
    rewards, dead = history.values("reward"), history.last_mean("frac_reward_zero_std", WINDOW)
    if len(rewards) < LONG or _reward_rises(history) or (dead is not None and dead >= 0.8):
        return None
    first, last = history.first_mean("reward", WINDOW), history.last_mean("reward", 20)
    return Finding(
        "reward_flat",
        f"the mean reward was {first:.3f} and is {last:.3f} after {len(rewards)} entries: no rise beyond noise.",
        "Raise learning_rate or num_generations (grpo_group_size), look at the completions, and check that the reward "
        "tells good from bad (grpo-ext check).",
    )


def dead_groups(history: History) -> Finding | None:
    """In the last 10 entries at least 80 % of the groups had one reward for all completions: they teach nothing."""
    share = history.last_mean("frac_reward_zero_std", WINDOW)
    if share is None or share < 0.8:
        return None
    easy, mean = is_too_easy(history), history.last_mean("reward", WINDOW)
    why = "too easy (nearly all completions get the best reward)" if easy else "too hard (nearly none gets a reward)"
    change = (
        "Use harder prompts, or leave solved ones out: dynamic sampling, curriculum."
        if easy
        else "Use easier prompts, more completions per prompt, a higher temperature, SFT first, or a reward with steps."
    )
    level = "" if mean is None else f"; mean reward {mean:.3f}"
    return Finding("dead_groups", f"{share:.0%} of the groups have no spread{level}. The prompts are {why}.", change)


def is_too_easy(history: History) -> bool:
    """Whether groups without spread are solved rather than failed.

    By `groups/solved` and `groups/failed` of an ExtendedGRPOTrainer. Without these, by where the mean reward of the
    entries with most of these groups is between the lowest and the highest of the run; and in a run that has never
    moved, above 0.5.
    """
    solved, failed = history.last_mean("groups/solved", SHORT), history.last_mean("groups/failed", SHORT)
    if solved is not None and failed is not None and solved != failed:
        return solved > failed
    rewards, now = history.values("reward"), _reward_of_dead_groups(history)
    low, high = min(rewards, default=0.0), max(rewards, default=0.0)
    return now > ((low + high) / 2 if high - low > 0.1 else 0.5)


def _reward_of_dead_groups(history: History) -> float:
    """Return the mean reward of those of the last 10 entries that have the largest share of dead groups.

    Not of all: one group that does differ would lift the mean of many that failed.
    """
    shares = {point.step: point.value for point in history.points("frac_reward_zero_std")[-WINDOW:]}
    points = [point for point in history.points("reward")[-WINDOW:] if point.step in shares]
    most = max((shares[point.step] for point in points), default=0.0)
    levels = [point.value for point in points if shares[point.step] == most]
    return sum(levels) / len(levels) if levels else 0.0


def entropy_collapse(history: History) -> Finding | None:
    """The entropy per token was below 0.01 nats in the last 5 entries, and had been at least 10 times that at first."""
    entropy, first = history.last_mean("entropy", SHORT), history.first_mean("entropy", SHORT)
    if entropy is None or first is None or entropy >= 0.01 or first < 0.1:
        return None
    return Finding(
        "entropy_collapse",
        f"the entropy per token fell from {first:.3f} to {entropy:.4f} nats: every completion is the same.",
        "Lower learning_rate, raise epsilon_high (grpo_clip_range_high, 0.28) or the temperature, or add beta.",
    )


def kl_divergence(history: History) -> Finding | None:
    """The KL divergence from the reference was above 2 nats per token in the last 5 entries."""
    kl = history.last_mean("kl", SHORT)
    if kl is None or kl <= 2.0:
        return None
    return Finding(
        "kl_divergence",
        f"kl is {kl:.2f} nats per token: the policy has left its reference.",
        "Raise beta (grpo_beta), lower learning_rate, or go back to an earlier checkpoint.",
    )


def clipping(history: History) -> Finding | None:
    """More than 30 % of the tokens were clipped in the last 5 entries."""
    share = history.last_mean("clip_ratio/region_mean", SHORT)
    if share is None or share <= 0.3:
        return None
    return Finding(
        "clipping",
        f"{share:.0%} of the tokens are clipped: each generation is trained on for too long, or too fast.",
        "Lower learning_rate or num_iterations (grpo_num_iterations), or widen epsilon.",
    )


def truncation(history: History) -> Finding | None:
    """Over 80 % of the last 10 entries' completions were cut off, and 30 entries have not brought the reward up."""
    share = history.last_mean("completions/clipped_ratio", WINDOW)
    if share is None or share <= 0.8 or len(history.values("reward")) < 30 or _reward_rises(history):
        return None
    return Finding(
        "truncation",
        f"{share:.0%} of the completions are cut off before they end, and the reward does not rise.",
        "Raise max_completion_length (grpo_max_completion_length), or ask for shorter answers in the prompt.",
    )


def length_drift(history: History) -> Finding | None:
    """Completions are over twice, or under a third, as long as at first, and the reward has not risen (30 entries)."""
    name = "completions/mean_length"
    first, last = history.first_mean(name, WINDOW), history.last_mean(name, WINDOW)
    if not first or last is None or len(history.values("reward")) < 30 or _reward_rises(history):
        return None
    if 1 / 3 <= last / first <= 2:
        return None
    return Finding(
        "length_drift",
        f"completions went from {first:.0f} to {last:.0f} tokens, and the reward has not risen.",
        "Look at the completions; use a loss without length bias (dr_grpo, dapo), or a length reward.",
    )


def independent_metrics(history: History) -> list[str]:
    """Return the metrics that come with an interval, as EvaluationCallback logs them."""
    known = set(history.names())
    return [name for name in history.names() if {f"{name}_low", f"{name}_high"} <= known]


def reward_hacking(history: History) -> Finding | None:
    """The last two intervals of an independent metric are below that of its best value, and the reward is higher than then.

    Two whole intervals, since the best of many evaluations is best by chance too: of runs whose metric stands still,
    evaluated 20 times on 30 problems with one sample, 96 of 100 fall below the interval of their best with one value,
    and none with two intervals.
    """
    for name in independent_metrics(history):
        points, lows, highs = (history.points(f"{name}{end}") for end in ("", "_low", "_high"))
        if len(points) < 3 or not len(points) == len(lows) == len(highs):
            continue
        best = max(range(len(points)), key=lambda place: points[place].value)
        if max(high.value for high in highs[-2:]) >= lows[best].value:
            continue
        then, now = (reward_at(history, points[place].step) for place in (best, -1))
        if then is None or now is None or now <= then:
            continue
        return Finding(
            "reward_hacking",
            f"{name} fell from {points[best].value:.3f} (step {points[best].step}) to {points[-1].value:.3f}, while the "
            f"reward rose from {then:.3f} to {now:.3f}.",
            "Read the completions with the highest rewards, mend the reward, and keep the checkpoint of "
            f"step {points[best].step} (metric_for_best_model: {name}).",
        )
    return None


def reward_at(history: History, step: int) -> float | None:
    """Return the mean of the last 5 training rewards up to a step; before training the first one, and None without any."""
    found = history.mean_up_to("reward", step, SHORT)
    return history.first_mean("reward", 1) if found is None else found


def slow_reward(history: History) -> Finding | None:
    """In the last 5 entries more than half of the time went into reward functions, and over 1 second a step."""
    share, seconds = history.last_mean("health/reward_share", SHORT), history.last_mean("health/reward_seconds", SHORT)
    if share is None or seconds is None or share <= 0.5 or seconds <= 1.0:
        return None
    return Finding(
        "slow_reward",
        f"reward functions take {seconds:.1f} s a step, {share:.0%} of its time.",
        "Give them worker processes (IsolatedReward, several workers), or score a batch at once.",
    )


RULES: tuple[Rule, ...] = (
    not_finite,
    dead_groups,
    reward_flat,
    reward_hacking,
    entropy_collapse,
    kl_divergence,
    clipping,
    truncation,
    length_drift,
    slow_reward,
)


def findings(history: History, known: Collection[str] = ()) -> list[Finding]:
    """Return what all rules find in a history, each once.

    Args:
        history: of the run.
        known: names of rules that are not asked.
    """
    return [found for rule in RULES if rule.__name__ not in known and (found := rule(history)) is not None]
