"""Self-certainty as a reward: computed by `ExtendedGRPOTrainer` in its scoring pass, refused everywhere else."""

import inspect
from typing import Any

import torch

from trl_grpo_ext.self_certainty import self_certainty, token_self_certainty


class SelfCertainty:
    """A reward function for `ExtendedGRPOTrainer`: mean KL(U || p) over the tokens of a completion (arXiv 2505.19590).

    In nats, at least 0, at the training temperature, by the policy that sampled. It needs the token distributions,
    which no reward function is given: the trainer puts the value in the place of what this object returns.

    Raises:
        TypeError: called by a trainer that does not do so.
    """

    __name__ = "self_certainty"

    def __init__(self) -> None:
        self.computed_by_trainer = False

    def __call__(self, completions: list[Any], **kwargs: Any) -> list[float]:
        if not self.computed_by_trainer:
            raise TypeError(
                "self_certainty needs the token distributions of the policy, which TRL's GRPOTrainer does not hand to "
                "rewards: use ExtendedGRPOTrainer, or another reward."
            )
        return [0.0] * len(completions)


@torch.no_grad()
def measure(trainer: Any, batch: dict[str, Any], mask: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Return the self-certainty of each completion of a scored batch.

    Args:
        trainer: holds the model and the temperature.
        batch: prompt and completion ids and masks.
        mask: (rows, T), the completions' tokens.
        batch_size: rows per forward pass.

    Returns:
        (rows,).
    """
    parts = [slice(start, start + batch_size) for start in range(0, len(mask), batch_size)]
    return torch.cat([self_certainty(_token_values(trainer, batch, mask, rows), mask[rows]) for rows in parts])


def _token_values(trainer: Any, batch: dict[str, Any], mask: torch.Tensor, rows: slice) -> torch.Tensor:
    completions = batch["completion_ids"][rows]
    length = completions.shape[1]
    model = trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model
    # Without it the logits of the prompt are made, and thrown away.
    keep = {"logits_to_keep": length + 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits = trainer.model(
        input_ids=torch.cat([batch["prompt_ids"][rows], completions], dim=1),
        # Not the batch's own mask, which has no token of a completion that TRL leaves out of the loss.
        attention_mask=torch.cat([batch["prompt_mask"][rows], mask[rows].to(batch["prompt_mask"])], dim=1),
        use_cache=False,
        **keep,
    ).logits
    return token_self_certainty(logits[:, :-1][:, -length:] / trainer.temperature)
