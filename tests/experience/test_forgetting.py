"""A bounded history: what is forgotten, what stays, and that nothing else depends on it."""

import contextlib

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.experience.callback_runs import make_trainer
from tests.experience.test_history import STEPS, contents, step
from trl_grpo_ext import ExperienceCallback, ExperienceConfig, ExperienceLibrary, Lesson
from trl_grpo_ext.experience import RolloutGroup, forgetting

LIMIT = 6
# It takes minutes here, and the sequence of steps says little.
NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
MANY = st.lists(STEPS.wrapped_strategy.element_strategy, min_size=8, max_size=30)


@pytest.fixture(scope="module", autouse=True)
def short_histories():
    """Of six operations, checked at every version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forgetting, "_EVERY", 1)
        patch.setattr(ExperienceConfig, "history_limit", LIMIT)
        yield


def value(library, statement):
    return library._store.value(statement)


def uses(library):
    return {item.id: (item.uses, item.gain) for item in library.records()}


def names(library):
    """Of live and retired records."""
    return {name for (name,) in library._store.rows("SELECT id FROM records")}


def check_tables(library):
    assert value(library, "SELECT count(*) FROM operations WHERE version <= " + str(library.horizon)) == 0
    assert (
        value(library, "SELECT count(*) FROM records WHERE NOT live AND record NOT IN (SELECT record FROM operations)")
        == 0
    )
    assert value(library, "SELECT count(*) FROM labels WHERE record NOT IN (SELECT record FROM records)") == 0
    used = "SELECT prompt FROM groups UNION SELECT prompt FROM records WHERE prompt IS NOT NULL"
    assert value(library, f"SELECT count(*) FROM prompts WHERE prompt NOT IN ({used})") == 0
    indexed = "SELECT count(*) FROM prompts WHERE indexed AND prompt NOT IN (SELECT prompt FROM records WHERE prompt NOT NULL)"
    assert value(library, indexed) == 0
    if library._store.full_text:
        searched = value(library, "SELECT count(*) FROM prompt_terms_docsize")
        assert searched == value(library, "SELECT count(*) FROM prompts WHERE indexed")
    assert library.check_integrity() == []


def largest(library):
    """Operations of the largest version: a version is forgotten whole, or not at all."""
    return max([info.added + info.retired + info.changed for info in library.history()], default=0)


@settings(max_examples=60, deadline=None, phases=NO_SHRINKING)
@given(MANY, st.data())
def test_forgetting_changes_nothing_but_how_far_one_can_go_back(steps, data):
    with ExperienceLibrary() as library, pytest.MonkeyPatch.context() as patch, ExperienceLibrary() as whole:
        states, groups, comparable = {}, set(), True
        for action, number in [("lesson", 1), *steps]:
            forgotten = names(whole) - names(library)
            patch.setattr(ExperienceConfig, "history_limit", LIMIT)
            step(library, action, number)
            patch.setattr(ExperienceConfig, "history_limit", 10**9)
            step(whole, action, number)
            states[library.version] = contents(library), library.counters()
            # A forgotten record that comes again is a new one: of equal advantages it is not the oldest any more. And
            # a forgotten group that comes again counts once more.
            again = action == "group" and number in groups and library.horizon > 0
            comparable = comparable and not forgotten & names(library) and not again
            groups |= {number} if action == "group" else set()
            if comparable:
                assert uses(library) == uses(whole)
                assert library.counters() == whole.counters() and library.version == whole.version
            assert value(library, "SELECT count(*) FROM operations") <= 1.25 * LIMIT + largest(library)
            drawn = {item.id for item in library.records("episode")}
            assert {item.id for item in library.sample_multiple(1000)} == drawn
        if library.horizon:
            check_tables(library)
            with pytest.raises(ValueError, match=f"the history reaches back to version {library.horizon}, not to"):
                library.rollback(library.horizon - 1)
        back = data.draw(st.integers(library.horizon, library.version))
        if back in states:
            library.rollback(back)
            assert (contents(library), library.counters()) == states[back]


@pytest.mark.parametrize("full_text", [True, False])
@settings(max_examples=40, deadline=None, phases=NO_SHRINKING)
@given(MANY, st.integers(1, 4))
def test_copies_forget_what_the_library_forgets(full_text, steps, every):
    with contextlib.ExitStack() as stack:
        if not full_text:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr("trl_grpo_ext.experience.store.has_full_text", lambda connection: False)
        library = stack.enter_context(ExperienceLibrary(seed=0))
        library.add(Lesson("first", timestamp=2e9))
        copy = ExperienceLibrary.from_bytes(library.to_bytes())
        for place, (action, number) in enumerate(steps):
            step(library, action, number)
            if place % every == 0 or place == len(steps) - 1:
                if copy.version < library.horizon:
                    with pytest.raises(ValueError, match="the history reaches back"):
                        library.changes_since(copy.version)
                    copy = ExperienceLibrary.from_bytes(library.to_bytes())
                copy.apply_changes(library.changes_since(copy.version))
                assert (copy.version, copy.horizon, contents(copy)) == (
                    library.version, library.horizon, contents(library)
                )  # fmt: skip
                assert copy.retrieve_episodes("prompt 1") == library.retrieve_episodes("prompt 1")
                assert list(copy.records(where={"key": 3})) == list(library.records(where={"key": 3}))
                drawn = {item.id for item in copy.records("episode")}
                # The library's sampler has not been asked for up to four steps, which may be more than is remembered.
                assert {item.id for item in copy.sample_multiple(1000)} == drawn
                assert {item.id for item in library.sample_multiple(1000)} == drawn


def test_prompts_that_are_forgotten_are_not_found_and_can_come_back(library):
    def put(prompt, number):
        group = RolloutGroup(prompt, [f"{number}{letter}" for letter in "abcd"], [1, 0, 0, 0], uid=str(number))
        return library.add_rollout_groups([group])[0]

    first = put("a red bird", 0)
    library.retire(*first)
    for number in range(1, 12):
        put("a blue stone", number)
    assert library.horizon and not library.retrieve_episodes("red bird")
    assert value(library, "SELECT count(*) FROM prompts WHERE text = 'a red bird'") == 0
    with pytest.raises(KeyError, match="never held"):
        library.text_of(first[0])
    assert put("a red bird", 0) == first
    assert [item.id for item in library.retrieve_episodes("red bird")][:1] == first


def test_a_library_that_is_opened_again_still_knows_how_far_it_reaches(tmp_path):
    with ExperienceLibrary(tmp_path / "experiences.db") as library:
        for number in range(20):
            library.add(Lesson(f"lesson {number}"))
        horizon = library.horizon
        assert [info.version for info in library.history()] == list(range(library.version, horizon, -1))
    with ExperienceLibrary(tmp_path / "experiences.db") as library:
        assert library.horizon == horizon > 0
        with pytest.raises(ValueError, match="a larger max_history"):
            library.diff(0)


def test_a_checkpoint_from_before_the_history_is_gone_back_to_and_nothing_is_lost(tmp_path):
    library = ExperienceLibrary(tmp_path / "experiences.db", seed=0)
    library.add(Lesson("Count twice."))

    def run(resume=None):
        callback = ExperienceCallback(library, dropout=0.3, seed=5)
        saving = {"max_steps": 8, "save_strategy": "steps", "save_steps": 1}
        trainer = make_trainer(tmp_path / "run", [callback], **saving)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    run()
    before, version = contents(library), library.version
    then = ExperienceLibrary.from_bytes((tmp_path / "run" / "checkpoint-1" / "experiences.db").read_bytes())
    assert library.horizon > then.version
    aside = tmp_path / f"experiences-version-{version}.db"
    with pytest.warns(UserWarning, match=f"is in .*{aside.name} now"):
        run(str(tmp_path / "run" / "checkpoint-1"))
    assert [(item.id, item.uses) for item in library.records()] == [(name, item.uses) for name, item in before.items()]
    assert library.version == version
    with ExperienceLibrary(aside, create=False) as kept:
        assert contents(kept) == before


def test_what_is_asked_seldom_is_made_anew(library):
    """The sampler and, without FTS5, the index follow the log, which has forgotten what they missed."""

    def put(number):
        responses = [f"{number}{letter}" for letter in "abcd"]
        library.add_rollout_groups([RolloutGroup(f"question {number}", responses, [1, 0, 0, 0], uid=str(number))])

    put(0)
    assert len(library.sample_multiple(100)) == len(library.retrieve_episodes("what of question 0?")) == 1
    for number in range(1, 20):
        put(number)
    assert library.horizon > 10
    assert len(library.sample_multiple(100)) == 20
    assert library.retrieve_episodes("what of question 5?")[0].record.prompt == "question 5"
