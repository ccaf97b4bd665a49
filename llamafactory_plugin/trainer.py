"""TRL 0.24's GRPOTrainer with LLaMA-Factory's rendering, stop words, optimizers, reference model and model card."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from accelerate.utils import gather, gather_object
from llamafactory.train.callbacks import SaveProcessorCallback
from llamafactory.train.trainer_utils import create_custom_optimizer, create_custom_scheduler
from transformers import GenerationConfig, Trainer, TrainerCallback
from trl import GRPOTrainer
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.utils import disable_dropout_in_model

from llamafactory_plugin.completions import CompletionLog, completion_rows
from llamafactory_plugin.rendering import PromptRenderer
from llamafactory_plugin.reward_log import LoggedReward, RewardLog, mean_over_ranks, with_extras
from llamafactory_plugin.rollouts import FixedEncoding, StopToken, cut_after_stop
from trl_grpo_ext import correct_skipped_rows, total_rewards

LOGGED_COLUMNS = ("solution",)
# TRL 0.24's `is_conversational` looks at one of these keys, in no fixed order; with a text there (the chosen answer of
# a ranking set) it may take rows whose prompts are messages for plain text.
AMBIGUOUS_COLUMNS = frozenset({"chosen", "rejected", "completion", "messages"})


class LlamaFactoryGRPOTrainer(GRPOTrainer):
    """The trainer behind `stage: grpo`.

    Overridden seams of TRL 0.24: `_generate_single_turn` (prompt ids, stop words, evaluation temperature),
    `_generate_and_score_completions` and `_calculate_rewards` (tools, the completions file, what rewards log), `log` and `evaluate`
    (rewards among the evaluation metrics). The rest are LLaMA-Factory's hooks as its DPO trainer has them.
    """

    def __init__(
        self,
        *,
        args: Any,
        renderer: PromptRenderer,
        ref_model: torch.nn.Module | None,
        finetuning_args: Any,
        processor: Any = None,
        **kwargs: Any,
    ) -> None:
        self.finetuning_args = finetuning_args
        self.renderer = renderer
        self._stop_token_ids = frozenset(renderer.stop_token_ids())
        self._row_tools: Sequence[str | None] = ()
        self._metric_prefix = "eval"
        self._reward_log = RewardLog()
        rewards = kwargs.pop("reward_funcs")
        rewards = [LoggedReward(reward, self._reward_log, rewards) for reward in rewards]
        beta, sync_ref_model = args.beta, args.sync_ref_model
        # With a KL coefficient TRL would load a reference by name, without LLaMA-Factory's patches and options.
        args.beta, args.sync_ref_model = 0.0, False
        super().__init__(args=args, processing_class=renderer.tokenizer, reward_funcs=rewards, **kwargs)
        args.beta, args.sync_ref_model = beta, sync_ref_model
        self.beta = beta
        self.ref_model = self._prepare_ref_model(ref_model) if ref_model is not None else None
        if sync_ref_model:
            self.add_callback(SyncRefModelCallback(ref_model=self.ref_model, accelerator=self.accelerator))
        self.eos_token_id = StopToken(renderer.tokenizer.eos_token_id, sorted(self._stop_token_ids))
        # Set by `train()` only, but read by the loss of an evaluation before or without training.
        self.current_gradient_accumulation_steps = args.gradient_accumulation_steps
        self._completion_log = CompletionLog(args.output_dir)
        self._add_callbacks(processor)

    def _prepare_ref_model(self, ref_model: torch.nn.Module) -> torch.nn.Module:
        disable_dropout_in_model(ref_model)
        is_quantized = getattr(ref_model, "is_loaded_in_8bit", False) or getattr(ref_model, "is_loaded_in_4bit", False)
        if self.is_deepspeed_enabled:
            return ref_model if is_quantized else prepare_deepspeed(ref_model, self.accelerator)
        if self.is_fsdp_enabled and self.accelerator.is_fsdp2:
            from accelerate.utils.fsdp_utils import fsdp2_prepare_model

            return fsdp2_prepare_model(self.accelerator, ref_model)
        if self.is_fsdp_enabled:
            return prepare_fsdp(ref_model, self.accelerator)
        return self.accelerator.prepare_model(ref_model, evaluation_mode=True).eval()

    def _add_callbacks(self, processor: Any) -> None:
        self.add_callback(StartCompletionLog(self))
        if processor is not None:
            self.add_callback(SaveProcessorCallback(processor))
        if self.finetuning_args.use_badam:
            from badam import BAdamCallback, clip_grad_norm_old_version

            self.accelerator.clip_grad_norm_ = MethodType(clip_grad_norm_old_version, self.accelerator)
            self.add_callback(BAdamCallback)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = create_custom_optimizer(self.model, self.args, self.finetuning_args)
        return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        create_custom_scheduler(self.args, num_training_steps, optimizer)
        return super().create_scheduler(num_training_steps, optimizer)

    def create_model_card(self, model_name: str | None = None, tags: Any = None, **kwargs: Any) -> None:
        """LLaMA-Factory passes the Trainer's keywords (tasks, finetuned_from, ...), which TRL's method does not take."""
        tags = [tags] if isinstance(tags, str) else list(tags or [])
        kwargs.setdefault("license", "other")  # else the hub is asked for the base model's
        Trainer.create_model_card(self, model_name=model_name, tags=[*tags, "grpo"], **kwargs)

    def start_completion_log(self, *, is_training: bool) -> None:
        """Make the completion files those of this run: kept up to the step that was resumed from, else begun anew."""
        if self.is_world_process_zero():
            self._completion_log.start(self.state.global_step, is_training=is_training)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        self._metric_prefix = metric_key_prefix
        return super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Put the rewards of an evaluation into the dict the Trainer picks the best checkpoint from.

        TRL 0.24 logs them under `eval_`, whatever the dataset's name, in a copy.
        """
        if not self.model.training:
            metrics = {name: sum(values) / len(values) for name, values in self._metrics["eval"].items() if values}
            logs.update({f"{self._metric_prefix}_{name}": value for name, value in metrics.items()})
            self._metrics["eval"].clear()
        super().log(logs, start_time)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._row_tools = [row.get("tools") for row in inputs]
        self._hidden = [{name: row[name] for name in AMBIGUOUS_COLUMNS & row.keys()} for row in inputs]
        visible = [{name: row[name] for name in row if name not in AMBIGUOUS_COLUMNS} for row in inputs]
        output = super()._generate_and_score_completions(visible)
        correct_skipped_rows(self, output, self._scored[1])
        self._write_completions(gather(output["advantages"]))
        return output

    def _generate_single_turn(self, prompts: list[Any], images: Any) -> Any:
        prompt_ids = [self.renderer.encode(*row) for row in zip(prompts, self._row_tools, strict=True)]
        rendered = [self._vllm_prompt(ids) if self.use_vllm else self.renderer.decode(ids) for ids in prompt_ids]
        with self._rendered(prompt_ids), self._sampling_of_mode(), plain_generation_config(self.model):
            prompt_ids, completion_ids, *rest = super()._generate_single_turn(rendered, images)
        return prompt_ids, [cut_after_stop(ids, self._stop_token_ids) for ids in completion_ids], *rest

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        inputs = [row | hidden for row, hidden in zip(inputs, self._hidden, strict=True)]
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        rows = [
            {"prompt": prompt, "completion": completion[-1]["content"], "tokens": len(ids)}
            | {name: row[name] for name in LOGGED_COLUMNS if name in row}
            for row, prompt, completion, ids in zip(inputs, prompts, completions, completion_ids_list, strict=True)
        ]
        metrics, extras = self._reward_log.take()
        self._scored = (gather_object(with_extras(rows, extras)), rewards)
        logged = self._metrics["train" if self.model.training else "eval"]
        for name, value in mean_over_ranks(gather_object([metrics])).items():
            logged[name].append(value)
        return rewards

    def _vllm_prompt(self, prompt_ids: Sequence[int]) -> Any:
        # vLLM would add a second bos token to a text that begins with one; its server API takes texts only.
        return {"prompt_token_ids": prompt_ids} if self.vllm_mode == "colocate" else self.renderer.decode(prompt_ids)

    @contextmanager
    def _rendered(self, prompt_ids: Sequence[Sequence[int]]) -> Iterator[None]:
        tokenizer, self.processing_class = self.processing_class, FixedEncoding(self.processing_class, prompt_ids)
        try:
            yield
        finally:
            self.processing_class = tokenizer

    @contextmanager
    def _sampling_of_mode(self) -> Iterator[None]:
        temperature = self.finetuning_args.grpo_eval_temperature
        if self.model.training or temperature is None:
            yield
            return
        training = self.temperature, getattr(self, "generation_config", None)
        # Only generation reads it here: the log-probabilities keep the training temperature.
        self.temperature = temperature
        if training[1] is not None:
            self.generation_config = copy.deepcopy(training[1])
            self.generation_config.update(do_sample=temperature > 0, temperature=temperature or None)
        try:
            yield
        finally:
            self.temperature = training[0]
            if training[1] is not None:
                self.generation_config = training[1]

    def _write_completions(self, advantages: torch.Tensor) -> None:
        rows, rewards = self._scored
        if not self.is_world_process_zero():
            return
        totals = total_rewards(rewards, self.reward_weights)
        step = self.state.global_step + (1 if self.model.training else 0)
        by_name = {name: rewards[:, index].tolist() for index, name in enumerate(self.reward_func_names)}
        records = completion_rows(step, rows, by_name, totals.tolist(), advantages.tolist())
        self._completion_log.write(records, is_training=self.model.training)


class StartCompletionLog(TrainerCallback):
    """At the start of training the state knows which step was resumed from, however that was asked for."""

    def __init__(self, trainer: LlamaFactoryGRPOTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.start_completion_log(is_training=True)


@contextmanager
def plain_generation_config(model: torch.nn.Module) -> Iterator[None]:
    """Take the model's own generation config away during a rollout, and put it back to be saved.

    `generate` fills what its caller left open from it; transformers 4.57 even replaces a temperature of 1.0, because
    that is the default, by the model's 0.6.
    """
    owner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, owner.generation_config = owner.generation_config, GenerationConfig()
    try:
        yield
    finally:
        owner.generation_config = own
