"""`RescueCallback`: prompts at which every completion fails get hints from the library."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from trl_grpo_ext._attach import calling_trainer
from trl_grpo_ext._compat import prompt_limit
from trl_grpo_ext.callbacks import StatefulCallback
from trl_grpo_ext.experience.injection import inject as inject_text
from trl_grpo_ext.experience.library import ExperienceLibrary
from trl_grpo_ext.experience.rescue import MODES, RescueRule, check_whole, prompt_key
from trl_grpo_ext.experience.selection import Selector, TokenCounter


class RescueCallback(StatefulCallback):
    r"""Hints for prompts whose group is dead: all G rewards equal and low. For `ExtendedGRPOTrainer`.

    GRPO's gradient is zero for such a group. At the `visits`-th such visit in a row, and at every further one, r of
    the G completions are sampled again with lessons and episodes of the library in the prompt, and take the place of
    r others where the rewards then differ. Advantages are those of the mixed group. How the hinted completions are
    learned:

        on_policy_hinted   with the hint in the prompt, as sampled (Scaf-GRPO, arXiv 2510.19807; SAGE, arXiv
                           2602.03143). No correction is needed. It teaches to use hints; what the policy does without
                           them changes by transfer only. `anneal` takes the hints away over the training.
        off_policy         with the plain prompt, corrected as `off_policy_correction` of the config says (Guide-GRPO,
                           arXiv 2506.13923; LUFFY, arXiv 2504.14945; see `trl_grpo_ext.off_policy`). It teaches the
                           answer itself. "shape" is the correction for answers that are unlikely without the hint.

    A hint is given with probability p = max(0, 1 - progress / anneal), decided by a hash of seed, prompt and visit.
    The hinted rewards are in no `reward` and no `rewards/*`; see `rescue.rescue` for what is logged. An
    `ExperienceCallback` beside this one neither injects into the hinted prompts nor records their completions.

    Args:
        library: a library, or the path of its file; used on rank 0. Where an `ExperienceCallback` writes to the same
            file, give both the same object.
        mode: "on_policy_hinted" or "off_policy".
        visits: least number of low visits in a row.
        rerolls: completions of the group that are sampled again, from 1 to num_generations - 1.
        reward_at_most: highest reward that counts as low.
        inject: "lessons", "episodes" or "both".
        position: "system", "user" or "prefix"; see `injection.inject`.
        template: a text with `{experiences}` in it; by default the experiences alone.
        token_budget: most tokens of a hint; no limit by default.
        episodes: most episodes in a hint.
        same_prompt: allow episodes of the same or a near-same prompt, which give the answer away.
        where: metadata filter of the records.
        anneal: share of the training after which there are no hints any more, in (0, 1]; None never takes them away.
        seed: of the chance.

    Raises:
        TypeError: an argument of the wrong type; when it is given to another trainer.
        ValueError: an argument out of range, or that does not go with the trainer's config.
    """

    def __init__(
        self,
        library: ExperienceLibrary | str | os.PathLike[str],
        *,
        mode: str = "on_policy_hinted",
        visits: int = 2,
        rerolls: int = 2,
        reward_at_most: float = 0.0,
        inject: str = "both",
        position: str = "system",
        template: str | None = None,
        token_budget: int | None = None,
        episodes: int = 2,
        same_prompt: bool = False,
        where: Mapping[str, Any] | None = None,
        anneal: float | None = None,
        seed: int = 0,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "library", "__class__")}
        if not isinstance(library, ExperienceLibrary | str | os.PathLike):
            raise TypeError(f"library must be an ExperienceLibrary or the path of its file, not {library!r}.")
        path = None if isinstance(library, ExperienceLibrary) else os.fspath(library)
        super().__init__(library=path, **given)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}.")
        if inject == "none":
            raise ValueError("inject must be one of lessons, episodes, both, not 'none': a hint is made of something.")
        check_whole("rerolls", rerolls, 1)
        self.rule = RescueRule(visits, reward_at_most, anneal, seed)
        self.selector = Selector(inject, position, template, token_budget, episodes, 0.0, same_prompt, where, seed)
        self.mode, self.rerolls = mode, rerolls
        self.counts: dict[str, int] = {}
        self._library = library

    @property
    def off_policy(self) -> bool:
        """Whether hinted completions are learned with the plain prompt."""
        return self.mode == "off_policy"

    def state_dict(self) -> dict[str, Any]:
        """Return the low visits in a row of each prompt that has any."""
        return {"counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them."""
        self.counts = dict(state["counts"])

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check trainer and config as soon as there are both."""
        trainer = calling_trainer()
        if trainer is not None:
            self.check(trainer)

    def check(self, trainer: Any) -> None:
        """Refuse a trainer that can't rescue, and a config that does not go with the arguments.

        Raises:
            TypeError: not an ExtendedGRPOTrainer.
            ValueError: more completions to sample again than there are, or a mode that the config excludes.
        """
        if not hasattr(trainer, "rescuer"):
            raise TypeError(
                f"RescueCallback samples inside an ExtendedGRPOTrainer, which {type(trainer).__name__} is not: use "
                "trl_grpo_ext.ExtendedGRPOTrainer."
            )
        args = trainer.args
        if not self.rerolls < args.num_generations:
            raise ValueError(
                f"rerolls must be below num_generations ({args.num_generations}), so that completions without a hint "
                f"are left to compare with; not {self.rerolls}."
            )
        if args.loss_context == "plain" and not self.off_policy:
            raise ValueError(
                "mode='on_policy_hinted' keeps the hint in the prompt of the loss and loss_context='plain' takes it "
                "out: use mode='off_policy', or loss_context='injected'."
            )
        aggregation = getattr(args, "multi_objective_aggregation", "sum_then_normalize")
        if aggregation != "sum_then_normalize":
            raise ValueError(
                f"RescueCallback compares sums of rewards and does not work with multi_objective_aggregation="
                f"{aggregation!r}: use 'sum_then_normalize'."
            )
        for name, wrong in (("kl_place", "reward"), ("clip_anchor", "reference")) if self.off_policy else ():
            if getattr(args, name) == wrong:
                raise ValueError(f"mode='off_policy' does not work with {name}={wrong!r}: unset it.")

    def attach(self, trainer: Any) -> None:
        """Let the trainer ask this callback; on rank 0 open the library."""
        self.check(trainer)
        self._count = TokenCounter(trainer.processing_class)
        if trainer.accelerator.is_main_process and not isinstance(self._library, ExperienceLibrary):
            self._library = ExperienceLibrary(self._library, create=False)
        trainer.rescuer = self

    def due(self, prompts: Sequence[Any], rewards: Sequence[float | None], progress: float) -> list[int]:
        """Return the groups that are due, and count this visit; see `rescue.Rescuer`."""
        found, self.counts = self.rule.due(self.counts, list(map(prompt_key, prompts)), rewards, progress)
        return found

    def hinted(self, prompts: Sequence[Any]) -> list[Any]:
        """Return each prompt with a hint in it, or None where the library has none; on rank 0."""
        return [self._hinted(prompt) for prompt in prompts]

    def _hinted(self, prompt: Any) -> Any:
        limit, step = prompt_limit(self.trainer), self.trainer.state.global_step
        chosen = self.selector.choose(self._library, prompt, step, True, self._count, limit)  # type: ignore[arg-type]
        if not chosen.text:
            return None
        return inject_text(prompt, chosen.text, self.selector.position, self.selector.template)
