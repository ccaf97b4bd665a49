"""A group of rollouts of one prompt, checked before anything is stored, and its advantages."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trl_grpo_ext.experience.records import Episode, clean_text, content_id, finite, plain_metadata

# Of the largest reward: what is nearer to the mean than this differs from it by rounding only.
_ROUNDING = 1e-12


def group_advantages(rewards: Sequence[float | None]) -> list[float | None]:
    """Return A_i = r_i - mean(r) over the rewards that are there; rows without a reward get None.

    Raises:
        ValueError: rewards so far apart that their difference is infinite.
    """
    known = [reward for reward in rewards if reward is not None]
    if not known:
        return [None] * len(rewards)
    mean = math.fsum(reward / len(known) for reward in known)
    scale = _ROUNDING * max(map(abs, known))
    found = [None if reward is None else reward - mean for reward in rewards]
    if any(advantage is not None and not math.isfinite(advantage) for advantage in found):
        raise ValueError(f"rewards from {min(known)!r} to {max(known)!r} are too far apart to subtract their mean.")
    return [0.0 if item is not None and abs(item) <= scale else item for item in found]


@dataclass(frozen=True)
class RolloutGroup:
    """The rollouts of one prompt, of any number.

    Args:
        prompt: the prompt, without anything injected; never empty.
        responses: the completions. An empty one counts in the mean and is never stored.
        rewards: one per response. None: the reward failed; such a rollout has no share in the mean and is not stored.
        metadata: goes into each stored episode.
        uid: name of this group in its run, such as "run-3/step-12/0". A group is stored once per name; without one,
            once per content (prompt, responses, rewards).
        timestamp: seconds since the epoch; now by default.

    Raises:
        TypeError: a text that is no string.
        ValueError: no rollouts, different numbers of responses and rewards, a NaN or infinite reward, bad metadata.
    """

    prompt: str
    responses: Sequence[str]
    rewards: Sequence[float | None]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    uid: str | None = None
    timestamp: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        where = "RolloutGroup"
        object.__setattr__(self, "prompt", clean_text(self.prompt, "prompt", where))
        object.__setattr__(self, "metadata", plain_metadata(self.metadata, where))
        object.__setattr__(self, "timestamp", finite(self.timestamp, "timestamp", where))
        if not self.responses or len(self.responses) != len(self.rewards):
            found = f"{len(self.responses)} responses and {len(self.rewards)} rewards"
            raise ValueError(f"{where}: there must be one reward per response and at least one of each, not {found}.")
        if not all(isinstance(response, str) for response in self.responses):
            raise TypeError(f"{where}: responses must be strings.")
        for row, reward in enumerate(self.rewards):
            if reward is not None:
                finite(reward, f"the reward of rollout {row}", where)

    @classmethod
    def from_pairs(
        cls, rollouts: Sequence[tuple[str, str]], rewards: Sequence[float | None], **others: Any
    ) -> RolloutGroup:
        """Return the group of (prompt, response) pairs.

        Raises:
            ValueError: the pairs do not share one prompt, or what the class itself refuses.
        """
        prompts = {prompt for prompt, _ in rollouts}
        if len(prompts) != 1:
            raise ValueError(f"RolloutGroup: a group has one prompt, these rollouts have {len(prompts)}.")
        return cls(prompts.pop(), [response for _, response in rollouts], list(rewards), **others)

    @property
    def key(self) -> str:
        """What makes the group the same group in a second, identical run."""
        if self.uid is not None:
            return content_id("group-uid", self.uid)
        return content_id("group", self.prompt, repr(list(self.responses)), repr(self.floats()))

    def floats(self) -> list[float | None]:
        """Return the rewards as floats."""
        return [None if reward is None else float(reward) for reward in self.rewards]

    def episodes(self, threshold: float) -> list[Episode]:
        """Return the episodes whose advantage is strictly above the threshold."""
        rewards = self.floats()
        return [
            Episode(self.prompt, response, advantage, self.timestamp, self.metadata, reward)
            for response, advantage, reward in zip(self.responses, group_advantages(rewards), rewards, strict=True)
            if advantage is not None and advantage > threshold and response.strip()
        ]
