"""Small tensor-free helpers of the trainer's rollouts: fixed prompt ids, several stop tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchEncoding


class FixedEncoding:
    """Stands for the tokenizer during one rollout and returns the ids that the Template rendered.

    TRL 0.24 tokenizes the prompts' text again, and would cut it at `model_max_length`; text pieces that the Template
    encoded one by one need not come out as the same ids. Everything else is the tokenizer's.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[Sequence[int]]) -> None:
        self._tokenizer = tokenizer
        self._prompt_ids = prompt_ids

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *, text: Sequence[str], return_tensors: str | None = None, **_: Any) -> BatchEncoding:
        if len(text) != len(self._prompt_ids):
            raise RuntimeError(f"TRL asked for {len(text)} encodings of {len(self._prompt_ids)} rendered prompts")
        if return_tensors is None:
            return BatchEncoding({"input_ids": [list(ids) for ids in self._prompt_ids]})
        return left_pad(self._prompt_ids, self._tokenizer.pad_token_id)


def left_pad(sequences: Sequence[Sequence[int]], pad_token_id: int) -> BatchEncoding:
    """Token ids of unequal length -> `input_ids` and `attention_mask`, both (B, longest), padded on the left."""
    width = max(len(ids) for ids in sequences)
    input_ids = torch.full((len(sequences), width), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for row, ids in enumerate(sequences):
        input_ids[row, width - len(ids) :] = torch.tensor(ids, dtype=torch.long)
        attention_mask[row, width - len(ids) :] = 1
    return BatchEncoding({"input_ids": input_ids, "attention_mask": attention_mask})


def cut_after_stop(completion_ids: Sequence[int], stop_token_ids: frozenset[int]) -> list[int]:
    """The completion up to and with its first stop token; what follows is padding."""
    for index, token in enumerate(completion_ids):
        if token in stop_token_ids:
            return list(completion_ids[: index + 1])
    return list(completion_ids)


class StopToken(int):
    """The eos id, equal to every stop token.

    TRL 0.24 asks `ids[-1] not in [self.eos_token_id, self.pad_token_id]` to tell a completion that was cut off from one
    that ended, and knows a single eos. In tensor arithmetic it is the plain eos id.
    """

    others: frozenset[int]

    def __new__(cls, eos_token_id: int, stop_token_ids: Sequence[int]) -> StopToken:
        stop = super().__new__(cls, eos_token_id)
        stop.others = frozenset(stop_token_ids)
        return stop

    def __eq__(self, other: object) -> bool:
        return other in self.others or int(self) == other

    def __hash__(self) -> int:
        return int.__hash__(self)
