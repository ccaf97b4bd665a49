"""In-group ranking: which completion of a prompt is better than which, without an absolute score."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from trl_grpo_ext.rewards.adapters.calls import callable_name
from trl_grpo_ext.rewards.adapters.signatures import joint_signature
from trl_grpo_ext.rewards.composition.components import call_component
from trl_grpo_ext.rewards.composition.groups import Score, check_group_size, find_groups, normalise, win_shares
from trl_grpo_ext.rewards.text import completion_text

Compare = Callable[[Any, str, str], float]


class RankedReward:
    """The rank within the group of another reward's scores: (below - above) / (n - 1), in [-1, 1] with mean 0.

    Monotone changes of the reward's scale have no effect, and an outlier counts as any best row. Rows that the reward
    skips (None) stay skipped. Failure mode: a rank crowns a winner among bad completions too, and makes noise in the
    last digit as large as a real difference; where scores are equal, ranks are.

    Args:
        reward: a reward function of TRL's convention.
        group_size: rows per group where no trainer is calling, see `find_groups`; None by default.
        name: "ranked_" and the reward's own name by default.

    Raises:
        ValueError: in a call: a wrong number of scores, or groups that can't be told apart (see `find_groups`).
        TypeError: in a call: a score that is neither a number nor None.
    """

    def __init__(self, reward: Callable[..., Any], group_size: int | None = None, name: str | None = None) -> None:
        self.__name__ = name or f"ranked_{callable_name(reward)}"
        self.reward, self.group_size = reward, check_group_size(group_size)
        self.__signature__ = joint_signature([reward])

    @property
    def parts(self) -> tuple[Callable[..., Any], ...]:
        """The ranked reward."""
        return (self.reward,)

    def __call__(self, completions: Sequence[Any], prompts: Sequence[Any], **kwargs: Any) -> list[Score]:
        """Return one rank, or None, per completion."""
        call = {**kwargs, "completions": completions, "prompts": prompts}
        scores = call_component(self.reward, callable_name(self.reward), len(completions), call)
        return normalise(scores, find_groups(prompts, self.group_size), "rank")


class PairwiseRanking:
    """Win rate against the other completions of the group, each pair compared in both orders.

    r_i = 1 / (n - 1) * sum_{j != i} (c(p, y_i, y_j) + 1 - c(p, y_j, y_i)) / 2, where c in [0, 1] says how much better
    the first text is than the second at prompt p; equal texts draw without being compared. Range [0, 1], mean 1/2 in
    each group; asking in both orders cancels a judge's preference for a position. A group of one row is skipped.
    Failure modes: n * (n - 1) comparisons per group; it crowns a winner among bad completions too.

    Args:
        compare: (prompt, first text, second text) -> number in [0, 1]; 1.0 when the first is better, 0.5 for a draw.
        group_size: rows per group where no trainer is calling, see `find_groups`; None by default.
        name: "pairwise_ranking" by default.

    Raises:
        ValueError: in a call: `compare` returned something outside [0, 1], or groups that can't be told apart.
    """

    def __init__(self, compare: Compare, group_size: int | None = None, name: str = "pairwise_ranking") -> None:
        self.__name__ = name
        self.compare, self.group_size = compare, check_group_size(group_size)

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
        """Return one win rate per completion, None in groups of one row. A column `plain_prompt` is what is asked."""
        texts = [completion_text(completion) for completion in completions]
        questions = kwargs.get("plain_prompt") or prompts
        rewards: dict[int, Score] = {}
        for group in find_groups(prompts, self.group_size):
            pairs = combinations(group, 2)
            rewards |= win_shares(group, {(i, j): self._points(questions[i], texts[i], texts[j]) for i, j in pairs})
        return [rewards[row] for row in range(len(texts))]
