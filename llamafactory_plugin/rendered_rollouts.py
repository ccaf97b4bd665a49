"""TRL 0.24's rollouts with LLaMA-Factory's rendering and stop words; below everything else that our trainers add."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import GenerationConfig

from llamafactory_plugin.rendering import PLAIN_PROMPT, PromptRenderer
from llamafactory_plugin.reward_log import LoggedReward, RewardLog, mean_over_ranks, with_extras
from llamafactory_plugin.rollouts import FixedEncoding, StopToken, cut_after_stop
from trl_grpo_ext import SelfCertainty, import_trl

LOGGED_COLUMNS = ("solution",)
# TRL 0.24's `is_conversational` looks at one of these keys, in no fixed order; with a text there (the chosen answer of
# a ranking set) it may take rows whose prompts are messages for plain text.
AMBIGUOUS_COLUMNS = frozenset({"chosen", "rejected", "completion", "messages"})
# Column of a scored batch: the number of each row in `RenderedRollouts.rows`.
ROW = "llamafactory_row"


class RenderedRollouts(import_trl().GRPOTrainer):  # type: ignore[misc]
    """Prompt ids, stop words and tools of LLaMA-Factory's Template; what rewards log; the rows of the completions file.

    Overridden seams of TRL 0.24: `_generate_single_turn`, `_generate_and_score_completions` and `_calculate_rewards`.
    It stands between TRL's trainer and `ExtendedGRPOTrainer`, which draws prompts again: what it draws is rendered and
    logged like every other row.

    Attributes:
        rows: the rows of all ranks that were scored since `rows` was emptied, for the completions file. The batch's
            column `ROW` tells which of them each row of the batch is, also when groups were replaced.
    """

    def set_renderer(self, renderer: PromptRenderer) -> None:
        """Say how prompts are rendered; before TRL's `__init__`."""
        self.renderer = renderer
        self.rows: list[dict[str, Any]] = []
        self._stop_token_ids = frozenset(renderer.stop_token_ids())
        self._rendered_columns: Sequence[dict[str, Any]] = ()
        self._reward_log = RewardLog()

    def set_stop_tokens(self) -> None:
        """Let TRL know every stop token; after its `__init__`."""
        self.eos_token_id = StopToken(self.renderer.tokenizer.eos_token_id, sorted(self._stop_token_ids))

    def with_log(self, rewards: Sequence[Any]) -> list[Any]:
        """The reward functions with `log_metric` and `log_extra`; what the trainer computes itself stays as it is."""
        return [
            reward if isinstance(reward, SelfCertainty) else LoggedReward(reward, self._reward_log, rewards)
            for reward in rewards
        ]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rendered_columns = [{name: row.get(name) for name in ("tools", PLAIN_PROMPT)} for row in inputs]
        self._injected = [injected_prompt(row) for row in inputs]
        self._hidden = [{name: row[name] for name in AMBIGUOUS_COLUMNS & row.keys()} for row in inputs]
        visible = [{name: row[name] for name in row if name not in AMBIGUOUS_COLUMNS} for row in inputs]
        first = len(self.rows) + self.accelerator.process_index * len(inputs)
        output = super()._generate_and_score_completions(visible)
        return output | {ROW: torch.arange(first, first + len(inputs), device=output["advantages"].device)}

    def _generate_single_turn(self, prompts: list[Any], images: Any) -> Any:
        columns = zip(prompts, self._rendered_columns, strict=True)
        prompt_ids = [self.renderer.encode_row({**others, "prompt": prompt}) for prompt, others in columns]
        rendered = [self._vllm_prompt(ids) if self.use_vllm else self.renderer.decode(ids) for ids in prompt_ids]
        with self._rendered(prompt_ids), plain_generation_config(self.model):
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
            | injected
            for row, prompt, completion, ids, injected in zip(
                inputs, prompts, completions, completion_ids_list, self._injected, strict=True
            )
        ]
        metrics, extras = self._reward_log.take()
        self.rows += gather_object(with_extras(rows, extras))
        logged = self._metrics["train" if self.model.training else "eval"]
        for name, value in mean_over_ranks(gather_object([metrics])).items():
            logged[name].append(value)
        return rewards

    def _vllm_prompt(self, prompt_ids: Sequence[int]) -> Any:
        # vLLM would add a second bos token to a text that begins with one; its server API takes texts only.
        if self.vllm_mode == "colocate":
            return {"prompt_token_ids": prompt_ids}
        return self.renderer.decode(without_added_bos(self.renderer.tokenizer, prompt_ids))

    @contextmanager
    def _rendered(self, prompt_ids: Sequence[Sequence[int]]) -> Iterator[None]:
        tokenizer, self.processing_class = self.processing_class, FixedEncoding(self.processing_class, prompt_ids)
        try:
            yield
        finally:
            self.processing_class = tokenizer


def without_added_bos(tokenizer: Any, prompt_ids: Sequence[int]) -> Sequence[int]:
    """Prompt ids without the token that this tokenizer puts before every text by itself, where they begin with it."""
    added = list(tokenizer("").input_ids[:1])
    return prompt_ids[1:] if added and list(prompt_ids[:1]) == added else prompt_ids


def injected_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """What the completions file says of a row whose prompt has something injected; nothing of others."""
    plain, prompt = row.get(PLAIN_PROMPT), row["prompt"]
    # A copy: TRL 0.24 takes the last message of a prefilled prompt away.
    return {} if plain is None or plain == prompt else {"injected_prompt": list(prompt)}


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
