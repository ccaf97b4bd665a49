"""`ExtendedGRPOTrainer`: TRL's GRPOTrainer with this package's losses, advantages and sampling."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch

from trl_grpo_ext import off_policy, redraw, rescue, scoring, self_certainty_reward
from trl_grpo_ext._compat import group_size, import_trl, logps_and_entropies, tokenize_prompts, trainable_model
from trl_grpo_ext.batching import PutAttentionBack
from trl_grpo_ext.callbacks import AdaptiveKLCallback, ClipScheduleCallback, CurriculumCallback
from trl_grpo_ext.checkpoints import CheckpointCallback
from trl_grpo_ext.config import ExtendedGRPOConfig
from trl_grpo_ext.config_checks import load_function
from trl_grpo_ext.curriculum import Curriculum, CurriculumSampler
from trl_grpo_ext.loss_inputs import loss_inputs, window_tokens
from trl_grpo_ext.losses import LossConfig, policy_loss
from trl_grpo_ext.policy_metrics import policy_metrics, set_last
from trl_grpo_ext.sampling import zero_variance_reasons
from trl_grpo_ext.scoring import Scored
from trl_grpo_ext.self_certainty_reward import SelfCertainty
from trl_grpo_ext.trainer_batches import Batching, keep_groups, smaller
from trl_grpo_ext.trainer_setup import (
    LossFunction,
    check_contexts,
    check_dataset,
    chosen_loss,
    default_config,
    like_trl,
    loading_reference,
    with_temperature,
)

# TRL's loss types that clip the ratio; the others weigh it in another way.
_CLIPPING = frozenset({"grpo", "bnpo", "dr_grpo", "dapo", "luspo"})


class ExtendedGRPOTrainer(import_trl().GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPOTrainer; with no option of `ExtendedGRPOConfig` set, it trains as TRL does, to rounding.

    Overridden: `_prepare_inputs`, `_calculate_rewards`, `_generate_and_score_completions`, `_compute_loss`,
    `_get_train_sampler` and `_get_per_token_logps_and_entropies`; each calls TRL's.

    Args:
        model: as TRL's.
        reward_funcs: as TRL's; `SelfCertainty()` too.
        args: an `ExtendedGRPOConfig`; TRL's own config is taken with our defaults.
        *rest: as TRL's, in its order.
        loss_fn: a function of `LossInputs` that returns `LossOutputs`; it replaces the loss. Its metrics are logged,
            as means over the ranks. `beta` then only decides whether there are reference log-probabilities.
        **kwargs: as TRL's.

    Raises:
        ValueError: options that do not work together, or with this dataset; before TRL loads anything.
    """

    # A subclass that brings a reference model of its own sets this to False: TRL then loads none because of us.
    loads_reference: ClassVar[bool] = True

    # The newest generation with its rewards, as it is trained on: after everything that replaces rows or rewards.
    scored: Scored

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        *rest: Any,
        loss_fn: LossFunction | None = None,
        **kwargs: Any,
    ) -> None:
        args = ExtendedGRPOConfig.from_grpo_config(args if args is not None else default_config(model))
        dataset = kwargs.get("train_dataset", rest[0] if rest else None)
        check_dataset(args, dataset)
        check_contexts(args, dataset, kwargs.get("callbacks", rest[4] if len(rest) > 4 else None), kwargs)
        self.loss_fn = chosen_loss(args, loss_fn)
        self.uses_extended_loss = loss_fn is not None or args.uses_extended_loss
        self.curriculum: Curriculum | None = None
        self.curriculum_sampler: CurriculumSampler | None = None
        self.is_redrawing = False
        self.redrawn: Scored | None = None
        # Set by a callback that samples dead groups again with hints.
        self.rescuer: rescue.Rescuer | None = None
        self.is_rescuing = False
        self.regrouped_inputs: list[dict[str, Any]] | None = None
        self._loss_config: LossConfig | None = None
        model = trainable_model(model, args.model_init_kwargs)
        with loading_reference(args, self.loads_reference):
            super().__init__(model, reward_funcs, args, *rest, **kwargs)
        self.beta = args.beta
        self.batching = Batching.of(self, dataset)
        # TRL 0.24 reads it in the loss of an evaluation, and sets it in `train()` only.
        self.current_gradient_accumulation_steps = args.gradient_accumulation_steps
        self._self_certainty = [i for i, reward in enumerate(self.reward_funcs) if isinstance(reward, SelfCertainty)]
        for index in self._self_certainty:
            self.reward_funcs[index].computed_by_trainer = True
        self._group_filter = args.group_filter and scoring.group_filter(args.group_filter, load_function)
        if args.curriculum_column is not None:
            difficulties = self.train_dataset[args.curriculum_column]
            self.curriculum = Curriculum(difficulties, args.solve_rate_band, args.curriculum_step, args.seed)
        self._add_callbacks(args)

    def _add_callbacks(self, args: Any) -> None:
        if args.clip_schedule != "constant":
            schedule = args.clip_schedule, args.clip_final_factor, args.clip_target_fraction
            self.add_callback(ClipScheduleCallback(*schedule))
        if args.kl_target is not None:
            self.add_callback(AdaptiveKLCallback(args.kl_target))
        if self.curriculum is not None:
            self.add_callback(CurriculumCallback())
        self.add_callback(PutAttentionBack(self.batching.passes))
        if not any(isinstance(one, CheckpointCallback) for one in self.callback_handler.callbacks):
            checkpoints = CheckpointCallback()
            checkpoints.attach(self)
            self.add_callback(checkpoints)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(dataset)
        if self.curriculum is None:
            return sampler
        self.curriculum_sampler = CurriculumSampler(sampler, self.curriculum)
        return self.curriculum_sampler

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        batch = super()._prepare_inputs(generation_batch)
        # TRL calls it for the tokens of a reward model as well.
        if "completion_mask" not in batch:
            return batch
        batch = keep_groups(self, batch)
        if self.loss_type == "token_mean":
            batch = batch | {"window_tokens": window_tokens(self, batch)}
        return smaller(self, batch)

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        inputs, prompts = off_policy.plain_rows(inputs, prompts)
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rewarded = rewards, *scoring.lengths_and_truncation(self, completion_ids_list)
        return rewards

    # `exclude_skipped` leaves alone what does it by itself.
    _calculate_rewards._excludes_skipped = True  # type: ignore[attr-defined]

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        before = {name: len(values) for name, values in self._metrics[scoring.mode_of(self)].items()}
        generating = self.batching.prefill.during(self.accelerator.unwrap_model(self.model_wrapped))
        with self._for_scoring(), generating:
            # TRL 0.24 takes the last message of a prefilled prompt away from the row, which a rescue begins from.
            rows = inputs if self.rescuer is None else copy.deepcopy(inputs)
            scored = Scored(super()._generate_and_score_completions(rows), *self._rewarded)
        for index in self._self_certainty:
            mask, rows = scoring.completion_mask(self, scored), self.rows_per_pass()
            values = self_certainty_reward.measure(self, scored.output, mask, rows)
            scoring.replace_reward(self, scored, index, values)
        if self._learns_plain:
            scored.output = off_policy.with_plain_prompts(self, inputs, scored.output)
        if self.is_redrawing:
            self.redrawn = scored
            return scored.output
        return self._finish(inputs, scored, before)

    @property
    def _learns_plain(self) -> bool:
        """Whether what is sampled now is learned with the prompts without experiences."""
        rescued = self.is_rescuing and self.rescuer is not None and self.rescuer.off_policy
        return self.model.training and (self.args.loss_context == "plain" or rescued)

    def tokenize_prompts(self, rows: Sequence[dict[str, Any]]) -> list[list[int]]:
        """Return the token ids that a generation begins from, for each row's prompt; see `_compat.tokenize_prompts`."""
        return tokenize_prompts(self, [row["prompt"] for row in rows])

    def _finish(self, inputs: Any, first: Scored, before: dict[str, int]) -> Any:
        """From the first scored batch to what is trained on."""
        totals, scored, replaced, rescued = first.totals(self), first, False, False
        if self.model.training:
            self._observe(totals)
            if self.rescuer is not None:
                scored, rescued = rescue.rescue(self, inputs, first)
            if self.args.dynamic_sampling_rounds:
                scored, replaced = redraw.redraw(self, inputs, scored)
        self._set_advantages(scored, replaced or rescued)
        scoring.withhold_constant_groups(self, scored, scored.totals(self))
        scoring.log_scores(self, first, totals, before)
        self.scored = scored
        return scored.output

    def _observe(self, totals: torch.Tensor) -> None:
        metrics = self._metrics["train"]
        for reason, count in zero_variance_reasons(totals, group_size(self)).items():
            metrics[f"groups/{reason}"].append(float(count))
        known = totals[~totals.isnan()]
        if self.curriculum is None or not len(known):
            return
        solved = (known >= self.args.curriculum_solved_reward).float().mean().item()
        metrics["curriculum/solve_rate"].append(solved)
        metrics["curriculum/target_difficulty"].append(self.curriculum.observe(solved))

    def _set_advantages(self, scored: Scored, replaced: bool) -> None:
        totals = scored.totals(self)
        if self.args.kl_place == "reward":
            totals = scoring.with_kl_in_reward(self, scored, totals, self._sampling_logps(scored))
        totals = scoring.filtered(self, scored, totals, self._group_filter)
        ours = self.args.uses_extended_advantages or self._self_certainty or self._group_filter
        if ours or replaced:
            scoring.set_advantages(self, scored, totals)
        else:
            scoring.keep_trl_advantages(self, scored)
        if self.uses_extended_loss:
            scoring.count_items(self, scored)

    def _sampling_logps(self, scored: Scored) -> torch.Tensor:
        known = scored.output.get("old_per_token_logps")
        if known is not None:
            return known
        with torch.no_grad():
            return logps_and_entropies(self, self.model, scored.output, False, self.rows_per_pass())[0]

    def rows_per_pass(self) -> int:
        """Return the rows of one forward pass without gradient, as TRL has them."""
        args = self.args
        return args.per_device_train_batch_size if self.model.training else args.per_device_eval_batch_size

    @contextmanager
    def _for_scoring(self) -> Iterator[None]:
        """Reference log-probabilities at beta 0 too, which TRL leaves out; the temperature of an evaluation.

        None for prompts that the loss does not see.
        """
        beta, config = self.beta, getattr(self, "generation_config", None)
        self.beta = 0.0 if self._learns_plain else beta or float(self.args.needs_reference)
        temperature = None if self.model.training else self.args.eval_temperature
        if temperature is not None:
            self.generation_config = with_temperature(config, temperature)
        try:
            yield
        finally:
            self.beta = beta
            if temperature is not None:
                self.generation_config = config

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = self.batching.passes(super()._get_per_token_logps_and_entropies, *args, **kwargs)
        self._last_pass = result[0].detach(), result[1]
        return result

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        metrics = self._metrics[scoring.mode_of(self)]
        before = {name: len(values) for name, values in metrics.items()}
        loss = self._extended_loss(model, inputs) if self.uses_extended_loss else super()._compute_loss(model, inputs)
        seen = loss_inputs(self, inputs, *self._last_pass)
        clips = self.uses_extended_loss or self.loss_type in _CLIPPING
        for name, value in policy_metrics(self.accelerator, seen, self.current_loss_config(), clips).items():
            set_last(metrics, name, value, before.get(name, 0))
        if self.args.skip_entropy:
            set_last(metrics, "entropy", float("nan"), before.get("entropy", 0))
        return loss * inputs["loss_scale"] if "loss_scale" in inputs else loss

    def _extended_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        logps, entropies = logps_and_entropies(self, model, inputs, not self.args.skip_entropy)
        given = loss_inputs(self, inputs, logps, entropies)
        if off_policy.OFF_POLICY in inputs and self.args.off_policy_correction != "clip":
            given = off_policy.reweighted(given, inputs[off_policy.OFF_POLICY], *self.args.off_policy_options)
        outputs = self.loss_fn(given) if self.loss_fn else policy_loss(given, self.current_loss_config())
        metrics = self._metrics[scoring.mode_of(self)]
        for name, value in outputs.metrics.items():
            local = torch.as_tensor(value, dtype=torch.float32, device=logps.device).detach().reshape(1)
            set_last(metrics, name, self.accelerator.gather(local).nanmean().item(), len(metrics[name]))
        return outputs.loss

    def current_loss_config(self) -> LossConfig:
        """Return the loss options of this moment: callbacks may have changed `epsilon_low`, `epsilon_high`, `beta`."""
        now = {"epsilon": self.epsilon_low, "epsilon_high": self.epsilon_high, "beta": self.beta}
        if self._loss_config is None:
            self._loss_config = self.args.loss_config() if self.args.uses_extended_loss else like_trl(self)
        if any(getattr(self._loss_config, name) != value for name, value in now.items()):
            self._loss_config = replace(self._loss_config, **now)
        return self._loss_config

    def compress_deltas(self, config: Any = None, output_dir: Any = None, **options: Any) -> Any:
        """Write the model as it is now as a small delta of what the run started from; every rank must call it.

        Args:
            config: a `bitdelta.BitDeltaConfig`.
            output_dir: folder of the delta, replaced if it is there; by default `bitdelta` in the run's own.
            **options: `base` and `prompts` of `bitdelta.compress_trained`.

        Returns:
            The `bitdelta.DeltaReport`; None on ranks other than 0.

        Raises:
            BitDeltaError: the run trains an adapter, the base can't be read, or the delta can't be written.
        """
        from trl_grpo_ext.bitdelta import compress_trained

        return compress_trained(self, config, output_dir, **options)
