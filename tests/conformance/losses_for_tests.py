"""A user's loss and group filter, named in a config as `tests.conformance.losses_for_tests:...`."""

import torch

from trl_grpo_ext import LossInputs, LossOutputs


def reinforce(inputs: LossInputs) -> LossOutputs:
    """-A log p, the mean over tokens."""
    mask = inputs.mask.bool()
    tokens = -(inputs.advantages.unsqueeze(1) * inputs.logps)[mask]
    return LossOutputs(tokens.mean() / inputs.accumulation_steps, {"reinforce/tokens": mask.sum()})


def longest(rewards: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return lengths.float()
