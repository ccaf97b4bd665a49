"""`ExperienceCallback` on TRL's own trainer: what is generated from, what rewards see, what the library keeps."""

import inspect
from collections import Counter

import pytest
import torch
from transformers import Trainer, TrainingArguments

from tests.experience.callback_runs import (
    GROUP,
    LESSONS,
    QUESTIONS,
    build_model,
    contents,
    lessons_library,
    logged,
    make_trainer,
    parameters,
    rows,
    text_of,
    vowels,
    watched_training,
    watching,
)
from trl_grpo_ext import ExperienceCallback, ExperienceLibrary
from trl_grpo_ext._compat import trl_version
from trl_grpo_ext.experience import Lesson, lessons_text
from trl_grpo_ext.experience.callback import GENERATE, REWARD

HINTS = lessons_text([Lesson(text) for text in LESSONS])
ROLLOUTS = 2 * 2 * GROUP


def spread(completions, **kwargs):
    """Never the same twice in a group."""
    return [float(place % GROUP) for place, _ in enumerate(completions)]


# Injection.


@pytest.mark.parametrize(
    "position, conversational, expected",
    [
        ("system", False, "{hints}\n\n{question}"),
        ("system", True, "<system>{hints}\n\nBe brief.<user>{question}<assistant>"),
        ("user", True, "<system>Be brief.<user>{hints}\n\n{question}<assistant>"),
        ("prefix", True, "<system>Be brief.<user>{hints}<assistant>Understood.<user>{question}<assistant>"),
    ],
)
def test_generation_and_loss_see_the_experiences(tmp_path, position, conversational, expected):
    callback = ExperienceCallback(lessons_library(), position=position, record=False)
    trainer = make_trainer(tmp_path, [callback], data=rows(conversational))
    seen = watched_training(trainer)
    wanted = {expected.format(hints=HINTS, question=question) for question in QUESTIONS}
    assert set(seen["generated"]) <= wanted and set(seen["learned"]) <= wanted
    assert Counter(seen["generated"]) == Counter(seen["learned"])
    groups = [seen["generated"][start : start + GROUP] for start in range(0, len(seen["generated"]), GROUP)]
    assert len(groups) == 4 and all(len(set(group)) == 1 for group in groups)


def test_template_surrounds_the_experiences(tmp_path):
    callback = ExperienceCallback(lessons_library(), template="<<{experiences}>>", record=False)
    seen = watched_training(make_trainer(tmp_path, [callback], max_steps=1))
    assert all(text.startswith(f"<<{HINTS}>>\n\n") for text in seen["generated"])


@pytest.mark.parametrize("conversational", [False, True])
def test_rewards_see_the_plain_row(tmp_path, conversational):
    def run(folder, *callbacks):
        calls = []

        def reward(prompts, completions, **columns):
            calls.append((sorted(columns), prompts, columns["answer"]))
            return vowels(completions)

        data = rows(conversational, answer="x")
        trainer = make_trainer(folder, callbacks, data=data, rewards=[reward], learning_rate=0.0)
        trainer.train()
        return calls

    assert run(tmp_path / "with", ExperienceCallback(lessons_library())) == run(tmp_path / "without")


def test_the_beginning_of_an_answer_stays_the_stock_one_s_for_rewards(tmp_path):
    """TRL 0.24 moves it from the prompt into the completion, TRL 1.16 leaves it."""
    prompt = [{"role": "user", "content": "spell seven"}, {"role": "assistant", "content": "s e"}]
    seen = []

    def reward(prompts, completions, **columns):
        seen.append((prompts, [text_of(item)[:3] == "s e" for item in completions]))
        return vowels(completions)

    from datasets import Dataset

    data = Dataset.from_list([{"prompt": prompt}] * 8)
    for callbacks in ([], [ExperienceCallback(lessons_library(), position="user", record=False)]):
        make_trainer(tmp_path, callbacks, data=data, rewards=[reward], max_steps=1).train()
    assert seen[0] == seen[1]


# Removed, or with nothing to inject: the stock run.


