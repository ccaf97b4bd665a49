"""Clip range and KL coefficient steered during training, on the stock trainer too, and kept in checkpoints."""

import json

import pytest

from tests.conformance.runs import GROUP, assert_same, extended, logged, parameters, rows, stock, trained
from trl_grpo_ext import AdaptiveKLCallback, ClipScheduleCallback

MAKE = {"stock": stock, "extended": extended}


def watch(trainer, *names):
    seen, compute_loss = [], trainer._compute_loss

    def watched(model, inputs):
        seen.append(tuple(getattr(trainer, name) for name in names))
        return compute_loss(model, inputs)

    trainer._compute_loss = watched
    return seen


@pytest.mark.parametrize("make", MAKE)
def test_trl_reads_the_clip_range_at_every_micro_step(make, model, tmp_path):
    """A range of nearly nothing clips nearly everything from the second iteration on."""
    settings = {"num_iterations": 2, "max_steps": 2, "epsilon_high": 0.4}
    callback = ClipScheduleCallback("linear", final_factor=1e-6)
    trainer = MAKE[make](model, tmp_path, callbacks=[callback], **settings)
    seen = watch(trainer, "epsilon_low", "epsilon_high")
    trainer.train()
    assert seen[0] == (0.2, 0.4) and seen[-1] == pytest.approx((0.1, 0.2), rel=1e-3)
    wide = trained(MAKE[make](model, tmp_path, **settings))
    assert logged(trainer, "clip_ratio/region_mean")[1] > logged(wide, "clip_ratio/region_mean")[1]
    different = [
        not value.equal(parameters(wide)[name]) for name, value in parameters(trainer).items() if value.dim() > 1
    ]
    assert any(different)


def test_the_config_s_schedule_is_the_callback(model, tmp_path):
    settings = {"num_iterations": 2, "max_steps": 3}
    callback = ClipScheduleCallback("cosine", final_factor=0.5)
    theirs = trained(stock(model, tmp_path, callbacks=[callback], **settings))
    ours = trained(extended(model, tmp_path, clip_schedule="cosine", clip_final_factor=0.5, **settings))
    assert_same(parameters(ours), parameters(theirs), tolerance=0.0)


@pytest.mark.parametrize("make", MAKE)
def test_the_kl_coefficient_goes_to_its_target(make, model, tmp_path):
    """A target far below what is measured makes it grow by a factor of 1 + 0.1 * 0.2 a step."""
    trainer = MAKE[make](model, tmp_path, callbacks=[AdaptiveKLCallback(target=1e-6)], beta=0.1, max_steps=4)
    seen = watch(trainer, "beta")
    trainer.train()
    values = [beta for (beta,) in seen[::2]]
    # The first step is on-policy: KL 0, below the target.
    assert values == pytest.approx([0.1, 0.098, 0.098 * 1.02, 0.098 * 1.02**2], rel=1e-6)
    assert logged(trainer, "beta") == pytest.approx(values)


def test_no_coefficient_to_begin_with_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="set beta above 0"):
        trained(stock(model, tmp_path, callbacks=[AdaptiveKLCallback()]))
    with pytest.raises(ValueError, match="target of an adaptive KL coefficient"):
        AdaptiveKLCallback(target=0.0)


@pytest.mark.parametrize("restore", [False, True])
def test_what_was_learned_is_in_the_checkpoint(restore, model, tmp_path):
    def make(folder, steps):
        callbacks = [ClipScheduleCallback("adaptive", target_fraction=0.01), AdaptiveKLCallback(target=1e-6)]
        return stock(
            model, folder, callbacks=callbacks, num_iterations=2, beta=0.1, max_steps=steps, save_strategy="steps",
            save_steps=2, lr_scheduler_type="constant", restore_callback_states_from_checkpoint=restore,
        )  # fmt: skip

    first = trained(make(tmp_path, 2))
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())["stateful_callbacks"]
    kept = state["AdaptiveKLCallback"]["attributes"]["saved"]["beta"], state["ClipScheduleCallback"]
    assert kept[0] != 0.1 and kept[1]["attributes"]["saved"]["factor"] != 1.0
    resumed = make(tmp_path, 4)
    seen = watch(resumed, "beta", "epsilon_low")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert seen[0] == pytest.approx((kept[0], 0.2 * kept[1]["attributes"]["saved"]["factor"]))
    assert first.state.global_step == 2


def test_a_checkpoint_from_before_the_callback_can_be_resumed(model, tmp_path):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "beta": 0.1}
    trained(stock(model, tmp_path, **settings))
    resumed = stock(model, tmp_path, callbacks=[AdaptiveKLCallback()], **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.state.global_step == 2


# The curriculum.


def leveled():
    return rows().map(lambda row, index: {"level": float(index % 16)}, with_indices=True)


def easy(completions, level, **kwargs):
    """Solved up to level 6, whatever the answer; its length decides the rest."""
    return [(1.0 if value <= 6 else 0.0) + 0.01 * len(text) for text, value in zip(completions, level, strict=True)]


CURRICULUM = {
    "curriculum_column": "level",
    "curriculum_step": 0.2,
    "reward": easy,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "save_strategy": "steps",
    "save_steps": 3,
}


def levels_of(trainer):
    seen, generate = [], trainer._generate_and_score_completions

    def watched(inputs):
        seen.append([row["level"] for row in inputs])
        return generate(inputs)

    trainer._generate_and_score_completions = watched
    return seen


def test_the_curriculum_goes_to_where_prompts_are_sometimes_solved(model, tmp_path):
    trainer = extended(model, tmp_path, data=leveled(), max_steps=8, **CURRICULUM)
    seen = levels_of(trainer)
    trainer.train()
    targets = logged(trainer, "curriculum/target_difficulty")
    assert targets[:2] == pytest.approx([3.0, 6.0])
    assert all(3.0 <= target <= 12.0 for target in targets)
    assert max(abs(level - 0.0) for level in seen[0]) <= 1.0
    assert all(len(set(levels[i : i + GROUP])) == 1 for levels in seen for i in range(0, len(levels), GROUP))


def test_a_resumed_curriculum_draws_what_the_uninterrupted_one_draws(model, tmp_path):
    whole = extended(model, tmp_path / "whole", data=leveled(), max_steps=6, **CURRICULUM)
    seen = levels_of(whole)
    whole.train()
    resumed = extended(model, tmp_path / "whole", data=leveled(), max_steps=6, **CURRICULUM)
    again = levels_of(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert again == seen[3:]
    assert resumed.curriculum.state_dict() == whole.curriculum.state_dict()
