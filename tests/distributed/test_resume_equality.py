"""A run resumed at step k takes the steps that the straight run takes: for every feature with a state of its own."""

import pytest
import torch
from datasets import Dataset

from tests.conformance.runs import GROUP, extended, rows, stock, wordy
from tests.distributed.resume_runs import SAVING, assert_equal_from
from tests.experience.callback_runs import contents, lessons_library
from trl_grpo_ext import CheckpointCallback, ExperienceCallback, RescueCallback, apply_reward_control
from trl_grpo_ext.rewards.label_free import CollapseGuard

# Two optimizer steps per pass over a generation, and two passes: four steps with the same completions.
SHARED = {"steps_per_generation": 4, "num_iterations": 2, "max_steps": 6, "save_steps": 3, "logging_steps": 2}
ONE_PROMPT = {"per_device_train_batch_size": GROUP, "gradient_accumulation_steps": 1}


@pytest.mark.parametrize("make", [stock, extended])
def test_in_the_middle_of_a_generation_that_several_steps_share(make, model, tmp_path):
    """Its completions in their order, the ratios to the policy that sampled them, metrics of a step not logged yet."""
    # Three groups of four rows in two steps of six: one group lies on both sides.
    own = {"callbacks": [CheckpointCallback()]} if make is stock else {"keep_groups": True}
    own |= {"per_device_train_batch_size": 3}
    assert_equal_from(lambda folder: make(model, folder, **SAVING | SHARED | own), tmp_path, 3)


def test_coefficients_that_learn_and_a_reference_that_moves(model, tmp_path):
    steered = {"clip_schedule": "adaptive", "clip_target_fraction": 0.01, "kl_target": 1e-6, "beta": 0.1}
    moving = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.3}
    steps = {"num_iterations": 2, "max_steps": 4, "save_steps": 2}
    assert_equal_from(lambda folder: extended(model, folder, **SAVING | steered | moving | steps), tmp_path, 2)


def test_the_order_of_the_prompts_in_later_epochs(model, tmp_path):
    """Four prompts, one a step: from the end of an epoch, and from inside one."""
    settings = SAVING | ONE_PROMPT | {"data": rows().select(range(4)), "max_steps": 11, "save_steps": 1}
    assert_equal_from(lambda folder: extended(model, folder, **settings), tmp_path, 8, 10)


def leveled(count):
    return rows().select(range(count)).map(lambda row, index: {"level": float(index)}, with_indices=True)


def easy(completions, level, **kwargs):
    """Solved up to level 2, whatever the answer; its length decides the rest."""
    return [(1.0 if value <= 2 else 0.0) + 0.01 * len(text) for text, value in zip(completions, level, strict=True)]


def test_a_curriculum(model, tmp_path):
    """The target, and the prompts drawn in this epoch; after its end the next one draws anew."""
    curriculum = {"data": leveled(4), "reward": easy, "curriculum_column": "level", "curriculum_step": 0.4}
    settings = SAVING | ONE_PROMPT | curriculum | {"max_steps": 7, "save_steps": 1}
    straight, *resumed = assert_equal_from(lambda folder: extended(model, folder, **settings), tmp_path, 4, 6)
    for trainer in resumed:
        assert trainer.curriculum.state_dict() == straight.curriculum.state_dict()


def by_prompt(prompts, completions, **kwargs):
    """Groups of two prompts have nothing to compare, but for those of one of them that are hinted."""
    pairs = zip(prompts, completions, strict=True)
    return [0.0 if prompt[0] in "s7" else float(len(text) + text.count("#")) for prompt, text in pairs]


def test_experiences_rescue_and_prompts_drawn_again(model, tmp_path):
    """The library as it was, the failures counted so far, and the prompts that take the place of dead groups."""
    names = [f"{first} {second} " for first in ("say", "1", "7", "#") for second in "17#a"]
    drawing = {"data": Dataset.from_dict({"prompt": names * 2}), "reward": by_prompt, "dynamic_sampling_rounds": 1}

    def make(folder):
        folder.mkdir()
        library = (
            lessons_library(folder / "experiences.db") if folder.name == "straight" else folder / "experiences.db"
        )
        experiences = ExperienceCallback(library, inject="both", position="prefix", dropout=0.4, template=None)
        hints = RescueCallback(experiences.library, visits=2, position="prefix", template=None)
        steps = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 5, "save_steps": 3}
        return extended(model, folder, callbacks=[experiences, hints], **SAVING | drawing | steps)

    trainers = assert_equal_from(make, tmp_path, 3)
    callbacks = [trainer.callback_handler.callbacks for trainer in trainers]
    ours = [{type(one): one for one in found} for found in callbacks]
    straight, resumed = (contents(found[ExperienceCallback].library) for found in ours)
    assert resumed == straight
    assert ours[0][RescueCallback].counts == ours[1][RescueCallback].counts != {}


def truth(completions, **kwargs):
    return [float("7" in text) for text in completions]


def test_rewards_that_remember(model, tmp_path):
    """A guard that watches for a collapse, inside a control with a generator of its own."""
    data = rows().map(lambda row, index: {"canary": index % 2 == 0}, with_indices=True)

    def make(folder):
        guard = CollapseGuard(wordy, truth, window=2, min_rise=0.0, min_drop=1e-6, patience=9, train_on_canaries=True)
        rewards = apply_reward_control([guard], "shuffled", seed=1)
        steps = {"max_steps": 4, "save_steps": 1, "logging_steps": 2}
        return extended(model, folder, data=data, reward=rewards, callbacks=[guard.callback()], **SAVING | steps)

    straight, resumed = (one.reward_funcs[0] for one in assert_equal_from(make, tmp_path, 3))
    assert resumed.state_dict() == straight.state_dict()
    assert resumed.__wrapped__.state_dict() == straight.__wrapped__.state_dict()


@pytest.mark.slow
def test_another_number_of_rows_is_gone_on_from_with_new_completions(model, tmp_path, caplog):
    settings = SAVING | SHARED
    extended(model, tmp_path, **settings).train()
    other = extended(model, tmp_path, **settings | {"steps_per_generation": 2})
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert other.state.global_step == 6
    assert "new completions are sampled" in caplog.text
    assert all(torch.isfinite(value).all() for value in other.model.parameters())
