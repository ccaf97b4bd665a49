"""One reward call of TRL, in the forms in which reward conventions want its rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trl_grpo_ext._suggest import did_you_mean
from trl_grpo_ext.rewards.text import Completion, completion_text

# What TRL passes beside the columns and what is not one value per row.
CONTEXT = frozenset({"trainer_state", "log_extra", "log_metric"})


def _message_text(message: Mapping[str, Any]) -> str:
    return completion_text([{**message, "role": "assistant"}])


def last_user_text(prompt: Completion) -> str:
    """Return what the user asked: a plain prompt itself, or the text of the last user message ("" without one)."""
    if isinstance(prompt, str):
        return prompt
    asked = [message for message in prompt if message.get("role") == "user"]
    return _message_text(asked[-1]) if asked else ""


def prompt_text(prompt: Completion) -> str:
    """Return the whole prompt as text: a plain prompt itself, or each message's text with a newline after each."""
    return prompt if isinstance(prompt, str) else "".join(_message_text(message) + "\n" for message in prompt)


@dataclass(frozen=True)
class RewardBatch:
    """The arguments of one reward call.

    Attributes:
        name: the name of the reward, for messages.
        prompts: one string or message list per row, without injected text: the column `plain_prompt` where it holds
            one, else TRL's `prompts`.
        completions: one string or message list per row.
        completion_ids: one list of token ids per row, or None.
        columns: the dataset's columns, each one value per row.
        context: `trainer_state`, `log_extra` and `log_metric`, those that TRL passed.
    """

    name: str
    prompts: Sequence[Any]
    completions: Sequence[Any]
    completion_ids: Sequence[Any] | None
    columns: Mapping[str, Sequence[Any]]
    context: Mapping[str, Any]

    @classmethod
    def from_call(
        cls,
        name: str,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Any] | None,
        keywords: Mapping[str, Any],
    ) -> "RewardBatch":
        """Sort the keywords of a reward call into columns and context."""
        columns = {key: value for key, value in keywords.items() if key not in CONTEXT}
        context = {key: value for key, value in keywords.items() if key in CONTEXT}
        # A data set fills a column with None in the rows that had none.
        if columns.get("plain_prompt") is not None:
            both = zip(columns["plain_prompt"], prompts, strict=True)
            prompts = [prompt if plain is None else plain for plain, prompt in both]
        return cls(name, prompts, completions, completion_ids, columns, context)

    @property
    def size(self) -> int:
        """The number of rows."""
        return len(self.completions)

    def responses(self) -> list[str]:
        """Return the text of each completion, see `text.completion_text`."""
        return [completion_text(completion) for completion in self.completions]

    def queries(self) -> list[str]:
        """Return what the user asked in each row, see `last_user_text`."""
        return [last_user_text(prompt) for prompt in self.prompts]

    def prompt_texts(self) -> list[str]:
        """Return each row's whole prompt, see `prompt_text`."""
        return [prompt_text(prompt) for prompt in self.prompts]

    def column(self, column: str) -> Sequence[Any]:
        """Return a column.

        Raises:
            ValueError: the dataset has no such column.
        """
        if column not in self.columns:
            raise ValueError(
                f"Reward {self.name!r} needs the dataset column {column!r}, which it was not given"
                f"{did_you_mean(column, self.columns) or '.'} Columns: {', '.join(sorted(self.columns)) or 'none'}. "
                "Rename a column of the dataset, or keep the column when the dataset is prepared."
            )
        return self.columns[column]

    def optional_column(self, column: str, default: Any = None) -> Sequence[Any]:
        """Return a column, or `default` for each row when the dataset has no such column."""
        return self.columns.get(column, [default] * self.size)
