"""What `grpo_use_vllm` needs, checked before the model loads."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from llamafactory_plugin.errors import UsageError

# TRL 0.24's extra pins it; newer ones do not have the interface that TRL 0.24 calls.
TRLS_VLLM = "0.10."
ENVIRONMENT = "`trl-grpo-ext[llamafactory,vllm]` and `transformers<5` in an environment of its own"


def check_vllm(run: Any) -> None:
    """Refuse rollouts by vLLM where they cannot work.

    Raises:
        UsageError: vLLM is not there or not for this transformers; no accelerator; quantised or resized weights, which
            TRL cannot copy into the engine.
    """
    if not run.finetuning_args.grpo_use_vllm:
        return
    _check_packages()
    if run.training_args.device.type == "cpu":
        raise UsageError(
            "grpo_use_vllm: vLLM through TRL needs an accelerator, and this run is on the CPU; remove grpo_use_vllm."
        )
    if run.model_args.quantization_bit is not None:
        raise UsageError(
            "quantization_bit with grpo_use_vllm: TRL copies the policy into vLLM tensor by tensor, and packed weights do "
            "not fit there; remove one of them."
        )
    if run.model_args.resize_vocab:
        raise UsageError(
            "resize_vocab with grpo_use_vllm: vLLM loads the model with the vocabulary of its folder; save the resized "
            "model first (`llamafactory-cli export`), or remove one of them."
        )


def _check_packages() -> None:
    from transformers import PreTrainedTokenizerBase
    from trl.import_utils import is_vllm_available

    if not is_vllm_available():
        raise UsageError(
            "grpo_use_vllm: vLLM is not installed; TRL 0.24 works with vllm 0.10.2, which needs torch 2.8: install "
            f"{ENVIRONMENT}, or remove grpo_use_vllm."
        )
    version = metadata.version("vllm")
    if not version.startswith(TRLS_VLLM):
        raise UsageError(
            f"grpo_use_vllm: vllm {version} is installed, and TRL 0.24 calls 0.10.2's; install {ENVIRONMENT}."
        )
    # vLLM 0.10 reads this of every tokenizer; transformers 5 has taken it out.
    if not hasattr(PreTrainedTokenizerBase, "all_special_tokens_extended"):
        raise UsageError(
            f"grpo_use_vllm: vllm {version} does not work with transformers 5; install {ENVIRONMENT}: "
            "`pip install 'transformers>=4.57.1,<5'`."
        )
