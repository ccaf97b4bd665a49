"""LLaMA-Factory's reward models (`reward_model`, of type full and api) as reward functions.

The reference is LLaMA-Factory's own PPO (`train/ppo/`): the score of a value-head model at the last token, or what its
score server answers. Unlike there, the answer is rendered as stage rm rendered it for training, template and stop word
included, from the completion's text, and by the reward model's own tokenizer.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llamafactory_plugin.errors import UsageError
from llamafactory_plugin.rendering import PromptRenderer
from llamafactory_plugin.run_arguments import RunArguments
from trl_grpo_ext.rewards import RewardAdapter, Service, ServiceError

NAME = "reward_model"


class LlamaFactoryReward(RewardAdapter):
    """What both types share: rendered rows, scored a few at a time, logged as `rewards/reward_model/...`.

    Args:
        run: the run; its template renders, its `per_device_train_batch_size` rows are scored at a time.

    Raises:
        UsageError: nothing in `reward_model` can be a reward model.
    """

    def __init__(self, run: RunArguments) -> None:
        super().__init__(NAME, run.finetuning_args.grpo_reward_errors)
        self.run = run
        self.renderer: PromptRenderer | None = None

    def model_args(self) -> Any:
        """The arguments that say which model's tokenizer renders."""
        return self.run.model_args

    @abstractmethod
    def scores(self, rows: Sequence[list[int]]) -> list[float]:
        """One score per row of token ids."""

    def load(self) -> None:
        """Load what the first call needs; a second call does nothing."""
        if self.renderer is None:
            from llamafactory.data import get_template_and_fix_tokenizer
            from llamafactory.model import load_tokenizer

            tokenizer = load_tokenizer(self.model_args())["tokenizer"]
            self.renderer = PromptRenderer(get_template_and_fix_tokenizer(tokenizer, self.run.data_args), tokenizer)

    def outcomes(self, batch: Any) -> list[Any]:
        """Score all rows; a part that fails is an error of its rows."""
        self.load()
        renderer: Any = self.renderer
        tools = batch.optional_column("tools")
        rows = [renderer.encode_answer(*row) for row in zip(batch.prompts, batch.responses(), tools, strict=True)]
        size = self.run.training_args.per_device_train_batch_size
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        return [score for part in parts for score in self._scores_or_error(part)]

    def _scores_or_error(self, part: Sequence[list[int]]) -> Sequence[Any]:
        try:
            return self.scores(part)
        except Exception as error:
            return [error] * len(part)


class ValueHeadReward(LlamaFactoryReward):
    """Type full: the model that stage rm saved, or a base model with the adapter (`reward_model_adapters`) it saved.

    The weights are loaded by `load()`, on every rank, in evaluation mode. Unbounded, on the scale of rm training.

    Raises:
        UsageError: there is no value head in the folder.
    """

    def __init__(self, run: RunArguments) -> None:
        super().__init__(run)
        self.model: Any = None
        self._check_value_head()

    def model_args(self) -> Any:
        """LLaMA-Factory's arguments for the reward model, as `create_reward_model` makes them."""
        finetuning = self.run.finetuning_args
        return type(self.run.model_args).copyfrom(
            self.run.model_args,
            model_name_or_path=finetuning.reward_model,
            adapter_name_or_path=finetuning.reward_model_adapters,
            quantization_bit=finetuning.reward_model_quantization_bit,
        )

    def _check_value_head(self) -> None:
        from llamafactory.model.model_utils.valuehead import load_valuehead_params

        args = self.model_args()
        folder = args.adapter_name_or_path[-1] if args.adapter_name_or_path else args.model_name_or_path
        if load_valuehead_params(folder, args) is None:
            raise UsageError(
                f"reward_model: {folder} has no value_head.safetensors, so stage rm has not saved it; set reward_model to "
                "the output_dir of a stage rm run, and for one with LoRA set reward_model to its base model and "
                "reward_model_adapters to that output_dir."
            )

    def load(self) -> None:
        """Load tokenizer and weights; a second call does nothing."""
        super().load()
        if self.model is None:
            from llamafactory.train.trainer_utils import create_reward_model

            self.model = create_reward_model(None, self.run.model_args, self.run.finetuning_args)

    def scores(self, rows: Sequence[list[int]]) -> list[float]:
        """The value at each row's last token."""
        renderer: Any = self.renderer
        return last_token_scores(self.model, rows, renderer.tokenizer.pad_token_id)


class ScoreServerReward(LlamaFactoryReward):
    """Type api: POSTs `{"model": "model", "messages": [text, ...]}` and reads `{"scores": [...]}`.

    The protocol of LLaMA-Factory's PPO and of its own server (`llamafactory-cli api` with `stage: rm`, at
    `/v1/score/evaluation`). Each attempt has `grpo_reward_timeout` seconds; connection errors and busy servers are
    tried again, three times.

    Raises:
        UsageError: `reward_model` is no URL.
    """

    def __init__(self, run: RunArguments) -> None:
        super().__init__(run)
        try:
            self.service = Service(run.finetuning_args.reward_model, timeout=run.finetuning_args.grpo_reward_timeout)
        except ValueError as error:
            raise UsageError(f"reward_model: with reward_model_type: api, {error}") from error

    def scores(self, rows: Sequence[list[int]]) -> list[float]:
        """What the server answers for the rendered texts.

        Raises:
            ServiceError: it does not answer, or not with one score per text.
        """
        renderer: Any = self.renderer
        answer = self.service.post({"model": "model", "messages": [renderer.decode(row) for row in rows]})
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list) or len(scores) != len(rows):
            raise ServiceError(
                f'{self.service.url}: the answer must be {{"scores": [...]}} with {len(rows)} numbers, not {str(answer)[:200]!r}'
            )
        return scores


def last_token_scores(model: Any, rows: Sequence[list[int]], pad_token_id: int) -> list[float]:
    """The value head's output at the last token of each row, padded on the right as in rm training.

    Args:
        model: LLaMA-Factory's value-head model; its forward returns (logits, loss, values), values (rows, tokens).
        rows: token ids.
        pad_token_id: fills the shorter rows, masked.
    """
    import torch

    width = max(map(len, rows))
    device = next(model.parameters()).device
    ids = torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = (torch.arange(width, device=device) < lengths.unsqueeze(1)).long()
    owner = model.pretrained_model
    owner = owner.get_base_model() if hasattr(owner, "get_base_model") else owner
    # One position of logits instead of all: nobody reads them, and they are as wide as the vocabulary.
    few = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(owner.forward).parameters else {}
    with torch.no_grad():
        values = model(input_ids=ids, attention_mask=mask, return_dict=True, use_cache=False, **few)[-1]
    return values.gather(-1, (lengths - 1).unsqueeze(1)).squeeze(1).float().tolist()


def make_reward_model(run: RunArguments) -> LlamaFactoryReward | None:
    """The reward of `reward_model`, not loaded yet; None when there is none.

    Raises:
        UsageError: nothing there can be a reward model.
    """
    if run.finetuning_args.reward_model is None:
        return None
    return (ScoreServerReward if run.finetuning_args.reward_model_type == "api" else ValueHeadReward)(run)


def parts_of(reward: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """A reward and, at any depth, what it is composed of: components, and a guard's reward, truth and fallback."""
    yield reward
    inner = [*getattr(reward, "parts", ()), getattr(reward, "truth", None), getattr(reward, "fallback", None)]
    for part in inner:
        if callable(part):
            yield from parts_of(part)
