"""`run_grpo`: the workflow of stage grpo, in the shape of LLaMA-Factory's own (`train/dpo/workflow.py`)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.data.template import TEMPLATES
from llamafactory.extras import logging
from llamafactory.model import load_model, load_tokenizer
from llamafactory.train.trainer_utils import create_modelcard_and_push, create_ref_model

from llamafactory_plugin.batches import BatchPlan, batch_plan
from llamafactory_plugin.bitdelta import bitdelta_callbacks, check_bitdelta
from llamafactory_plugin.dataset import GRPOData, load_data
from llamafactory_plugin.errors import UsageError, nearest
from llamafactory_plugin.evaluation import evaluation_callback, predict
from llamafactory_plugin.experience import attach_again, check_experience, experience_callbacks
from llamafactory_plugin.experience_library import opened_library
from llamafactory_plugin.refusals import refuse_unsupported
from llamafactory_plugin.rendering import PromptRenderer
from llamafactory_plugin.reward_model import LlamaFactoryReward, parts_of
from llamafactory_plugin.rewards import check_redrawn_groups, check_rewards, default_reward, load_rewards
from llamafactory_plugin.run_arguments import RunArguments
from llamafactory_plugin.settings import build_config
from llamafactory_plugin.summary import announce
from llamafactory_plugin.watching import draw_pictures, report_of, watching_callbacks
from trl_grpo_ext import TerminationCallback
from trl_grpo_ext.curriculum import Curriculum
from trl_grpo_ext.rewards import apply_reward_control
from trl_grpo_ext.rewards.label_free import CollapseGuard

logger = logging.get_logger("llamafactory.grpo")


@dataclass(frozen=True)
class PreparedRun:
    """A run whose arguments, rewards and data fit together; its model is not loaded yet."""

    run: RunArguments
    config: Any
    renderer: PromptRenderer
    processor: Any
    data: GRPOData
    plan: BatchPlan
    rewards: list[Callable[..., Any]]
    notes: list[str]
    evaluation: Any = None


def prepare_run(run: RunArguments) -> PreparedRun:
    """Check everything about a run that can be checked without its model, and load its data.

    Raises:
        UsageError: for a run that cannot work as written; nothing is written.
    """
    refuse_unsupported(run)
    check_bitdelta(run)
    rewards = load_rewards(run)
    notes: list[str] = []
    config = build_config(run, notes)
    check_experience(run, config)
    tokenizer_module = load_tokenizer(run.model_args)
    check_template(run.data_args.template)
    template = get_template_and_fix_tokenizer(tokenizer_module["tokenizer"], run.data_args)
    renderer = PromptRenderer(template, tokenizer_module["tokenizer"])
    _set_stop_tokens(config, renderer)
    max_prompt_length = min(run.data_args.cutoff_len, renderer.tokenizer.model_max_length)
    data = load_data(run, renderer, tokenizer_module["processor"], max_prompt_length)
    plan = batch_plan(config)
    check_dataset_size(run, data, plan)
    check_curriculum(config, data)
    rewards = rewards or [default_reward(data, notes)]
    rows_per_call = config.per_device_train_batch_size * config.steps_per_generation
    check_rewards(rewards, data, rows_per_call, config.num_generations)
    check_redrawn_groups(rewards, config.dynamic_sampling_rounds, run.training_args.world_size)
    evaluation = evaluation_callback(run, config, data)
    return PreparedRun(run, config, renderer, tokenizer_module["processor"], data, plan, rewards, notes, evaluation)


def run_grpo(run: RunArguments, callbacks: list[Any] | None = None) -> None:
    """Train, save, evaluate and describe one GRPO run.

    Raises:
        UsageError: for a run that cannot work as written; the model is not loaded yet and nothing is written.
    """
    prepared = prepare_run(run)
    own_callbacks = [*reward_callbacks(prepared.rewards), *bitdelta_callbacks(run.finetuning_args)]
    control = apply_reward_control(prepared.rewards, run.finetuning_args.grpo_reward_control, run.training_args.seed)
    prepared = dataclasses.replace(prepared, rewards=control)
    announce(prepared)
    with opened_library(run) as library:
        # The metrics first: what stops a run early looks for them among those of the evaluation.
        measuring = [] if prepared.evaluation is None else [prepared.evaluation]
        watching = [*own_callbacks, *experience_callbacks(run, library), *watching_callbacks(run)]
        watching += [TerminationCallback()] if run.training_args.do_train else []
        _run(prepared, [*measuring, *(callbacks or []), *watching])


def _run(prepared: PreparedRun, callbacks: list[Any]) -> None:
    run, trainer = prepared.run, _create_trainer(prepared, callbacks)
    if run.training_args.do_train:
        _train(trainer, run)
    elif run.training_args.do_eval:
        trainer.start_completion_log(is_training=False)
    if run.training_args.do_eval:
        attach_again(callbacks, trainer)
        metrics = trainer.evaluate(metric_key_prefix="eval")
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if run.training_args.do_predict:
        predict(prepared.evaluation, trainer)
    create_modelcard_and_push(trainer, run.model_args, run.data_args, run.training_args, run.finetuning_args)
    if run.training_args.do_train:
        report_of(trainer, run)


def reward_callbacks(rewards: Sequence[Callable[..., Any]]) -> list[Any]:
    """The callbacks that rewards bring along: a collapse guard's, which ends training by its policy."""
    parts = [part for reward in rewards for part in parts_of(reward)]
    return [part.callback() for part in parts if isinstance(part, CollapseGuard)]


