"""The library beside each checkpoint, and what a resumed run goes on with."""

import pytest
import torch

from tests.experience.callback_runs import (
    GROUP,
    contents,
    lessons_library,
    make_trainer,
    parameters,
    watched_training,
)
from trl_grpo_ext import ExperienceCallback, ExperienceLibrary, Lesson
from trl_grpo_ext.experience import ExperienceError

STEPS, AT = 4, 2
SAVING = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": AT, "save_only_model": False}


def spread(completions, **kwargs):
    return [float(place % GROUP) for place, _ in enumerate(completions)]


def run(folder, library, resume=None, **settings):
    callback = ExperienceCallback(library, dropout=0.3, seed=5)
    trainer = make_trainer(folder, [callback], rewards=[spread], **SAVING | settings)
    seen = watched_training(trainer, resume_from_checkpoint=resume)
    return trainer, seen["generated"]


@pytest.fixture
def first(tmp_path):
    """An uninterrupted run: trainer, prompts, and its library's file."""
    path = tmp_path / "experiences.db"
    with lessons_library(path) as library:
        trainer, prompts = run(tmp_path / "first", library)
        yield trainer, prompts, library, tmp_path / "first" / f"checkpoint-{AT}"


def test_the_checkpoint_has_the_library_of_its_step(first):
    _, _, library, checkpoint = first
    then = ExperienceLibrary.from_bytes((checkpoint / "experiences.db").read_bytes())
    assert [info.step for info in then.history() if info.cause == "rollouts"] == [2, 1]
    assert then.stats().total_rollouts == library.stats().total_rollouts // 2
    end = checkpoint.with_name(f"checkpoint-{STEPS}") / "experiences.db"
    assert contents(ExperienceLibrary.from_bytes(end.read_bytes())) == contents(library)


def test_the_file_is_rolled_back_and_what_was_newer_is_not_lost(first, tmp_path):
    stock, all_prompts, library, checkpoint = first
    library.add(Lesson("Learned later."))
    newest, before = library.version, contents(library)
    trainer, prompts = run(tmp_path / "resumed", library, str(checkpoint))
    causes = [info.cause for info in library.history() if info.version > newest]
    assert causes == ["rollouts", "rollouts", f"rollback to {newest - 3}"]
    assert not any("Learned later" in text for text in prompts)
    assert prompts == all_prompts[len(all_prompts) // 2 :]
    assert torch.equal(parameters(trainer), parameters(stock))
    assert library.stats().total_rollouts == STEPS * 2 * GROUP
    assert contents(library) == [item for item in before if item[0] != "Learned later."]
    library.rollback(newest)
    assert contents(library) == before


def test_a_new_file_takes_the_checkpoint_s_library_over(first, tmp_path):
    stock, all_prompts, library, checkpoint = first
    new = ExperienceLibrary(tmp_path / "new.db")
    trainer, prompts = run(tmp_path / "resumed", new, str(checkpoint))
    assert prompts == all_prompts[len(all_prompts) // 2 :]
    assert torch.equal(parameters(trainer), parameters(stock))
    assert contents(new) == contents(library)


def test_the_last_checkpoint_by_true(first, tmp_path):
    _, _, library, _ = first
    newest, before = library.version, contents(library)
    library.add(Lesson("Learned later."))
    run(tmp_path / "first", library, True, max_steps=STEPS + 1)
    assert [info.cause for info in library.history(2)] == ["rollouts", f"rollback to {newest}"]
    assert contents(library)[: len(before)] == before


def test_another_library_is_refused(first, tmp_path):
    *_, checkpoint = first
    with pytest.raises(ExperienceError, match=r"is not the library that the run of .*checkpoint-2 wrote to"):
        run(tmp_path / "resumed", lessons_library(texts=("Another.",)), str(checkpoint))


def test_a_checkpoint_without_a_library_is_gone_on_from_with_a_warning(first, tmp_path):
    *_, checkpoint = first
    (checkpoint / "experiences.db").unlink()
    library = lessons_library()
    with pytest.warns(UserWarning, match="goes on as it is"):
        run(tmp_path / "resumed", library, str(checkpoint))
    assert library.stats().total_rollouts == 2 * 2 * GROUP
