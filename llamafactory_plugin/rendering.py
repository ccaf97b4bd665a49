"""Messages -> token ids by LLaMA-Factory's Template, exactly as its own inference renders them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Message = dict[str, str]
# Column of a row whose prompt has experiences in it: the prompt without them.
PLAIN_PROMPT = "plain_prompt"

# LLaMA-Factory's role -> the role in a prompt that reward functions see. `function` is a turn with a tool call.
TO_PROMPT_ROLE = {"user": "user", "assistant": "assistant", "observation": "tool", "function": "function"}
FROM_PROMPT_ROLE = {prompt_role: role for role, prompt_role in TO_PROMPT_ROLE.items()}


def to_messages(turns: Sequence[Message], system: str | None) -> list[Message]:
    """LLaMA-Factory's turns and system text -> one list of messages (system, user, assistant, tool, function)."""
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": TO_PROMPT_ROLE[turn["role"]], "content": turn["content"]} for turn in turns]


def from_messages(messages: Sequence[Message]) -> tuple[list[Message], str | None]:
    """The inverse of `to_messages`: turns, and the text of all system messages."""
    system = "\n".join(message["content"] for message in messages if message["role"] == "system")
    turns = [
        {"role": FROM_PROMPT_ROLE[message["role"]], "content": message["content"]}
        for message in messages
        if message["role"] != "system"
    ]
    return turns, system or None


def with_default_system(
    prompt: Sequence[Message], plain: Sequence[Message] | None, default_system: str | None
) -> Sequence[Message]:
    """A prompt into which a system message was injected, with the template's default system text behind it.

    LLaMA-Factory's templates render their default system text where a prompt has none of its own, so that an injected
    message would take its place.

    Args:
        prompt: the messages to render.
        plain: the prompt of the dataset, where something was injected.
        default_system: the template's.
    """
    if not default_system or plain is None or plain[0]["role"] == "system" or prompt[0]["role"] != "system":
        return prompt
    return [{"role": "system", "content": f"{prompt[0]['content']}\n\n{default_system}"}, *prompt[1:]]


class PromptRenderer:
    """Renders prompts with a Template and its tokenizer."""

    def __init__(self, template: Any, tokenizer: Any) -> None:
        self.template = template
        self.tokenizer = tokenizer

    def encode_row(self, row: dict[str, Any]) -> list[int]:
        """The prompt ids of a row with `prompt`, perhaps `tools`, and `plain_prompt` where something was injected."""
        prompt = with_default_system(row["prompt"], row.get(PLAIN_PROMPT), self.template.default_system)
        return self.encode(prompt, row.get("tools"))

    def encode(self, messages: Sequence[Message], tools: str | None = None) -> list[int]:
        """The prompt's token ids, up to and with the header of the assistant's turn.

        LLaMA-Factory's inference call (`chat/hf_engine.py`): the template encodes the turns and an empty answer, and
        the answer's part is left off. This brings default system text, tools, tool turns and thinking switches.
        """
        turns, system = from_messages(messages)
        answer = {"role": "assistant", "content": ""}
        return self.template.encode_oneturn(self.tokenizer, [*turns, answer], system, tools or None)[0]

    def encode_answer(self, messages: Sequence[Message], answer: str, tools: str | None = None) -> list[int]:
        """The token ids of prompt and answer, as stage rm encodes a chosen or rejected answer, stop word included."""
        turns, system = from_messages(messages)
        both = [*turns, {"role": "assistant", "content": answer}]
        prompt_ids, answer_ids = self.template.encode_oneturn(self.tokenizer, both, system, tools or None)
        end = [self.tokenizer.eos_token_id] if self.template.efficient_eos else []
        return [*prompt_ids, *answer_ids, *end]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=False)

    def stop_token_ids(self) -> list[int]:
        """Every token that ends a completion: the tokenizer's eos and the template's stop words."""
        return sorted(token for token in set(self.template.get_stop_token_ids(self.tokenizer)) if token is not None)