def check_template(name: str | None) -> None:
    """Refuse a template that LLaMA-Factory does not have; None lets it read the tokenizer's own.

    Raises:
        UsageError: with the nearest right name.
    """
    if name is not None and name not in TEMPLATES:
        raise UsageError(f"template: LLaMA-Factory has no template {name!r}{nearest(name, TEMPLATES)}")


def check_dataset_size(run: RunArguments, data: GRPOData, plan: BatchPlan) -> None:
    """Refuse a training set too small for one generation batch; TRL's sampler would yield nothing.

    Raises:
        UsageError: with both numbers.
    """
    if run.training_args.do_train and len(data.datasets["train_dataset"]) < plan.prompts:
        raise UsageError(
            f"dataset: {len(data.datasets['train_dataset'])} prompts are fewer than the {plan.prompts} of one generation batch; "
            "lower per_device_train_batch_size or gradient_accumulation_steps, or add prompts."
        )


def check_curriculum(config: Any, data: GRPOData) -> None:
    """Refuse difficulties that a curriculum cannot order.

    Raises:
        UsageError: with the first row that is no finite number.
    """
    if config.curriculum_column is None or "train_dataset" not in data.datasets:
        return
    try:
        Curriculum(data.datasets["train_dataset"][config.curriculum_column], config.solve_rate_band, 1.0, 0)
    except ValueError as error:
        raise UsageError(f"grpo_config.{error}") from error


def _set_stop_tokens(config: Any, renderer: PromptRenderer) -> None:
    name = "stop_token_ids" if config.use_vllm else "eos_token_id"
    config.generation_kwargs = {name: renderer.stop_token_ids(), **(config.generation_kwargs or {})}


def _create_trainer(prepared: PreparedRun, callbacks: list[Any] | None) -> Any:
    from llamafactory_plugin.trainer import LlamaFactoryGRPOTrainer
    from trl_grpo_ext import prepare_model

    run, config, renderer = prepared.run, prepared.config, prepared.renderer
    experiences = run.finetuning_args.experience_token_budget or 0
    run.model_args.model_max_length = run.data_args.cutoff_len + experiences + config.max_completion_length
    model = load_model(renderer.tokenizer, run.model_args, run.finetuning_args, run.training_args.do_train)
    load_reward_models(prepared.rewards)
    check_context_length(model, prepared.data.longest_prompt + experiences, config.max_completion_length)
    prepare_model(model)
    disable_attention_dropout(model)
    keep_checkpointing_kwargs(model, run.model_args.use_reentrant_gc)
    return LlamaFactoryGRPOTrainer(
        model=model,
        args=config,
        renderer=renderer,
        ref_model=create_ref_model(run.model_args, run.finetuning_args) if config.needs_reference else None,
        reward_funcs=prepared.rewards,
        finetuning_args=run.finetuning_args,
        processor=prepared.processor,
        callbacks=callbacks,
        **prepared.data.datasets,
    )


def load_reward_models(rewards: Sequence[Callable[..., Any]]) -> None:
    """Load the weights of `reward_model` before the first rollout needs them, also below a control or a composition."""
    for reward in rewards:
        for part in parts_of(getattr(reward, "__wrapped__", reward)):
            if isinstance(part, LlamaFactoryReward):
                part.load()


def check_context_length(model: Any, longest_prompt: int, max_completion_length: int) -> None:
    """Warn when a prompt and its completion may run past the positions the model was trained on."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and longest_prompt + max_completion_length > limit:
        logger.warning_rank0(
            f"GRPO: the longest prompt ({longest_prompt} tokens) and grpo_max_completion_length ({max_completion_length}) "
            f"exceed the model's context of {limit} tokens; lower cutoff_len or grpo_max_completion_length."
        )


def disable_attention_dropout(model: Any) -> None:
    """Switch off the dropout inside attention functions, which is a number on the module and no `nn.Dropout`.

    TRL's `disable_dropout` covers the modules. Rollouts are sampled in train mode: any dropout would change the policy
    that samples, and the probability ratios with it.
    """
    for module in model.modules():
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def keep_checkpointing_kwargs(model: Any, use_reentrant: bool) -> None:
    """Let gradient checkpointing come back after a rollout as LLaMA-Factory had set it.

    TRL 0.24 switches it off to generate and on again with `gradient_checkpointing_enable()`, without arguments, which
    is reentrant: FSDP2 and `use_reentrant_gc: false` need it otherwise.
    """
    if not getattr(model, "is_gradient_checkpointing", False):
        return
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    enable = owner.gradient_checkpointing_enable

    @functools.wraps(enable)
    def gradient_checkpointing_enable(gradient_checkpointing_kwargs: Any = None) -> None:
        enable(gradient_checkpointing_kwargs or {"use_reentrant": use_reentrant})

    owner.gradient_checkpointing_enable = gradient_checkpointing_enable


def _train(trainer: Any, run: RunArguments) -> None:
    result = trainer.train(resume_from_checkpoint=run.training_args.resume_from_checkpoint)
    trainer.save_model()
    if run.finetuning_args.include_effective_tokens_per_second:
        tokens = trainer.state.num_input_tokens_seen / result.metrics["train_runtime"]
        result.metrics["effective_tokens_per_sec"] = tokens / trainer.accelerator.num_processes
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    trainer.create_model_card()  # LLaMA-Factory's card, written last, keeps the tags it finds
    if trainer.is_world_process_zero() and run.finetuning_args.plot_loss:
        draw_pictures(trainer)
