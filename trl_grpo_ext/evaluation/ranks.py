"""One evaluation on all ranks of a trainer: batches shared out, samples gathered, scored once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list, gather_object

from trl_grpo_ext._compat import import_trl, pad_token_id, tokenize_prompts
from trl_grpo_ext.evaluation.generation import Sampling, complete_batch, inference, sample_rows
from trl_grpo_ext.evaluation.samples import Row

Result = TypeVar("Result")


def prompt_ids(trainer: Any, rows: Sequence[Row]) -> list[list[int]]:
    """Return the token ids that the trainer's rollouts of these rows would begin from."""
    if hasattr(trainer, "tokenize_prompts"):
        return [list(ids) for ids in trainer.tokenize_prompts(rows)]
    return tokenize_prompts(trainer, [row["prompt"] for row in rows])


def stop_ids(trainer: Any) -> list[int]:
    """Return the tokens that end a rollout of the trainer: those it was told, and those of its tokenizer."""
    options = getattr(trainer.args, "generation_kwargs", None) or {}
    # The first is the name that transformers has for them, the second vLLM's.
    told = options.get("eos_token_id", options.get("stop_token_ids"))
    stops = told if told is not None else getattr(trainer, "eos_token_ids", None) or [trainer.eos_token_id]
    return [int(stop) for stop in (stops if isinstance(stops, (list, tuple)) else [stops])]


def _tokenizer(trainer: Any) -> Any:
    return getattr(trainer.processing_class, "tokenizer", trainer.processing_class)


def drawn_by_all(trainer: Any, problems: Sequence[Row], sampling: Sampling) -> list[Row]:
    """Return the samples of all problems, in order, on every rank.

    Samples do not depend on how many ranks there are: batches are numbered over all of them, and each has its seed.
    """
    trl_models = import_trl().models
    accelerator, tokenizer = trainer.accelerator, _tokenizer(trainer)
    ids, pad, stops = prompt_ids(trainer, problems), pad_token_id(trainer), stop_ids(trainer)
    ranks = (accelerator.process_index, accelerator.num_processes)
    own: list[Row] = []
    with trl_models.unwrap_model_for_generation(trainer.model_wrapped, accelerator) as model, inference(model):

        def draw(prompts: list[Sequence[int]], seed: int) -> list[tuple[list[int], bool]]:
            return complete_batch(model, prompts, sampling, pad, stops, seed)

        def decode(tokens: list[int]) -> str:
            return str(tokenizer.decode(tokens, skip_special_tokens=True))

        for rows in sample_rows(problems, ids, sampling, draw, decode, ranks=ranks):
            own += rows
    gathered = sorted(gather_object(own), key=lambda row: row["number"])
    return [{name: value for name, value in row.items() if name != "number"} for row in gathered]


def on_main_process(work: Callable[[], Result]) -> Result:
    """Do something on the main process alone and return its result on every rank.

    Raises:
        ValueError: what was raised there, on every rank: none waits for one that has stopped.
    """
    from accelerate import PartialState

    outcome: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            outcome[0] = work()
        except Exception as error:
            if PartialState().num_processes == 1:
                raise
            outcome[1] = f"{type(error).__name__}: {error}"
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ValueError(f"the evaluation failed on the main process: {outcome[1]}")
    return outcome[0]
