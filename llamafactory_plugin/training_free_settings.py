"""LLaMA-Factory's keys -> the settings of Training-Free GRPO, and what is refused because nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamafactory_plugin.errors import UsageError
from llamafactory_plugin.refusals import refuse_unsupported
from llamafactory_plugin.run_arguments import RunArguments
from trl_grpo_ext.training_free import ModelSettings, TrainingFreeConfig, config_of, model_settings

OWN = "grpo_training_free_config"
# Setting -> the key that is its name here.
NATIVE = {
    "num_generations": "grpo_group_size",
    "num_train_epochs": "num_train_epochs",
    "temperature": "grpo_temperature",
    "eval_temperature": "grpo_eval_temperature",
    "max_completion_length": "grpo_max_completion_length",
    "seed": "seed",
    "shuffle": "disable_shuffling",
}
# Keys, or prefixes with a trailing "*", that would be expected to do something: key -> what to do instead.
REFUSED: dict[str, str] = {
    "deepspeed": "nothing is trained, and one process answers; serve a large model, and run `grpo-ext train-free` on it",
    "fsdp*": "nothing is trained, and one process answers; serve a large model, and run `grpo-ext train-free` on it",
    "grpo_use_vllm": "serve the model by `vllm serve`, and run `grpo-ext train-free` on its base_url",
    "grpo_beta": "there is no loss",
    "grpo_clip_range*": "there is no loss",
    "grpo_scale_rewards": "there are no advantages",
    "grpo_normalize_advantages": "there are no advantages",
    "grpo_preset": "there is no loss",
    "grpo_loss_type": "there is no loss",
    "grpo_num_iterations": "there is no loss",
    "grpo_config": f"the settings of this run stand in {OWN}",
    "grpo_collapse_guard": "the acceptance gate judges on held-out problems",
    "grpo_reward_control": "the acceptance gate judges on held-out problems",
    "experience_*": "the library is output_dir/library.db",
    "reward_weights": "there is one reward; several are joined by grpo_reward_composition",
    "reward_model*": "the reward is a function; name one in reward_funcs",
    "ref_model*": "the policy never moves",
    "max_steps": f"the steps are those of num_train_epochs, with {OWN}.batch_size problems each",
    "resume_from_checkpoint": "the same command resumes by itself",
    "do_eval": f"held-out problems (val_size, eval_dataset or {OWN}.held_out_share) are for the acceptance gate",
    "do_sample": "rollouts are sampled from the model itself",
    "top_p": "rollouts are sampled from the model itself",
    "top_k": "rollouts are sampled from the model itself",
    "repetition_penalty": "rollouts are sampled from the model itself",
}
# Keys that only training reads, beside those of the adapters: named in one line, and harmless.
READ = {"stage", "do_train", "output_dir", "bf16", "fp16", "pure_bf16", "use_cpu", "report_to", "temperature"}
READ |= {"finetuning_type", "reward_funcs", "grpo_extra_columns", "max_new_tokens", "overwrite_output_dir"}
READ_PREFIXES = ("grpo_reward_", "grpo_training_free")


def refuse_training(run: RunArguments, world_size: int) -> None:
    """Refuse what does not work without training, or would do nothing where something is expected.

    Raises:
        UsageError: with the first sentence that applies.
    """
    refuse_unsupported(run)
    if not run.training_args.do_train:
        raise UsageError("do_train: grpo_training_free learns lessons; set do_train: true.")
    if world_size > 1:
        raise UsageError(
            f"grpo_training_free runs in one process, not in {world_size}: set CUDA_VISIBLE_DEVICES to one device, or serve "
            "the model and run `grpo-ext train-free` on it."
        )
    for name, value in run.explicit.items():
        advice = next((text for key, text in REFUSED.items() if _matches(name, key)), None)
        if advice is not None and value is not None and not run.is_default(name):
            raise UsageError(f"{name}: grpo_training_free does not read it: {advice}; remove it.")


def unread_keys(run: RunArguments) -> list[str]:
    """The keys that were set and that nothing here reads: those of training."""
    owners = [run.model_args, run.data_args]
    return sorted(
        name
        for name in run.explicit
        if name not in READ
        and name not in NATIVE.values()
        and not name.startswith(READ_PREFIXES)
        and not any(hasattr(owner, name) for owner in owners)
    )


def training_free_config(run: RunArguments) -> TrainingFreeConfig:
    """The settings of the run.

    Raises:
        UsageError: a setting that is another key here, an unknown one, or one out of range.
    """
    given = dict(run.finetuning_args.grpo_training_free_config)
    doubled = next((name for name in NATIVE if name in given), None)
    if doubled is not None:
        raise UsageError(f"{OWN}.{doubled}: it is the key {NATIVE[doubled]} of the run; set that.")
    parts = {name: given.pop(name) for name in ("gate", "budget") if name in given}
    given.pop("reflector", None)
    try:
        return config_of({"config": given | native_settings(run), **parts})
    except ValueError as error:
        raise UsageError(_in_keys(str(error))) from error


def native_settings(run: RunArguments) -> dict[str, Any]:
    """The settings that are keys of their own; the paper's where a key is not set.

    Raises:
        UsageError: a part of an epoch, or two lengths that differ.
    """
    finetuning, training, explicit = run.finetuning_args, run.training_args, run.explicit
    epochs = training.num_train_epochs
    if epochs != int(epochs):
        raise UsageError(f"num_train_epochs must be a whole number with grpo_training_free, not {epochs}.")
    found: dict[str, Any] = {"num_train_epochs": int(epochs), "seed": training.seed}
    found["shuffle"] = not finetuning.disable_shuffling
    if "grpo_group_size" in explicit:
        found["num_generations"] = finetuning.grpo_group_size
    found |= {"temperature": run.generating_args.temperature} if "temperature" in explicit else {}
    for setting in ("temperature", "eval_temperature"):
        value = getattr(finetuning, NATIVE[setting])
        found |= {} if value is None else {setting: value}
    return found | _length(run)


def _length(run: RunArguments) -> dict[str, Any]:
    own, other = run.finetuning_args.grpo_max_completion_length, run.generating_args.max_new_tokens
    named = [name for name in ("grpo_max_completion_length", "max_new_tokens") if name in run.explicit]
    if len(named) == 2 and own != other:
        raise UsageError(f"max_new_tokens ({other}) and grpo_max_completion_length ({own}) differ; keep one.")
    return {} if not named else {"max_completion_length": own if named[0].startswith("grpo_") else other}


def reflector_settings(run: RunArguments) -> ModelSettings | None:
    """The model that reflects, where it is not the policy.

    Raises:
        UsageError: naming the key.
    """
    given: Mapping[str, Any] = run.finetuning_args.grpo_training_free_config
    if given.get("reflector") is None:
        return None
    try:
        return model_settings(given["reflector"], "reflector", run.folder or Path.cwd())
    except (ImportError, ValueError) as error:
        raise UsageError(_in_keys(str(error))) from error


def _in_keys(sentence: str) -> str:
    """A sentence about the settings, in the names of this run's keys."""
    plain = sentence.removeprefix("config.")
    setting = next((name for name in NATIVE if plain.startswith(f"{name} ")), None)
    return f"{OWN}.{plain}" if setting is None else f"{NATIVE[setting]}{plain.removeprefix(setting)}"


def _matches(name: str, key: str) -> bool:
    return name.startswith(key[:-1]) if key.endswith("*") else name == key
