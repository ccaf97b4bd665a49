"""In-group ranking: which completion of a prompt is better than which, without an absolute score."""

from collections.abc import Callable, Sequence
from typing import Any

from trl_grpo_ext.rewards.composition.components import call_component
from trl_grpo_ext.rewards.composition.groups import Score, find_groups, normalise
from trl_grpo_ext.rewards.text import completion_text

Compare = Callable[[Any, str, str], float]


class RankedReward:
    """The rank within the group of another reward's scores: (below - above) / (n - 1), in [-1, 1] with mean 0.

    Monotone changes of the reward's scale have no effect, and an outlier counts as any best row. Rows that the reward
    skips (None) stay skipped. Failure mode: a rank crowns a winner among bad completions too, and makes noise in the
    last digit as large as a real difference; where scores are equal, ranks are.

    Args:
        reward: a reward function of TRL's convention, not async.
        group_size: the trainer's `num_generations`; None (default) takes runs of equal prompts.
        name: "ranked_" and the reward's own name by default.

    Raises:
        ValueError: in a call: a wrong number of scores, or groups that can't be told apart (see `find_groups`).
        TypeError: in a call: a score that is neither a number nor None.
    """

    def __init__(self, reward: Callable[..., Any], group_size: int | None = None, name: str | None = None) -> None:
        own = getattr(reward, "__name__", type(reward).__name__)
        self.__name__ = name or f"ranked_{own}"
        self.reward, self.group_size = reward, group_size

    def __call__(self, completions: Sequence[Any], prompts: Sequence[Any], **kwargs: Any) -> list[Score]:
        """Return one rank, or None, per completion."""
        own = getattr(self.reward, "__name__", type(self.reward).__name__)
        call = {**kwargs, "completions": completions, "prompts": prompts}
        scores = call_component(self.reward, own, len(completions), call)
        return normalise(scores, find_groups(prompts, self.group_size), "rank")


class PairwiseRanking:
    """Win rate against the other completions of the group, each pair compared in both orders.

    r_i = 1 / (n - 1) * sum_{j != i} (c(p, y_i, y_j) + 1 - c(p, y_j, y_i)) / 2, where c in [0, 1] says how much better
    the first text is than the second at prompt p; equal texts draw without being compared. Range [0, 1], mean 1/2 in
    each group; asking in both orders cancels a judge's preference for a position. A group of one row is skipped.
    Failure modes: n * (n - 1) comparisons per group; it crowns a winner among bad completions too.

    Args:
        compare: (prompt, first text, second text) -> number in [0, 1]; 1.0 when the first is better, 0.5 for a draw.
        group_size: the trainer's `num_generations`; None (default) takes runs of equal prompts.
        name: "pairwise_ranking" by default.

    Raises:
        ValueError: in a call: `compare` returned something outside [0, 1], or groups that can't be told apart.
    """

    def __init__(self, compare: Compare, group_size: int | None = None, name: str = "pairwise_ranking") -> None:
        self.__name__ = name
        self.compare, self.group_size = compare, group_size

    def _compare(self, prompt: Any, first: str, second: str) -> float:
        verdict = float(self.compare(prompt, first, second))
        if not 0 <= verdict <= 1:
            raise ValueError(
                f"{self.__name__}: compare must return a number from 0 (the second text is better) to 1 (the first is), "
                f"not {verdict!r}."
            )
        return verdict

    def _points(self, prompt: Any, first: str, second: str) -> float:
        if first == second:
            return 0.5
        return (self._compare(prompt, first, second) + 1 - self._compare(prompt, second, first)) / 2

    def __call__(self, completions: Sequence[Any], prompts: Sequence[Any], **kwargs: Any) -> list[Score]:
        """Return one win rate per completion, None in groups of one row."""
        texts = [completion_text(completion) for completion in completions]
        rewards: list[Score] = [None] * len(texts)
        for group in find_groups(prompts, self.group_size):
            points = dict.fromkeys(group, 0.0)
            for i in group:
                for j in range(i + 1, group.stop):
                    won = self._points(prompts[i], texts[i], texts[j])
                    points[i] += won
                    points[j] += 1 - won
            if len(group) > 1:
                for row in group:
                    rewards[row] = points[row] / (len(group) - 1)
        return rewards