@pytest.mark.parametrize("record", [False, True])
def test_an_empty_library_gives_the_stock_run_bit_for_bit(tmp_path, monkeypatch, record):
    def forbidden(*arguments):
        raise AssertionError("a row was copied")

    monkeypatch.setattr("trl_grpo_ext.experience.callback.injected_row", forbidden)
    monkeypatch.setattr("trl_grpo_ext.experience.callback.plain_row", forbidden)
    stock = make_trainer(tmp_path / "stock", max_steps=3)
    stock.train()
    callback = ExperienceCallback(ExperienceLibrary(), record=record)
    trainer = make_trainer(tmp_path / "ours", [callback], max_steps=3)
    trainer.train()
    assert torch.equal(parameters(trainer), parameters(stock))
    assert not torch.equal(parameters(trainer), parameters(make_trainer(tmp_path)))
    assert logged(trainer, "experience/injected_share") == [0.0] * 3


def test_lessons_change_the_run(tmp_path):
    stock = make_trainer(tmp_path / "stock")
    stock.train()
    trainer = make_trainer(tmp_path / "ours", [ExperienceCallback(lessons_library(), record=False)])
    trainer.train()
    assert not torch.equal(parameters(trainer), parameters(stock))


def test_the_trainer_gets_its_methods_back(tmp_path):
    callback = ExperienceCallback(lessons_library(), record=False)
    trainer = make_trainer(tmp_path, [callback], max_steps=1)
    assert {GENERATE, REWARD} <= vars(trainer).keys()
    trainer.train()
    assert not {GENERATE, REWARD} & vars(trainer).keys()
    trainer.remove_callback(callback)
    assert not any(HINTS in text for text in watched_training(trainer)["generated"])


def test_a_method_that_somebody_else_wrapped_after_us_is_left_to_them(tmp_path):
    callback = ExperienceCallback(lessons_library(), record=False)
    trainer = make_trainer(tmp_path, [callback], max_steps=1)
    ours, calls = getattr(trainer, GENERATE), []
    trainer._generate_and_score_completions = lambda inputs: (calls.append(1), ours(inputs))[1]
    assert all(HINTS in text for text in watched_training(trainer)["generated"])
    with watching(trainer) as seen:
        trainer.evaluate()
    assert len(calls) == 2 and not any(HINTS in text for text in seen["generated"])


# Observation.


def test_a_run_is_recorded(tmp_path):
    library = ExperienceLibrary()
    trainer = make_trainer(tmp_path, [ExperienceCallback(library)], rewards=[spread])
    trainer.train()
    stats = library.stats()
    assert stats.total_rollouts == ROLLOUTS
    # Rewards 0 to 3: the two above the mean are stored.
    assert stats.total_stored == ROLLOUTS // 2
    episodes = [item.record for item in library.records("episode")]
    assert {episode.prompt for episode in episodes} <= set(QUESTIONS)
    assert Counter(episode.advantage for episode in episodes) == {0.5: 4, 1.5: 4}
    assert [info.step for info in library.history() if info.cause == "rollouts"] == [2, 1]
    for name, wanted in {"size": [4.0, 8.0], "storage_efficiency": [0.5] * 2, "retention_rate": [1.0] * 2}.items():
        assert logged(trainer, f"experience/{name}") == wanted


def test_rewards_are_weighted_and_missing_ones_left_out(tmp_path):
    def partly(completions, **kwargs):
        return [None if place % GROUP == 3 else 1.0 for place, _ in enumerate(completions)]

    def partly_too(completions, **kwargs):
        return [None if place % GROUP > 1 else float(place % GROUP) for place, _ in enumerate(completions)]

    library = ExperienceLibrary()
    callback = ExperienceCallback(library)
    make_trainer(tmp_path, [callback], rewards=[partly, partly_too], reward_weights=[1.0, 10.0], max_steps=1).train()
    # Totals of a group: 1, 11, 1 and none.
    assert library.stats().total_rollouts == ROLLOUTS // 2
    assert [item.record.reward for item in library.records("episode")] == [11.0, 11.0]


def test_conversations_are_stored_as_plain_text(tmp_path):
    library = lessons_library()
    make_trainer(tmp_path, [ExperienceCallback(library)], data=rows(True), rewards=[spread], max_steps=1).train()
    episodes = [item.record for item in library.records("episode")]
    assert len(episodes) == 4 and {episode.prompt for episode in episodes} <= set(QUESTIONS)


def test_an_identical_run_stores_nothing_twice(tmp_path):
    path = tmp_path / "experiences.db"
    states = []
    for folder in ("one", "two"):
        with lessons_library(path) as library:
            callback = ExperienceCallback(library, dropout=0.5, seed=3)
            make_trainer(tmp_path / folder, [callback], rewards=[spread]).train()
            states.append((library.stats(), contents(library)))
    assert states[0] == states[1] and states[0][0].total_rollouts == ROLLOUTS


