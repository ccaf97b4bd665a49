"""An engine with the interface of vLLM 0.10.2 that TRL 0.24 calls, and transformers below: no GPU, no vLLM.

What it accepts is compared with vLLM's own source in test_vllm_interface.py.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

# Of `LLM.__init__` and, by its keyword arguments, of `EngineArgs`.
ENGINE_OPTIONS = {
    "model",
    "tensor_parallel_size",
    "gpu_memory_utilization",
    "max_num_seqs",
    "max_model_len",
    "distributed_executor_backend",
    "seed",
    "max_num_batched_tokens",
    "model_impl",
    "enable_sleep_mode",
    "logprobs_mode",
}
SAMPLING_OPTIONS = {
    "n",
    "repetition_penalty",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "truncate_prompt_tokens",
    "guided_decoding",
    "logprobs",
    "stop_token_ids",
}
GENERATE_OPTIONS = {"prompts", "sampling_params", "use_tqdm"}


class SamplingParams:
    """Takes what vLLM's takes."""

    def __init__(self, **options: Any) -> None:
        assert set(options) <= SAMPLING_OPTIONS, set(options) - SAMPLING_OPTIONS
        self.__dict__.update(options)


def sample(model: Any, prompt_ids: list[int], tokens: int, stops: list[int]) -> tuple[list[int], list[float]]:
    """One completion at temperature 1, with the log-probability of each token."""
    ids, logps = list(prompt_ids), []
    while len(ids) < len(prompt_ids) + tokens:
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
        ids.append(int(torch.multinomial(scores.exp(), 1)))
        logps.append(float(scores[ids[-1]]))
        if ids[-1] in stops:
            break
    return ids[len(prompt_ids) :], logps


class Weights:
    """Where TRL puts the policy's tensors: every name and shape must be one of the checkpoint's."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.loads: list[dict[str, torch.Tensor]] = []

    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        known = dict(self.model.named_parameters())
        for name, tensor in weights:
            assert known[name].shape == tensor.shape, name
            known[name].data.copy_(tensor)
            if not self.loads or name in self.loads[-1]:
                self.loads.append({})
            self.loads[-1][name] = tensor.detach().clone()


class Engine:
    """In the place of `vllm.LLM`.

    Attributes:
        made: the engines of this process.
        prompts: what `generate` was given, in order.
    """

    made: list[Engine] = []  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        assert set(options) <= ENGINE_OPTIONS, set(options) - ENGINE_OPTIONS
        self.options, self.prompts, self.sampling = options, [], []
        self.weights = Weights(options["model"])
        runner = SimpleNamespace(model=self.weights)
        executor = SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        self.llm_engine = SimpleNamespace(model_executor=executor)
        self.resets = 0
        self.made.append(self)

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    def generate(self, prompts: Any, sampling_params: Any, use_tqdm: bool) -> list[Any]:
        self.prompts += prompts
        self.sampling.append(sampling_params)
        outputs = []
        for prompt in prompts:
            given = prompt["prompt_token_ids"]
            ids, logps = sample(self.weights.model, given, sampling_params.max_tokens, sampling_params.stop_token_ids)
            entries = [{token: SimpleNamespace(logprob=logp)} for token, logp in zip(ids, logps, strict=True)]
            completion = SimpleNamespace(token_ids=ids, logprobs=entries)
            outputs.append(SimpleNamespace(prompt_token_ids=given, outputs=[completion]))
        return outputs
