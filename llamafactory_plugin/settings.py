"""LLaMA-Factory's five argument objects -> one `ExtendedGRPOConfig`, with this stage's defaults for what was not set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamafactory_plugin.batches import check_batch, smallest_whole_groups
from llamafactory_plugin.checks import check_number
from llamafactory_plugin.config_mapping import NATIVE_NAMES, config_mapping, in_yaml_words
from llamafactory_plugin.errors import UsageError
from llamafactory_plugin.evaluation_arguments import best_metric
from llamafactory_plugin.presets import preset_of, preset_values
from llamafactory_plugin.run_arguments import RunArguments
from llamafactory_plugin.vllm_checks import check_vllm

LEARNING_RATE = {"lora": 1e-5, "oft": 1e-5, "full": 1e-6, "freeze": 1e-6}


def build_config(run: RunArguments, notes: list[str]) -> Any:
    """The `ExtendedGRPOConfig` of the run. Defaults that were chosen here are appended to `notes`, to be logged.

    Every field that LLaMA-Factory's TrainingArguments shares with GRPOConfig is copied, set or not: GRPOConfig has
    defaults of its own (learning rate, bf16, logging steps, gradient checkpointing) that must not replace them.

    Raises:
        UsageError: for values that contradict each other, batch sizes that split a group, unknown grpo_config keys.
    """
    from trl_grpo_ext import ExtendedGRPOConfig

    names = {item.name for item in dataclasses.fields(ExtendedGRPOConfig) if item.init}
    shared = {item.name for item in dataclasses.fields(run.training_args) if item.init} & names
    values = {name: getattr(run.training_args, name) for name in shared}
    values |= native_values(run) | sampling_values(run)
    values |= config_mapping(run.finetuning_args.grpo_config, ExtendedGRPOConfig, shared, _folders(run))
    values |= chosen_defaults(run, values, notes)
    values |= {"max_prompt_length": None, "remove_unused_columns": False, "disable_dropout": True}
    # TRL counts the tokens itself; transformers, which LLaMA Board asks to, would warn at each micro-batch that it can't.
    values |= {"include_num_input_tokens_seen": False}
    values |= {"shuffle_dataset": not run.finetuning_args.disable_shuffling}
    values["reward_weights"] = run.finetuning_args.reward_weights
    check_batch(run, values)
    check_vllm(run)
    _check_packages(values)
    try:
        return ExtendedGRPOConfig(**values)
    except ValueError as error:
        written = [*run.finetuning_args.grpo_config, *preset_of(run.finetuning_args)]
        sentence = in_yaml_words(str(error), ExtendedGRPOConfig, written)
        raise UsageError(sentence + _from_preset(run, sentence)) from error


def _folders(run: RunArguments) -> list[Path]:
    return [folder for folder in (run.folder, Path.cwd()) if folder is not None]


def _from_preset(run: RunArguments, sentence: str) -> str:
    """Which of the options named in a sentence the user did not write: they came with the preset."""
    written = run.finetuning_args.grpo_config
    names = [name for name in preset_of(run.finetuning_args) if name not in written]
    found = [f"grpo_config.{name}" for name in names if f"grpo_config.{name}" in sentence]
    verb = "comes" if len(found) == 1 else "come"
    return f" {' and '.join(found)} {verb} from grpo_preset: {run.finetuning_args.grpo_preset}." if found else ""


def native_values(run: RunArguments) -> dict[str, Any]:
    """The `grpo_*` keys under TRL's names; a preset fills what was not set.

    Raises:
        UsageError: when `grpo_normalize_advantages` contradicts `grpo_scale_rewards`.
    """
    arguments = run.finetuning_args
    values = {trl_name: getattr(arguments, name) for name, trl_name in NATIVE_NAMES.items()}
    explicit = {trl_name for name, trl_name in NATIVE_NAMES.items() if name in run.explicit}
    if arguments.grpo_normalize_advantages is not None:
        alias = "group" if arguments.grpo_normalize_advantages else "none"
        if "scale_rewards" in explicit and arguments.grpo_scale_rewards != alias:
            raise UsageError(
                f"grpo_normalize_advantages: {str(bool(arguments.grpo_normalize_advantages)).lower()} means "
                f"grpo_scale_rewards: {alias}, but that is set to {arguments.grpo_scale_rewards!r}; remove one of them."
            )
        values["scale_rewards"] = alias
        explicit.add("scale_rewards")
    return values | preset_values(arguments, explicit | arguments.grpo_config.keys())


def sampling_values(run: RunArguments) -> dict[str, Any]:
    """How rollouts are sampled: from the policy itself unless a key was set.

    LLaMA-Factory's own defaults (0.95, 0.7, 50) are for chat. `top_k` is 0, not None: transformers 5 fills a None
    from the model's generation config and then with 50.

    Raises:
        UsageError: when `max_new_tokens` and `grpo_max_completion_length` are both set and differ.
    """
    given = {name: getattr(run.generating_args, name) for name in run.explicit if hasattr(run.generating_args, name)}
    _check_sampling(given)
    values: dict[str, Any] = {
        "temperature": given.get("temperature", 1.0),
        "top_p": given.get("top_p", 1.0),
        "top_k": given.get("top_k", 0),
        "repetition_penalty": given.get("repetition_penalty", 1.0),
    }
    if run.finetuning_args.grpo_temperature is not None:
        values["temperature"] = run.finetuning_args.grpo_temperature
    if values["temperature"] == 0:
        raise UsageError("temperature must be above 0 for rollouts; remove it, or set grpo_temperature: 1.0.")
    if "max_new_tokens" in given:
        own = run.finetuning_args.grpo_max_completion_length
        if "grpo_max_completion_length" in run.explicit and own != given["max_new_tokens"]:
            raise UsageError(
                f"max_new_tokens ({given['max_new_tokens']}) and grpo_max_completion_length ({own}) differ; keep one."
            )
        values["max_completion_length"] = given["max_new_tokens"]
    return values


def _check_sampling(given: Mapping[str, Any]) -> None:
    check_number("temperature", given.get("temperature"), float, 0.0)
    check_number("top_p", given.get("top_p"), float, 0.01, 1.0)
    check_number("top_k", given.get("top_k"), int, 0, way_out="0 keeps every token")
    check_number("repetition_penalty", given.get("repetition_penalty"), float, 0.01, way_out="1.0 is no penalty")
    check_number("max_new_tokens", given.get("max_new_tokens"), int, 1)


def chosen_defaults(run: RunArguments, values: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Values for keys that were not set and whose LLaMA-Factory default does not suit GRPO."""
    chosen: dict[str, Any] = {}
    if "learning_rate" not in run.explicit:
        chosen["learning_rate"] = LEARNING_RATE[run.finetuning_args.finetuning_type]
    if (values["load_best_model_at_end"] or run.finetuning_args.early_stopping_steps is not None) and (
        "metric_for_best_model" not in run.explicit
    ):
        temperature = values["temperature"] if values["eval_temperature"] is None else values["eval_temperature"]
        own = best_metric(run.finetuning_args, temperature, values["num_generations"])
        chosen |= {"metric_for_best_model": own or default_metric(run), "greater_is_better": True}
    elif "greater_is_better" not in run.explicit and _is_better_when_greater(str(values["metric_for_best_model"])):
        chosen["greater_is_better"] = True
    per_rank = smallest_whole_groups(values["num_generations"], run.training_args.world_size)
    is_own_eval_batch = run.training_args.do_eval and "per_device_eval_batch_size" not in run.explicit
    if is_own_eval_batch and values["per_device_eval_batch_size"] % per_rank:
        chosen["per_device_eval_batch_size"] = per_rank
    notes.extend(f"{name} is not set: {value}" for name, value in chosen.items())
    return chosen


def _is_better_when_greater(metric: str) -> bool:
    """Rewards, and the figures of `grpo_eval_metrics`."""
    return metric.endswith("reward") or any(figure in metric for figure in ("/avg@", "/pass@", "/pass^", "/maj@"))


def default_metric(run: RunArguments) -> str:
    """The metric of the best model: the reward, of the first set when each is evaluated by itself."""
    names = run.data_args.eval_dataset or []
    return f"eval_{names[0]}_reward" if run.data_args.eval_on_each_dataset and names else "eval_reward"


def _check_packages(values: Mapping[str, Any]) -> None:
    from trl.import_utils import is_liger_kernel_available

    if values.get("use_liger_loss") and not is_liger_kernel_available():
        raise UsageError(
            "grpo_config.use_liger_loss: it needs `pip install liger-kernel`; install it or remove the key."
        )
