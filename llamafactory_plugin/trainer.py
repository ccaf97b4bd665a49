"""ExtendedGRPOTrainer on TRL 0.24 with LLaMA-Factory's rollouts, optimizers, reference model, files and model card."""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from accelerate.utils import gather
from llamafactory.train.callbacks import SaveProcessorCallback
from llamafactory.train.trainer_utils import create_custom_optimizer, create_custom_scheduler
from transformers import Trainer, TrainerCallback
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.utils import disable_dropout_in_model

from llamafactory_plugin.completions import CompletionLog, completion_rows
from llamafactory_plugin.rendered_rollouts import ROW, RenderedRollouts
from llamafactory_plugin.rendering import PromptRenderer
from trl_grpo_ext import ExtendedGRPOTrainer, total_rewards


class LlamaFactoryGRPOTrainer(ExtendedGRPOTrainer, RenderedRollouts):
    """The trainer behind `stage: grpo`.

    `RenderedRollouts` stands between `ExtendedGRPOTrainer` and TRL's. Overridden here: `_generate_and_score_completions`
    (the completions file), `log` and `evaluate` (rewards among the evaluation metrics). The rest are LLaMA-Factory's
    hooks as its DPO trainer has them, its reference model among them: TRL loads none.
    """

    loads_reference = False

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
        self._metric_prefix = "eval"
        self.set_renderer(renderer)
        rewards = self.with_log(kwargs.pop("reward_funcs"))
        beta, sync_ref_model = args.beta, args.sync_ref_model
        # With a KL coefficient TRL would load a reference by name, without LLaMA-Factory's patches and options.
        args.beta, args.sync_ref_model = 0.0, False
        super().__init__(args=args, processing_class=renderer.tokenizer, reward_funcs=rewards, **kwargs)
        args.beta, args.sync_ref_model = beta, sync_ref_model
        self.beta = beta
        self.ref_model = self._prepare_ref_model(ref_model) if ref_model is not None else None
        if sync_ref_model:
            self.add_callback(SyncRefModelCallback(ref_model=self.ref_model, accelerator=self.accelerator))
        self.set_stop_tokens()
        self._completion_log = CompletionLog(args.output_dir)
        self._add_llamafactory_callbacks(processor)

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

    def _add_llamafactory_callbacks(self, processor: Any) -> None:
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

    def tokenize_prompts(self, rows: Sequence[dict[str, Any]]) -> list[list[int]]:
        """The ids that a generation begins from are the Template's."""
        return [self.renderer.encode_row(row) for row in rows]

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
        if self.is_redrawing:
            return super()._generate_and_score_completions(inputs)
        self.rows.clear()
        output = super()._generate_and_score_completions(inputs)
        numbers = gather(output.pop(ROW)).tolist()
        self._write_completions([self.rows[number] for number in numbers], gather(output["advantages"]))
        return output

    def _write_completions(self, rows: list[dict[str, Any]], advantages: torch.Tensor) -> None:
        """Write what is trained on: the rows after dynamic sampling, their rewards, and their final advantages."""
        if not self.is_world_process_zero():
            return
        rewards = self.scored.rewards_per_func
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