def test_metadata_columns_become_metadata(tmp_path):
    library = ExperienceLibrary()
    callback = ExperienceCallback(library, metadata_columns=["domain"])
    make_trainer(tmp_path, [callback], data=rows(domain="birds"), rewards=[spread], max_steps=1).train()
    assert len(list(library.records("episode", {"domain": "birds"}))) == 4


def test_an_evaluation_in_between_is_not_recorded(tmp_path):
    library = ExperienceLibrary()
    make_trainer(
        tmp_path, [ExperienceCallback(library)], rewards=[spread], eval_strategy="steps", eval_steps=1
    ).train()
    assert library.stats().total_rollouts == ROLLOUTS


def test_nothing_is_recorded_without_record(tmp_path):
    library = lessons_library()
    trainer = make_trainer(tmp_path, [ExperienceCallback(library, record=False)], rewards=[spread], max_steps=1)
    trainer.train()
    callback = ExperienceCallback(library)
    callback.attach(trainer)
    with watching(trainer) as seen:
        metrics = trainer.evaluate()
    assert seen["generated"] and all(HINTS in text for text in seen["generated"])
    assert metrics["eval_loss"] is not None and library.stats().total_rollouts == 0


# Episodes, dropout, budget.


def test_episodes_are_worked_examples_of_other_prompts_in_evaluation(tmp_path):
    library = ExperienceLibrary()
    for question in QUESTIONS:
        library.add_rollout_group([(question, f"answer to {question}"), (question, "wrong")] * 2, [1.0, 0.0] * 2)
    library.add_rollout_group([("what is one?", "1!"), ("what is one?", "2!")] * 2, [1.0, 0.0] * 2)
    callback = ExperienceCallback(library, inject="episodes", record=False, same_prompt=True)
    trainer = make_trainer(tmp_path, [callback], max_steps=1, learning_rate=0.0)
    with watching(trainer) as seen:
        trainer.evaluate()
        evaluated = seen["generated"][:]
        trainer.train()
    for text in evaluated:
        question = text.split("\n\n")[-1]
        assert f"answer to {question}" not in text
    assert any("Q: what is one?\nA: 1!" in text for text in evaluated if text.endswith(QUESTIONS[0]))
    trained = seen["generated"][len(evaluated) :]
    assert trained and all(f"answer to {text.split(chr(10) * 2)[-1]}" in text for text in trained)


def test_both_kinds_lessons_first(tmp_path):
    library = lessons_library()
    library.add_rollout_group([("name a red thing", "a bird"), ("name a red thing", "no")] * 2, [1.0, 0.0] * 2)
    callback = ExperienceCallback(library, inject="both", record=False)
    seen = watched_training(make_trainer(tmp_path, [callback], data=rows(questions=QUESTIONS[1:2]), max_steps=1))
    assert set(seen["generated"]) == {f"{HINTS}\n\nQ: name a red thing\nA: a bird\n\n{QUESTIONS[1]}"}


def test_dropout_leaves_out_whole_groups_and_is_the_measure(tmp_path):
    def bonus(prompts, completions, **kwargs):
        return [float(QUESTIONS.index(prompt)) + place % 2 for place, prompt in enumerate(prompts)]

    library = lessons_library()
    callback = ExperienceCallback(library, dropout=0.5, seed=1)
    trainer = make_trainer(
        tmp_path, [callback], rewards=[bonus], max_steps=4, per_device_train_batch_size=4 * GROUP, learning_rate=0.0
    )
    seen = watched_training(trainer)["generated"]
    assert all(len(set(seen[start : start + GROUP])) == 1 for start in range(0, len(seen), GROUP))
    gains, uses = 0.0, 0
    for step in range(4):
        part = seen[step * 16 : step * 16 + 16 : GROUP]
        means = {text: QUESTIONS.index(text.split("\n\n")[-1]) + 0.5 for text in part}
        with_hints = [means[text] for text in part if HINTS in text]
        without = [means[text] for text in part if HINTS not in text]
        assert logged(trainer, "experience/injected_share")[step] == len(with_hints) / 4
        if with_hints:
            assert logged(trainer, "experience/tokens")[-1] == len(HINTS)
        if with_hints and without:
            uses += len(with_hints)
            gains += sum(mean - sum(without) / len(without) for mean in with_hints)
    assert uses > 0 and 0 < sum(logged(trainer, "experience/injected_share")) < 4
    lessons = list(library.records("lesson"))
    assert [item.uses for item in lessons] == [uses] * 2
    assert [item.gain for item in lessons] == pytest.approx([gains] * 2)
    logs = [entry for entry in trainer.state.log_history if "experience/injected_share" in entry]
    assert any({"experience/reward_with", "experience/reward_without"} <= entry.keys() for entry in logs)


