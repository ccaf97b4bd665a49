"""vLLM as a library, in this process. A vLLM server (`vllm serve`) is an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trl_grpo_ext.training_free.backends.prompts import prompt_ids
from trl_grpo_ext.training_free.backends.seeds import sampling_seed
from trl_grpo_ext.training_free.protocol import BackendError, ChatReply, ChatRequest, OnReply


class VLLMBackend:
    """Answers requests with vLLM's own scheduler and prefix cache, a slice of them at a time.

    Each request is sampled with a seed of its own. vLLM does not promise the same text in another batch.

    Args:
        model: a directory, or an engine (`vllm.LLM`) that is already there.
        slice_size: requests given to the engine at a time; what `on_reply` raises takes effect after a slice.
        chat_template_kwargs: given to the chat template, such as {"enable_thinking": False}.
        label: stands for the model in `name`.
        engine_options: for `vllm.LLM`, such as gpu_memory_utilization; only with a directory.

    Raises:
        ImportError: vLLM is not installed.
        ValueError: an argument that cannot work.
    """

    def __init__(
        self,
        model: Any,
        *,
        slice_size: int = 256,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        label: str | None = None,
        **engine_options: Any,
    ) -> None:
        if slice_size < 1:
            raise ValueError(f"slice_size must be at least 1, not {slice_size}.")
        vllm = _vllm()
        if isinstance(model, vllm.LLM) and engine_options:
            raise ValueError(f"{', '.join(sorted(engine_options))}: options of an engine that is already there.")
        self._engine = model if isinstance(model, vllm.LLM) else vllm.LLM(model=str(model), **engine_options)
        self._sampling, self._tokenizer = vllm.SamplingParams, self._engine.get_tokenizer()
        self._limit = int(self._engine.llm_engine.model_config.max_model_len)
        self.slice_size, self.template_kwargs = slice_size, dict(chat_template_kwargs or {})
        self.name = f"vllm:{label or self._engine.llm_engine.model_config.model}"
        if self.template_kwargs:
            self.name += ":" + json.dumps(self.template_kwargs, sort_keys=True)

    def complete(self, requests: Sequence[ChatRequest], on_reply: OnReply) -> None:
        """Answer all requests; see `protocol.Backend`. Prompts that leave no room for an answer are errors."""
        for start in range(0, len(requests), self.slice_size):
            found = dict(self._fitting(requests, range(start, min(start + self.slice_size, len(requests))), on_reply))
            prompts = [{"prompt_token_ids": list(ids)} for ids in found.values()]
            if not prompts:
                continue
            parameters = [self._parameters(requests[index], len(found[index])) for index in found]
            outputs = self._engine.generate(prompts, sampling_params=parameters, use_tqdm=False)
            for (index, ids), output in zip(found.items(), outputs, strict=True):
                on_reply(index, _reply(len(ids), output.outputs[0]))

    def _fitting(
        self, requests: Sequence[ChatRequest], indices: range, on_reply: OnReply
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        for index in indices:
            try:
                ids = prompt_ids(self._tokenizer, requests[index], self.template_kwargs)
            except Exception as error:
                # Templates raise what they like, for roles in an order that they do not take.
                refused = f"the chat template refuses the messages: {error}"
            else:
                if 0 < len(ids) < self._limit:
                    yield index, ids
                    continue
                refused = f"the prompt has {len(ids)} tokens, and max_model_len is {self._limit}: shorten the prompt."
            on_reply(index, BackendError(refused, retryable=False))

    def _parameters(self, request: ChatRequest, prompt_tokens: int) -> Any:
        return self._sampling(
            temperature=request.temperature,
            max_tokens=min(request.max_tokens, self._limit - prompt_tokens),
            seed=sampling_seed(request),
        )


def _reply(prompt_tokens: int, output: Any) -> ChatReply:
    finish = "length" if output.finish_reason == "length" else "stop"
    return ChatReply(output.text, prompt_tokens, len(output.token_ids), finish)


def _vllm() -> Any:
    try:
        import vllm
    except ImportError:
        raise ImportError(
            "VLLMBackend needs vLLM: pip install 'trl-grpo-ext[vllm]' (see docs/install.md), or give a running "
            "`vllm serve` to OpenAIBackend.",
            name="vllm",
        ) from None
    return vllm
