"""A plain PPO step (arXiv 1707.06347) on top of TRL's GRPOTrainer: the same generation, the same log-probabilities.

TRL 1.x has no PPOTrainer, and that of TRL 0.24 keeps the logits of every generated token and those of the prompts;
measured against it, any GRPO would look good. This one adds to GRPO what PPO needs and nothing else: a value network of
the same size, its pass over the completions before the update, generalised advantages (arXiv 1506.02438), and its loss.
One epoch, one minibatch, no reference model: PPO at its cheapest.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen2Model

from trl_grpo_ext import import_trl
from trl_grpo_ext._compat import logps_and_entropies

DISCOUNT, TRACE, CLIP, VALUE_CLIP, VALUE_WEIGHT = 1.0, 0.95, 0.2, 0.2, 0.1


class ValueNetwork(torch.nn.Module):
    """A backbone like the policy's, and one number per token."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.backbone = Qwen2Model(config)
        self.head = torch.nn.Linear(config.hidden_size, 1)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, keep: int) -> torch.Tensor:
        """(rows, keep): what is expected before each of the last `keep` tokens."""
        hidden = self.backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return self.head(hidden[:, -keep - 1 : -1]).squeeze(-1)


def generalised_advantages(rewards: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """A_t = delta_t + gamma lambda A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t; (rows, T)."""
    later = torch.zeros_like(values[:, 0])
    found = []
    for index in reversed(range(values.shape[1])):
        following = values[:, index + 1] if index + 1 < values.shape[1] else torch.zeros_like(later)
        later = rewards[:, index] + DISCOUNT * following - values[:, index] + DISCOUNT * TRACE * later
        found.append(later)
    return torch.stack(found[::-1], dim=1)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Over the tokens of the mask."""
    return (values * mask).sum() / mask.sum()


class ReferencePPO(import_trl().GRPOTrainer):  # type: ignore[misc]
    """GRPO's trainer with a value network; its parameters are the policy's and the network's."""

    def __init__(self, model: Any, **kwargs: Any) -> None:
        # A part of the model, so that the optimizer and the clipping have its parameters too.
        model.value_network = ValueNetwork(model.config)
        super().__init__(model, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        self.rewards = super()._calculate_rewards(*args, **kwargs)
        return self.rewards

    def _values(self, batch: dict[str, Any]) -> torch.Tensor:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        with self.accelerator.autocast():
            return self.model.value_network(ids, mask, batch["completion_ids"].shape[1])

    @torch.no_grad()
    def _generate_and_score_completions(self, inputs: Any) -> Any:
        batch = super()._generate_and_score_completions(inputs)
        mask = batch["completion_mask"]
        values = self._values(batch).float() * mask
        rewards = torch.zeros_like(values).scatter_(1, mask.sum(1, keepdim=True) - 1, self.rewards.to(values))
        advantages = generalised_advantages(rewards, values) * mask
        mean = masked_mean(advantages, mask)
        spread = masked_mean((advantages - mean) ** 2, mask).sqrt() + 1e-8
        batch |= {"old_values": values, "returns": advantages + values, "advantages": (advantages - mean) / spread}
        return batch

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        mask, advantages, old_values = (inputs[name] for name in ("completion_mask", "advantages", "old_values"))
        logps = logps_and_entropies(self, model, inputs, True)[0]
        ratio = (logps - logps.detach()).exp()
        gains = torch.min(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
        values = self._values(inputs).float()
        clipped = torch.clamp(values, old_values - VALUE_CLIP, old_values + VALUE_CLIP)
        errors = torch.max((values - inputs["returns"]) ** 2, (clipped - inputs["returns"]) ** 2)
        return masked_mean(VALUE_WEIGHT * 0.5 * errors - gains, mask) / self.args.gradient_accumulation_steps
