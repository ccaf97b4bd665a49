"""Self-consistency: 1.0 for the completions whose answer is the majority's. No label is read."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from trl_grpo_ext.rewards.calling_trainer import in_evaluation
from trl_grpo_ext.rewards.composition.groups import Score, check_group_size, find_groups
from trl_grpo_ext.rewards.label_free.answers import (
    Equality,
    Extractor,
    equivalence_classes,
    extract_answer,
    is_refusal,
    same_answer,
)
from trl_grpo_ext.rewards.label_free.mode_check import ModeWindow
from trl_grpo_ext.rewards.text import completion_text


def _check_share(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"self_consistency: {name} must be a share between 0 and 1, not {value!r}.")


class SelfConsistencyReward:
    """Majority vote over extracted answers: r_i = 1 if a_i is in the largest class of equal answers, else 0.

    TTRL (arXiv 2504.16084) and SRT (arXiv 2505.21444) train on this signal; SRT also shows its failure, a sudden
    collapse into one constant, consistent, wrong answer. What is done about it here: a group is skipped (None for
    each of its rows, so it teaches nothing) when

    * no row has an answer, or every answer is a refusal: refusals never win, and score 0 in a group that counts;
    * the agreement, votes of the largest class / rows of the group, is below `min_agreement`;
    * it is above `max_agreement`: (nearly) unanimous groups carry no information but inflate the logged reward;
    * the margin, (votes of the first - votes of the second class) / rows, is below `min_margin`, or 0 (a tie);
    * the winner holds more than `max_mode_share` of the last `mode_window` different prompts.

    Range {0, 1}, or None. Failure modes: it rewards agreement, not truth: where the model is wrong more often than
    right it learns the wrong answer more firmly, and none of the rules above sees that; only labelled canaries do
    (`CollapseGuard`). The mode check presumes that answers differ between prompts: for yes/no questions switch it off.

    Instances can be pickled, the window included, where their functions can. The window belongs to the process: ranks
    keep their own, a resumed run begins an empty one, and a call with a smaller `trainer_state.global_step` than the
    one before (another run) empties it. Evaluation is judged by it, and leaves it as it is. Each call must hold whole
    groups.

    Args:
        extract: text -> answer, or None; `extract_answer` by default.
        equal: whether two answers are the same; `same_answer` by default.
        refusal: (text, answer) -> whether the completion declines to answer; `is_refusal` by default.
        min_agreement: 0.25 by default.
        max_agreement: 0.95 by default; 1.0 keeps unanimous groups.
        min_margin: 0.0 by default; a tie is skipped in any case.
        mode_window: how many different prompts the mode check looks back; 64 by default, 0 switches it off.
        max_mode_share: 0.5 by default.
        min_mode_prompts: the mode check begins with this many different prompts; 8 by default.
        group_size: rows per group where no trainer is calling, see `find_groups`; None by default.
        name: "self_consistency" by default.

    Attributes:
        last_metrics: the figures of the last call, which are also logged where TRL passes `log_metric`:
            `<name>/agreement` (mean over groups, skipped ones included), `<name>/skipped_groups` and
            `<name>/constant_groups` (shares; the latter are those of the mode check).
        pseudo_signal: the last call's mean agreement, NaN before it: what `CollapseGuard` watches.

    Raises:
        ValueError: a share outside [0, 1], min_agreement above max_agreement, or a negative or fractional count; in a
            call: groups that can't be told apart (see `find_groups`).
    """

    def __init__(
        self,
        extract: Extractor = extract_answer,
        equal: Equality = same_answer,
        refusal: Callable[[str, str | None], bool] = is_refusal,
        min_agreement: float = 0.25,
        max_agreement: float = 0.95,
        min_margin: float = 0.0,
        mode_window: int = 64,
        max_mode_share: float = 0.5,
        min_mode_prompts: int = 8,
        group_size: int | None = None,
        name: str = "self_consistency",
    ) -> None:
        shares = {"min_agreement": min_agreement, "max_agreement": max_agreement, "min_margin": min_margin}
        for argument, share in {**shares, "max_mode_share": max_mode_share}.items():
            _check_share(argument, share)
        if min_agreement > max_agreement:
            raise ValueError(
                f"self_consistency: min_agreement must not exceed max_agreement, but {min_agreement} > {max_agreement}."
            )
        for argument, count in {"mode_window": mode_window, "min_mode_prompts": min_mode_prompts}.items():
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise ValueError(f"self_consistency: {argument} must be a whole number from 0, not {count!r}.")
        self.__name__ = name
        self.extract, self.equal, self.refusal = extract, equal, refusal
        self.min_agreement, self.max_agreement, self.min_margin = min_agreement, max_agreement, min_margin
        self.max_mode_share, self.group_size = max_mode_share, check_group_size(group_size)
        self.last_metrics: dict[str, float] = {}
        self.pseudo_signal = math.nan
        self._window = ModeWindow(mode_window, min_mode_prompts)
        self._step = 0

    def answers(self, completions: Sequence[Any]) -> list[str | None]:
        """Return the answer that each completion votes for; None for a refusal and where there is none."""
        texts = [completion_text(completion) for completion in completions]
        found = [self.extract(text) for text in texts]
        return [None if self.refusal(text, answer) else answer for text, answer in zip(texts, found, strict=True)]

    def _counts(self, classes: Sequence[Sequence[int]], rows: int) -> bool:
        """Tell whether the vote of one group is decided, and neither too weak nor too strong."""
        if not classes:
            return False
        votes, second = len(classes[0]), len(classes[1]) if len(classes) > 1 else 0
        margin = (votes - second) / rows
        return self.min_agreement <= votes / rows <= self.max_agreement and margin > 0 and margin >= self.min_margin

    def _new_run(self, trainer_state: Any) -> None:
        step = getattr(trainer_state, "global_step", self._step)
        if step < self._step:
            self._window.clear()
        self._step = step

    def __call__(self, completions: Sequence[Any], prompts: Sequence[Any], **kwargs: Any) -> list[Score]:
        """Return 1.0, 0.0 or None per completion. A column `plain_prompt` stands in for the prompt in the mode check."""
        self._new_run(kwargs.get("trainer_state"))
        answers = self.answers(completions)
        groups = find_groups(prompts, self.group_size)
        names = kwargs.get("plain_prompt") or prompts
        classes = [equivalence_classes([answers[row] for row in group], self.equal) for group in groups]
        winners = [
            answers[group[found[0][0]]] if found else None for group, found in zip(groups, classes, strict=True)
        ]
        learning = not in_evaluation()
        for group, winner in zip(groups, winners, strict=True):
            if winner is not None and self._window.size and learning:
                self._window.add(repr(names[group.start]), winner)
        # Every winner of the call is in the window before the first is judged: the order of the groups can't matter.
        constant = [
            winner is not None and self._window.share(winner, self.equal) > self.max_mode_share for winner in winners
        ]
        rewards: list[Score] = [None] * len(completions)
        for group, found, repeated in zip(groups, classes, constant, strict=True):
            if self._counts(found, len(group)) and not repeated:
                for place, row in enumerate(group):
                    rewards[row] = float(place in found[0])
        self._record(groups, classes, constant, rewards, kwargs.get("log_metric"))
        return rewards

    def _record(
        self,
        groups: Sequence[range],
        classes: Sequence[Sequence[Sequence[int]]],
        constant: Sequence[bool],
        rewards: Sequence[Score],
        log_metric: Callable[[str, float], None] | None,
    ) -> None:
        if not groups:
            return
        agreement = [
            len(found[0]) / len(group) if found else 0.0 for group, found in zip(groups, classes, strict=True)
        ]
        self.pseudo_signal = fmean(agreement)
        self.last_metrics = {
            f"{self.__name__}/agreement": self.pseudo_signal,
            f"{self.__name__}/skipped_groups": fmean(rewards[group.start] is None for group in groups),
            f"{self.__name__}/constant_groups": fmean(constant),
        }
        if log_metric is not None:
            for name, value in self.last_metrics.items():
                log_metric(name, value)
