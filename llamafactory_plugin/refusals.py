"""Combinations that stage grpo refuses before the model loads, one sentence each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llamafactory_plugin.errors import UsageError
from llamafactory_plugin.presets import needs_reference

Condition = Callable[[Any], Any]


def _asks(run: Any, name: str) -> bool:
    return getattr(run.finetuning_args, name) is not None


def _has_ref_model(run: Any) -> bool:
    finetuning = run.finetuning_args
    return needs_reference(finetuning) and (finetuning.finetuning_type != "lora" or finetuning.ref_model is not None)


def _has_self_certainty(run: Any) -> bool:
    return "self_certainty" in (run.finetuning_args.reward_funcs or [])


def _loads_reward_model(run: Any) -> bool:
    return _asks(run, "reward_model") and run.finetuning_args.reward_model_type == "full"


def _shards_weights(run: Any) -> bool:
    from transformers.integrations import is_deepspeed_zero3_enabled

    return bool(run.training_args.fsdp) or is_deepspeed_zero3_enabled()


REFUSALS: list[tuple[Condition, str]] = [
    (
        lambda run: run.data_args.streaming,
        "streaming: GRPO groups need a dataset of known length; set streaming: false and limit the set by max_samples.",
    ),
    (
        lambda run: run.data_args.packing or run.data_args.neat_packing,
        "packing: GRPO trains on one prompt and its completions, there is nothing to pack; remove it.",
    ),
    (
        lambda run: run.model_args.use_unsloth,
        "use_unsloth: Unsloth replaces TRL's trainer by its own; set use_unsloth: false.",
    ),
    (
        lambda run: run.model_args.shift_attn,
        "shift_attn: shifted sparse attention does not work with cached generation; set shift_attn: false.",
    ),
    (
        lambda run: run.model_args.mixture_of_depths is not None,
        "mixture_of_depths: such layers do not work with cached generation; remove it.",
    ),
    (
        lambda run: getattr(run.model_args, "use_kt", False),
        "use_kt: KTransformers trains stage sft only; set use_kt: false.",
    ),
    (
        lambda run: getattr(run.finetuning_args, "use_mca", False),
        "USE_MCA: Megatron-Core training has no stage grpo; unset USE_MCA.",
    ),
    (
        lambda run: getattr(run.finetuning_args, "use_hyper_parallel", False),
        "use_hyper_parallel: HyperParallel trains stage sft only; set use_hyper_parallel: false.",
    ),
    (
        lambda run: getattr(run.training_args, "fp8", False),
        "fp8: TRL's GRPO trainer has no FP8 path; set fp8: false.",
    ),
    (
        lambda run: run.training_args.neftune_noise_alpha,
        "neftune_noise_alpha: the noise would also disturb the rollouts; remove it.",
    ),
    (
        lambda run: getattr(run.training_args, "enable_jit_checkpoint", False),
        "enable_jit_checkpoint: stage grpo saves a checkpoint on SIGTERM by itself, on all ranks at the end of a step; "
        "remove it.",
    ),
    (
        lambda run: run.training_args.auto_find_batch_size,
        "auto_find_batch_size: shrinking the batch would break groups apart; set per_device_train_batch_size.",
    ),
    (
        lambda run: run.training_args.do_predict and not _asks(run, "grpo_eval_metrics"),
        "do_predict: it measures grpo_eval_metrics; set those, or do_eval: true for the rewards, which writes every "
        "completion and reward to eval_completions.jsonl.",
    ),
    (
        lambda run: (
            _asks(run, "grpo_eval_metrics") and not (run.training_args.do_eval or run.training_args.do_predict)
        ),
        "grpo_eval_metrics: nothing is evaluated; set eval_dataset or val_size, and eval_strategy, do_eval or do_predict.",
    ),
    (
        lambda run: _asks(run, "grpo_eval_samples") and not _asks(run, "grpo_eval_metrics"),
        "grpo_eval_samples: it is read only with grpo_eval_metrics; set those or remove it.",
    ),
    (
        lambda run: run.finetuning_args.pissa_init and needs_reference(run.finetuning_args),
        "pissa_init with a reference (grpo_beta above 0, or clip_anchor): without its adapter a PiSSA model is not the "
        "start model, so there is none; set pissa_init: false, or grpo_beta: 0 with clip_anchor old.",
    ),
    (
        lambda run: _asks(run, "ref_model") and not needs_reference(run.finetuning_args),
        "ref_model: it is read only with a KL penalty or a reference to clip against; set grpo_beta above 0, or "
        "clip_anchor in grpo_config, or remove ref_model.",
    ),
    (
        lambda run: _asks(run, "ref_model_adapters") and run.finetuning_args.ref_model is None,
        "ref_model_adapters: they are read only with ref_model; set ref_model to their base model or remove them.",
    ),
    (
        lambda run: _asks(run, "ref_model_quantization_bit") and run.finetuning_args.ref_model is None,
        "ref_model_quantization_bit: it is read only with ref_model; set ref_model or remove it.",
    ),
    (
        lambda run: run.finetuning_args.grpo_config.get("sync_ref_model") and not _has_ref_model(run),
        "grpo_config.sync_ref_model: there is no reference model to move, LoRA switches its adapter off instead; set "
        "grpo_beta above 0 (or clip_anchor) with finetuning_type full or a ref_model, or remove it.",
    ),
    (
        lambda run: run.finetuning_args.grpo_config.get("sync_ref_model") and run.training_args.fsdp,
        "sync_ref_model with fsdp: checkpoints can't keep the reference model, which each rank has a part of; remove one "
        "of them (DeepSpeed ZeRO-3 works).",
    ),
    (
        lambda run: run.finetuning_args.grpo_config.get("use_liger_loss") and run.finetuning_args.grpo_beta > 0,
        "grpo_config.use_liger_loss with grpo_beta above 0: the fused loss would leave the KL penalty out; set "
        "grpo_beta: 0 or remove it.",
    ),
    (
        lambda run: run.finetuning_args.grpo_config.get("curriculum_column") and run.finetuning_args.disable_shuffling,
        "disable_shuffling with grpo_config.curriculum_column: the curriculum chooses the order of the prompts; remove one "
        "of them.",
    ),
    (
        lambda run: run.finetuning_args.grpo_config.get("use_transformers_paged"),
        "grpo_config.use_transformers_paged: TRL 0.24 asks for an attention that transformers 5 calls otherwise; "
        "remove it.",
    ),
    (
        lambda run: _asks(run, "reward_model") and run.finetuning_args.reward_model_type not in ("full", "api"),
        "reward_model: reward_model_type is lora, LLaMA-Factory's default, whose adapters share the policy's weights; set "
        "reward_model_type: full (for a LoRA reward model with reward_model its base model and reward_model_adapters its "
        "folder), or api for a server.",
    ),
    (
        lambda run: run.finetuning_args.reward_model is None and run.finetuning_args.reward_model_type != "lora",
        "reward_model_type: it is read only with reward_model; set reward_model or remove it.",
    ),
    (
        lambda run: _asks(run, "reward_model_adapters") and not _loads_reward_model(run),
        "reward_model_adapters: they are read only with reward_model and reward_model_type: full; set both or remove them.",
    ),
    (
        lambda run: _asks(run, "reward_model_quantization_bit") and not _loads_reward_model(run),
        "reward_model_quantization_bit: it is read only with reward_model and reward_model_type: full; set both or remove "
        "it.",
    ),
    (
        lambda run: _loads_reward_model(run) and _shards_weights(run),
        "fsdp or DeepSpeed ZeRO-3 with reward_model_type full: its weights would be loaded in parts; set "
        "reward_model_type: api and serve it by `llamafactory-cli api`.",
    ),
    (
        lambda run: run.finetuning_args.grpo_reward_in_process and "grpo_reward_timeout" in run.explicit,
        "grpo_reward_timeout with grpo_reward_in_process: nothing can interrupt a function in the trainer's own process; "
        "remove one of them.",
    ),
    (
        lambda run: run.finetuning_args.grpo_reward_in_process and run.finetuning_args.grpo_reward_network,
        "grpo_reward_network with grpo_reward_in_process: the trainer's own process has its network anyway; remove it.",
    ),
    (
        lambda run: _has_self_certainty(run) and run.finetuning_args.grpo_reward_control != "none",
        "grpo_reward_control with self_certainty: the trainer computes that reward itself, so that it cannot be shuffled; "
        "remove one of them.",
    ),
    (
        lambda run: _has_self_certainty(run) and run.finetuning_args.grpo_collapse_guard,
        "grpo_collapse_guard with self_certainty: the trainer computes that reward itself, so that nothing can guard it; "
        "remove one of them.",
    ),
    (
        lambda run: run.training_args.fsdp and run.training_args.use_cpu,
        "use_cpu with fsdp: accelerate shards on accelerators only, and would train without it; remove one of them (DeepSpeed "
        "ZeRO works on CPU ranks, with DS_ACCELERATOR=cpu and without use_cpu).",
    ),
    (
        lambda run: run.generating_args.do_sample is False,
        "do_sample: greedy rollouts of one prompt are all equal; remove it, or lower grpo_temperature.",
    ),
]

# Keys that TRL's trainer or this stage would not read: key, or prefix with a trailing "*" -> what to do instead.
UNREAD: dict[str, str] = {
    "pref_*": "it belongs to stage dpo; the KL coefficient here is grpo_beta",
    "dpo_*": "it belongs to stage dpo",
    "kto_*": "it belongs to stage kto",
    "ppo_*": "it belongs to stage ppo",
    "simpo_gamma": "it belongs to stage dpo",
    "ld_alpha": "it belongs to stage dpo",
    "use_dft_loss": "it belongs to stage sft",
    "use_asft_loss": "it belongs to stage sft",
    "use_eaft_loss": "it belongs to stage sft",
    "asft_alpha": "it belongs to stage sft",
    "eaft_alpha": "it belongs to stage sft",
    "ignore_pad_token_for_loss": "completions are masked after their stop token",
    "moe_aux_loss_coef": "TRL's GRPO loss has no router term",
    "vllm_*": "it belongs to inference; rollouts read vllm_* keys of GRPOConfig, inside grpo_config",
    "sglang_*": "it belongs to inference",
    "compute_accuracy": "there are no labels; the metric is eval_reward",
    "label_smoothing_factor": "there are no labels",
    "num_beams": "rollouts are sampled, not searched",
    "length_penalty": "it acts on beam search only",
    "max_length": "use grpo_max_completion_length",
    "skip_special_tokens": "rewards always see completions without special tokens",
    "eval_num_beams": "rollouts are sampled, not searched",
    "generation_num_beams": "rollouts are sampled, not searched",
    "generation_max_length": "use grpo_max_completion_length",
    "group_by_length": "use grpo_config for the generation batch; prompts are drawn at random",
    "train_sampling_strategy": "prompts are drawn at random, or in the file's order with disable_shuffling",
    "sortish_sampler": "prompts are drawn at random",
}


def refuse_unsupported(run: Any) -> None:
    """Refuse what does not work with stage grpo, and keys that it would silently ignore.

    Raises:
        UsageError: with the first sentence that applies.
    """
    for condition, sentence in REFUSALS:
        if condition(run):
            raise UsageError(sentence)
    for name, value in run.explicit.items():
        advice = next((text for key, text in UNREAD.items() if _matches(name, key)), None)
        if advice is not None and value is not None and not run.is_default(name):
            raise UsageError(f"{name}: stage grpo does not read it: {advice}; remove it.")


def _matches(name: str, key: str) -> bool:
    return name.startswith(key[:-1]) if key.endswith("*") else name == key
