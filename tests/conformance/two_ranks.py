"""Run by torchrun: stock and extended trainers on two ranks; each rank compares the parameters and prints a verdict."""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from torch.distributed import get_world_size

from tests.conformance.runs import GROUP, assert_moved, assert_same, extended, logged, parameters, stock, trained
from tests.ranks import leave


def by_prompt(prompts, completions, **kwargs):
    pairs = zip(prompts, completions, strict=True)
    return [1.0 if prompt[0] in "s7" else float(len(text) + text.count("#")) for prompt, text in pairs]


def same_parameters(model, folder):
    """Groups of four rows lie on both ranks, two rows each."""
    for settings in (
        {"loss_type": "grpo", "beta": 0.1, "num_iterations": 2},
        {"loss_type": "dapo"},
        {"loss_type": "bnpo", "scale_rewards": "batch"},
    ):
        settings |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        theirs = trained(stock(model, folder, **settings))
        ours = extended(model, folder, loss_backend="extended", advantage_clip=1e6, **settings)
        before = parameters(ours)
        ours.train()
        assert ours.accelerator.num_processes == 2
        assert_moved(parameters(ours), before)
        assert_same(parameters(ours), parameters(theirs))


def one_mean_over_all_tokens(model, folder):
    """token_mean on two ranks with two rows each is token_mean on one rank with four: the loss says it."""
    trainer = extended(
        model,
        folder,
        loss_type="token_mean",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        max_steps=1,
    )
    seen, compute_loss = [], trainer._compute_loss

    def watched(model, inputs):
        loss, mask = compute_loss(model, inputs), inputs["completion_mask"]
        surrogate = -(mask.sum(-1) * inputs["advantages"]).sum()
        seen.append(torch.stack([loss.detach(), surrogate, mask.sum().float()]))
        return loss

    trainer._compute_loss = watched
    trainer.train()
    ranks = trainer.accelerator.gather(seen[0][None])
    assert torch.isclose(ranks[:, 0].mean(), ranks[:, 1].sum() / ranks[:, 2].sum(), atol=1e-5), ranks


def drawn_again(model, folder):
    """Groups of four rows lie on both ranks; replaced ones too, and every rank has the same tables."""
    names = [f"{first} {second} " for first in ("say", "1", "7", "#") for second in "17#a"]
    trainer = extended(
        model,
        folder,
        data=Dataset.from_dict({"prompt": names * 4}),
        reward=by_prompt,
        dynamic_sampling_rounds=2,
        zero_variance_groups="drop",
        loss_type="grpo",
        per_device_train_batch_size=6,
        gradient_accumulation_steps=1,
        max_steps=2,
    )
    seen, generate = [], trainer._generate_and_score_completions

    def watched(inputs):
        again, output = trainer.is_redrawing, generate(inputs)
        seen.append((again, dict(output)))
        return output

    trainer._generate_and_score_completions = watched
    trainer.train()
    assert sum(logged(trainer, "sampling/groups_replaced")) > 0
    last = [output for again, output in seen if not again][-1]
    world = trainer.accelerator.gather(last["advantages"])
    rewards = torch.tensor(by_prompt(list(trainer._logs["prompt"]), list(trainer._logs["completion"])))
    groups = rewards.view(-1, GROUP)
    expected = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(world, expected.flatten(), rtol=1e-3, atol=1e-3)
    texts = trainer.processing_class.batch_decode(last["completion_ids"], skip_special_tokens=True)
    first = trainer.accelerator.process_index * 6
    assert texts == list(trainer._logs["completion"])[first : first + 6]


if __name__ == "__main__":
    same_parameters(Path(sys.argv[1]), Path(sys.argv[2]))
    one_mean_over_all_tokens(Path(sys.argv[1]), Path(sys.argv[2]))
    drawn_again(Path(sys.argv[1]), Path(sys.argv[2]))
    assert get_world_size() == 2
    leave()
