"""Rows of advantage 0 are left out of the policy's pass, and every gradient stays stock TRL's."""

from types import SimpleNamespace

import pytest
import torch

from tests.batching.models import OFF, SIZES, build, make, watched_gradients
from tests.batching.test_same_gradients import assert_equal
from tests.conformance.runs import parameters
from trl_grpo_ext.batching import without_zero_advantages


def alike_for_two_prompts(prompts, completions, **kwargs):
    pairs = zip(prompts, completions, strict=True)
    return [1.0 if prompt[0] in "s7" else float(len(text) + 2 * text.count("7")) for prompt, text in pairs]


def alike(completions, **kwargs):
    return [1.0] * len(completions)


def run(extended, folder, **settings):
    trainer = make(extended, build("qwen2", SIZES), folder, **settings)
    gradients, rows, compute = watched_gradients(trainer), [], trainer._compute_loss

    def watched(model, inputs):
        rows.append(len(inputs["advantages"]))
        return compute(model, inputs)

    trainer._compute_loss = watched
    trainer.train()
    return trainer, gradients, rows


# Groups kept together are other micro-batches, which bnpo divides by.
COMBINATIONS = [("grpo", OFF), ("bnpo", OFF), ("dapo", {})]
SLOW_COMBINATIONS = [("dr_grpo", OFF), ("dapo", OFF), ("grpo", {}), ("dr_grpo", {})]


@pytest.mark.parametrize(
    ("loss_type", "form"), [*COMBINATIONS, *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW_COMBINATIONS)]
)
def test_as_stock(loss_type, form, tmp_path):
    settings = {"loss_type": loss_type, "reward": alike_for_two_prompts}
    theirs, wanted, all_rows = run(False, tmp_path, **settings)
    ours, found, rows = run(True, tmp_path, skip_zero_advantages=True, **settings, **form)
    assert all_rows == [4] * 6 and sum(rows) < 24 and min(rows) >= 1
    for one, other in zip(found, wanted, strict=True):
        assert_equal(one, other)
    assert_equal(parameters(ours), parameters(theirs))
    steps = [torch.tensor(one.seen_losses).view(3, -1).sum(1) for one in (ours, theirs)]
    torch.testing.assert_close(*steps, rtol=1e-5, atol=1e-6)


def test_one_row_stays_of_a_micro_batch_without_any_gradient(tmp_path):
    _, gradients, rows = run(True, tmp_path, skip_zero_advantages=True, reward=alike)
    assert rows == [1] * 6
    assert all(value.abs().max() == 0 for step in gradients for value in step.values())


def test_every_rank_keeps_as_many_rows_as_the_one_that_needs_most():
    accelerator = SimpleNamespace(gather=lambda count: torch.cat([count, torch.tensor([3])]))
    batch = {"advantages": torch.tensor([0.0, 0.0, 2.0, 0.0]), "row": torch.arange(4), "items": torch.tensor(7)}
    smaller = without_zero_advantages(accelerator, batch, "grpo")
    assert smaller["row"].tolist() == [0, 1, 2]
    assert smaller["items"] == 7 and smaller["loss_scale"] == 0.75
