"""A causal language model of transformers, as an object or a directory, in this process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from trl_grpo_ext.training_free.backends.prefill import can_share, shared_cache
from trl_grpo_ext.training_free.backends.prompts import Encoded, batches, prompt_ids
from trl_grpo_ext.training_free.backends.sampling import RequestSampler, RowLimits
from trl_grpo_ext.training_free.protocol import BackendError, ChatReply, ChatRequest, OnReply

_SAMPLED_WEIGHTS = 64


class TransformersBackend:
    """Answers requests with a model in this process, in batches, each distinct prompt of a batch encoded once.

    Requests are sampled from softmax(logits / temperature), without any other setting of the model's generation
    config. The random numbers of a request come from its seed and messages alone: they are the same in any batch and
    on any device. Logits are not, in their last bits (padding and batch size change the order of sums), so a text is
    the same in any batch but where a random number falls within that rounding of a boundary between two tokens, which
    is rare in float32 and not in bfloat16; batch_tokens=1 makes every request a batch of its own.

    A prompt that leaves no room in the model's positions is an error; a `max_tokens` beyond them is cut down. A batch
    that does not fit into a GPU's memory is halved.

    Args:
        model: a model of transformers or PEFT, or a directory that holds one.
        tokenizer: of the model; None loads it from the directory.
        batch_tokens: rows times (prompt plus completion tokens) of a batch, at most.
        device: where a model from a directory goes; None: a GPU if there is one.
        chat_template_kwargs: given to the chat template, such as {"enable_thinking": False}.

    Raises:
        ValueError: a model object without its tokenizer, or a budget below 1.
        FileNotFoundError: no such directory.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        batch_tokens: int = 16384,
        device: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, not {batch_tokens}.")
        self.model, self.tokenizer = _loaded(model, tokenizer, device)
        self.batch_tokens, self.template_kwargs = batch_tokens, dict(chat_template_kwargs or {})
        self.name = _name(self.model, self.tokenizer, self.template_kwargs)
        self._stop = _stop_tokens(self.model, self.tokenizer)
        self._shares = can_share(self.model)

    def complete(self, requests: Sequence[ChatRequest], on_reply: OnReply) -> None:
        """Answer all requests, batch by batch; see `protocol.Backend`. What is raised ends it after the batch."""
        encoded = []
        for index, request in enumerate(requests):
            item = self._encoded(index, request)
            if isinstance(item, BackendError):
                on_reply(index, item)
            else:
                encoded.append(item)
        for batch in batches(encoded, self.batch_tokens):
            for item, reply in zip(batch, self._answers_in_memory(batch), strict=True):
                on_reply(item.index, reply)

    def prompt_ids(self, request: ChatRequest) -> tuple[int, ...]:
        """Return the tokens of a request's messages; a subclass may render them otherwise, and then names itself so."""
        return prompt_ids(self.tokenizer, request, self.template_kwargs)

    def _encoded(self, index: int, request: ChatRequest) -> Encoded | BackendError:
        try:
            ids = self.prompt_ids(request)
        except Exception as error:
            # Templates raise what they like, for roles in an order that they do not take.
            return BackendError(f"the chat template refuses the messages: {error}", retryable=False)
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        room = request.max_tokens if positions is None else positions - len(ids)
        if not ids or room < 1:
            return BackendError(
                f"the prompt has {len(ids)} tokens, and the model {positions} positions: shorten the prompt, or the "
                "lessons in it.",
                retryable=False,
            )
        return Encoded(index, request, ids, min(request.max_tokens, room))

    def _answers_in_memory(self, batch: Sequence[Encoded]) -> list[ChatReply | BackendError]:
        """The answers; of a batch that does not fit into memory, those of its halves."""
        try:
            return [*self._answers(batch)]
        except torch.cuda.OutOfMemoryError:
            if len(batch) == 1:
                return [BackendError("one request alone does not fit into the GPU's memory.", retryable=False)]
        middle = len(batch) // 2
        return [*self._answers_in_memory(batch[:middle]), *self._answers_in_memory(batch[middle:])]

    @torch.no_grad()
    def _answers(self, batch: Sequence[Encoded]) -> list[ChatReply]:
        device, width = self.model.device, max(len(item.ids) for item in batch)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else (self._stop or [0])[0]
        ids = torch.tensor([[pad] * (width - len(item.ids)) + list(item.ids) for item in batch], device=device)
        mask = torch.tensor([[0] * (width - len(item.ids)) + [1] * len(item.ids) for item in batch], device=device)
        limits = torch.tensor([item.limit for item in batch], device=device)
        config = GenerationConfig(
            do_sample=False, max_new_tokens=int(limits.max()), eos_token_id=self._stop or None, pad_token_id=pad
        )
        with _generating(self.model, config):
            cache = shared_cache(self.model, ids, mask) if self._shares else None
            found = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=[RequestSampler([item.request for item in batch], width, device)],
                stopping_criteria=[RowLimits(limits, width)],
                **({} if cache is None else {"past_key_values": cache}),
            )
        return [self._reply(item, row) for item, row in zip(batch, found[:, width:].tolist(), strict=True)]

    def _reply(self, item: Encoded, tokens: list[int]) -> ChatReply:
        tokens = tokens[: item.limit]
        end = next((place for place, token in enumerate(tokens) if token in self._stop), None)
        said = tokens if end is None else tokens[:end]
        text = self.tokenizer.decode(said, skip_special_tokens=True)
        count = len(tokens) if end is None else end + 1
        return ChatReply(text, len(item.ids), count, "length" if end is None else "stop")


def _loaded(model: Any, tokenizer: Any, device: str | None) -> tuple[Any, Any]:
    if not isinstance(model, str | Path):
        if tokenizer is None:
            raise ValueError("tokenizer is missing: a model object needs its tokenizer beside it.")
        return model, tokenizer
    if not Path(model).is_dir():
        raise FileNotFoundError(f"model {str(model)!r} is no directory; give one that holds a model of transformers.")
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    return loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), tokenizer


def _name(model: Any, tokenizer: Any, template_kwargs: Mapping[str, Any]) -> str:
    """Names the weights and what the tokenizer makes of messages, not the folder: it may move."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        flat = weight.detach().reshape(-1)
        sampled = [] if weight.is_meta else flat[:: max(1, len(flat) // _SAMPLED_WEIGHTS)].float().cpu().tolist()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {sampled}".encode())
    digest.update(json.dumps([tokenizer.chat_template, len(tokenizer), template_kwargs], sort_keys=True).encode())
    return f"transformers:{model.config.model_type}:{digest.hexdigest()[:16]}"


def _stop_tokens(model: Any, tokenizer: Any) -> list[int]:
    config = getattr(model, "generation_config", None)
    found = getattr(config, "eos_token_id", None)
    tokens = [*(found if isinstance(found, list | tuple) else [found]), tokenizer.eos_token_id]
    return sorted({int(token) for token in tokens if token is not None})


@contextmanager
def _generating(model: Any, config: Any) -> Iterator[None]:
    """In evaluation mode, and without the model's own generation config, whose settings `generate` would mix in."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    training, theirs = model.training, bare.generation_config
    model.eval()
    bare.generation_config = config
    try:
        yield
    finally:
        bare.generation_config = theirs
        model.train(training)