@pytest.mark.parametrize("budget, expected", [(len(HINTS) + 4, LESSONS), (len(HINTS) + 3, LESSONS[1:]), (5, ())])
def test_the_budget_holds_with_heading_and_template(tmp_path, budget, expected):
    callback = ExperienceCallback(lessons_library(), token_budget=budget, template="<<{experiences}>>", record=False)
    seen = watched_training(make_trainer(tmp_path, [callback], data=rows(questions=QUESTIONS[1:2]), max_steps=1))
    wanted = f"<<{lessons_text([Lesson(text) for text in expected])}>>\n\n" if expected else ""
    assert set(seen["generated"]) == {wanted + QUESTIONS[1]}
    assert len(wanted) <= budget + 2


@pytest.mark.skipif(trl_version() >= (1, 0), reason="this TRL cuts no prompts")
@pytest.mark.parametrize("conversational", [False, True])
def test_where_trl_cuts_prompts_the_experiences_fit_beside_the_prompt(tmp_path, conversational):
    callback = ExperienceCallback(lessons_library(), record=False)
    data = rows(conversational, questions=QUESTIONS[1:2])
    limit = 135 if conversational else 100
    seen = watched_training(make_trainer(tmp_path, [callback], data=data, max_steps=1, max_prompt_length=limit))
    (text,) = set(seen["generated"])
    assert LESSONS[1] in text and LESSONS[0] not in text and len(text) <= limit
    assert text.startswith("<system>Lessons" if conversational else "Lessons")


# The trainer.


def test_evaluation_before_training(tmp_path):
    trainer = make_trainer(tmp_path, [ExperienceCallback(lessons_library())])
    with watching(trainer) as seen:
        metrics = trainer.evaluate()
    assert seen["generated"] and all(HINTS in text for text in seen["generated"])
    assert metrics.keys() | trainer.state.log_history[-1].keys() >= {"eval_experience/injected_share"}


def test_one_step_may_hold_several_generations_and_one_generation_several_steps(tmp_path):
    for settings in ({"gradient_accumulation_steps": 4, "steps_per_generation": 2}, {"steps_per_generation": 2}):
        library = ExperienceLibrary()
        settings = {"per_device_train_batch_size": GROUP, **settings}
        make_trainer(tmp_path, [ExperienceCallback(library)], rewards=[spread], **settings).train()
        per_step = GROUP * settings.get("gradient_accumulation_steps", 1)
        assert library.stats().total_rollouts == 2 * per_step
        steps = [info.step for info in library.history() if info.cause == "rollouts"]
        assert steps == ([2, 1] if "gradient_accumulation_steps" in settings else [1])


def test_redrawn_groups_are_injected_and_recorded_once(tmp_path):
    def dead_first(prompts, completions, **kwargs):
        alive = [prompt == QUESTIONS[3] for prompt in prompts]
        return [float(live and place % 2) for place, live in enumerate(alive)]

    library = lessons_library()
    trainer = make_trainer(
        tmp_path, [ExperienceCallback(library)], rewards=[dead_first], ours=True, max_steps=1,
        dynamic_sampling_rounds=1, per_device_train_batch_size=GROUP,
    )  # fmt: skip
    seen = watched_training(trainer)
    assert all(HINTS in text for text in seen["generated"])
    assert len(seen["generated"]) == library.stats().total_rollouts == 2 * GROUP
    assert len(set(seen["generated"])) == 2, "the prompt in use was drawn again"


