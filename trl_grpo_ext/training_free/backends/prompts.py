"""How messages become a prompt's tokens, and which prompts make a batch. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trl_grpo_ext.training_free.protocol import ChatRequest

BETWEEN_MESSAGES = "\n\n"


@dataclass(frozen=True)
class Encoded:
    """A request with the tokens of its prompt.

    Args:
        index: of the request.
        request: what is asked.
        ids: of the prompt.
        limit: tokens of the completion, at most.
    """

    index: int
    request: ChatRequest
    ids: tuple[int, ...]
    limit: int


def prompt_ids(tokenizer: Any, request: ChatRequest, template_kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the tokens of a request: by the chat template, or the texts with an empty line between two.

    Args:
        tokenizer: of transformers.
        request: what is asked.
        template_kwargs: given to the chat template, such as {"enable_thinking": False}.
    """
    if not tokenizer.chat_template:
        text = BETWEEN_MESSAGES.join(content for _, content in request.messages)
        return tuple(tokenizer(text)["input_ids"])
    text = tokenizer.apply_chat_template(
        request.as_messages(), tokenize=False, add_generation_prompt=True, **template_kwargs
    )
    # The template has put the special tokens.
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def batches(encoded: Sequence[Encoded], token_budget: int) -> Iterator[list[Encoded]]:
    """Yield batches of requests of similar length, those with equal prompts in a row.

    Args:
        encoded: the requests.
        token_budget: rows times (longest prompt plus longest completion) of a batch, at most; one row may exceed it.
    """
    batch: list[Encoded] = []
    longest = 0
    for item in sorted(encoded, key=lambda item: (item.limit, len(item.ids), item.ids, item.index)):
        longest = max(longest, len(item.ids))
        if batch and (len(batch) + 1) * (longest + item.limit) > token_budget:
            yield batch
            batch, longest = [], len(item.ids)
        batch.append(item)
    if batch:
        yield batch
