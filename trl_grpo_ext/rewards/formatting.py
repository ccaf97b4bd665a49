"""Does the completion have the required shape of tags?"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trl_grpo_ext.rewards.named import NamedReward
from trl_grpo_ext.rewards.text import Completion, completion_text


def _has_content(text: str) -> bool:
    # Zero-width characters are neither white space nor printable.
    return any(character.isprintable() and not character.isspace() for character in text)


def _split_at_tags(text: str, tags: Sequence[str]) -> tuple[list[str], list[str]] | None:
    """Return (texts inside the tags, texts outside), or None when a tag is missing, repeated or out of order."""
    inside, outside = [], []
    for tag in tags:
        if text.count(f"<{tag}>") != 1 or text.count(f"</{tag}>") != 1:
            return None
        before, _, rest = text.partition(f"<{tag}>")
        content, closed, text = rest.partition(f"</{tag}>")
        if not closed:
            return None
        outside.append(before)
        inside.append(content)
    return inside, [*outside, text]


@dataclass(frozen=True, kw_only=True)
class TagFormat(NamedReward):
    """1.0 where the completion has every required tag, once, in order, closed and not empty, else 0.0.

    Range {0, 1}. `<think></think><answer></answer>` is 0. Failure modes: a tag quoted in the text counts as that tag;
    what the tags hold is not judged (one word of reasoning is enough).

    Args:
        tags: the names of the tags in their order; ("think", "answer") by default.
        allow_outside: whether text other than white space may stand outside the tags; False by default. For
            `<think>...</think> the answer` use `tags=("think",), allow_outside=True`.
        opened_by_prompt: True when the chat template ends the prompt with the first opening tag, as those of reasoning
            models do; then the completion starts inside it. False by default.
        name: `__name__`, under which TRL logs the reward.

    Raises:
        ValueError: `tags` is empty, repeats a tag, is one string, or holds something that is not a tag's name.
    """

    tags: tuple[str, ...] = ("think", "answer")
    allow_outside: bool = False
    opened_by_prompt: bool = False
    name: str = "tag_format"

    def __post_init__(self) -> None:
        names = () if isinstance(self.tags, str) else tuple(self.tags)
        valid = all(isinstance(tag, str) and re.fullmatch(r"[A-Za-z_][\w.-]*", tag) for tag in names)
        if not names or not valid or len(set(names)) < len(names):
            raise ValueError(
                f"TagFormat: tags must be a list of different tag names without brackets, such as ['think', "
                f"'answer'], not {self.tags!r}."
            )
        object.__setattr__(self, "tags", names)

    def matches(self, text: str) -> bool:
        """Return whether a completion's text has the format."""
        parts = _split_at_tags(f"<{self.tags[0]}>" * self.opened_by_prompt + text, self.tags)
        if parts is None:
            return False
        inside, outside = parts
        return all(map(_has_content, inside)) and (self.allow_outside or not any(map(str.strip, outside)))

    def __call__(self, completions: Sequence[Completion], **kwargs: Any) -> list[float]:
        """Return one reward per completion; see the class."""
        return [float(self.matches(completion_text(completion))) for completion in completions]


tag_format = TagFormat()