def test_rows_that_somebody_else_changed_are_left_alone(tmp_path):
    library, plain = lessons_library(), []
    callback = ExperienceCallback(library)

    def reward(prompts, completions, **columns):
        plain.append((set(prompts), sorted(columns)))
        return spread(completions)

    trainer = make_trainer(tmp_path, [callback], rewards=[reward], max_steps=1)
    inner = type(trainer)._generate_and_score_completions

    def hinted(inputs):
        other = [row | {"prompt": "a hint. " + row["plain_prompt"]} for row in inputs]
        inner(trainer, other)
        return inner(trainer, inputs)

    callback.detach()
    trainer._generate_and_score_completions = hinted
    callback.attach(trainer)
    trainer.train()
    assert plain[0] == plain[1] and plain[0][0] <= set(QUESTIONS) and "plain_prompt" not in plain[0][1]
    assert library.stats().total_rollouts == 2 * GROUP


def test_two_trainers_one_after_the_other(tmp_path):
    callback = ExperienceCallback(lessons_library(), record=False)
    first, second = (make_trainer(tmp_path / name, [callback], max_steps=1) for name in "ab")
    for trainer in (first, second):
        assert all(HINTS in text for text in watched_training(trainer)["generated"])


def test_what_the_resume_relies_on_in_transformers():
    assert "resume_from_checkpoint" in inspect.signature(Trainer._inner_training_loop).parameters


# Refused.


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"library": 3}, TypeError, "an ExperienceLibrary or the path"),
        ({"inject": "hints"}, ValueError, "inject must be one of lessons, episodes, both"),
        ({"position": "top"}, ValueError, "position must be one of"),
        ({"template": "x"}, ValueError, "once, where the text goes"),
        ({"token_budget": -1}, ValueError, "token_budget must be at least 0"),
        ({"token_budget": 1.5}, TypeError, "token_budget must be an integer or None"),
        ({"episodes": 0}, ValueError, "episodes must be at least 1"),
        ({"dropout": 1.1}, ValueError, r"in \[0, 1\]"),
        ({"dropout": "0.1"}, ValueError, r"in \[0, 1\]"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"record": 1}, TypeError, "record must be True or False"),
        ({"same_prompt": None}, TypeError, "same_prompt must be True or False"),
        ({"where": {"domain": []}}, ValueError, "empty list"),
        ({"metadata_columns": "domain"}, TypeError, "a list of column names"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        ExperienceCallback(**{"library": ExperienceLibrary(), **arguments})


def test_another_trainer_is_refused(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    callback = ExperienceCallback(ExperienceLibrary())
    with pytest.raises(TypeError, match="needs a GRPOTrainer; Trainer has no"):
        Trainer(build_model(), args, callbacks=[callback])


@pytest.mark.parametrize(
    "columns, words",
    [
        ({"image": "x"}, "prompts of text only"),
        ({"plain_prompt": "x"}, "rename yours"),
        ({}, "the data set has no column 'domain'; it has prompt"),
    ],
)
def test_data_that_can_not_be_injected_into_is_refused(tmp_path, columns, words):
    callback = ExperienceCallback(ExperienceLibrary(), metadata_columns=["domain"])
    trainer = make_trainer(tmp_path)
    trainer.train_dataset = rows(**columns)
    with pytest.raises(ValueError, match=words):
        callback.attach(trainer)


def test_a_second_callback_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, [ExperienceCallback(ExperienceLibrary())])
    with pytest.raises(ValueError, match="has an ExperienceCallback already"):
        ExperienceCallback(ExperienceLibrary()).attach(trainer)


@pytest.mark.skipif(trl_version() >= (1, 0), reason="this TRL cuts no prompts")
def test_a_budget_that_leaves_no_room_is_refused(tmp_path):
    with pytest.raises(ValueError, match="token_budget=512 leaves no room for a prompt"):
        make_trainer(tmp_path, [ExperienceCallback(ExperienceLibrary(), token_budget=512)])


def test_rewards_that_come_later_can_not_be_recorded(tmp_path):
    from trl_grpo_ext import SelfCertainty

    trainer = make_trainer(tmp_path, [ExperienceCallback(lessons_library())], rewards=[SelfCertainty()], ours=True)
    with pytest.raises(ValueError, match="set record=False"):
        trainer.train()


def test_messages_of_other_shapes_are_refused_in_one_sentence(tmp_path):
    from datasets import Dataset

    data = Dataset.from_list([{"prompt": [{"role": "user", "content": [{"type": "image"}]}]}] * 8)
    trainer = make_trainer(tmp_path, [ExperienceCallback(lessons_library())], data=data)
    with pytest.raises(TypeError, match="images and other blocks are not supported"):
        trainer.train()
