"""Rescue of dead groups inside ExtendedGRPOTrainer, in real training runs, both lines."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rescue_runs import (
    GROUP,
    encoded,
    largest_difference,
    library_of,
    logged,
    logps_under,
    make_model,
    make_trainer,
    parameters,
    prompts_of,
    rows,
    watch,
    watch_loss,
)

from tests.ranks import run_ranks
from trl_grpo_ext.experience import ExperienceCallback, ExperienceLibrary, Lesson, RescueCallback
from trl_grpo_ext.rescue import row_sources

REPOSITORY = Path(__file__).resolve().parents[2]
HINT = "Lessons from earlier attempts; use those that fit:\n[G0]. shift 3"


class HintedReward:
    """0 for every rollout, but for hinted ones: those are `values` in turn. Keeps what it was called with."""

    __name__ = "hinted_reward"

    def __init__(self, *values):
        self.values, self.trainer, self.calls = values, None, []

    def __call__(self, prompts, completions, **kwargs):
        rescuing = self.trainer.is_rescuing
        self.calls.append((rescuing, list(prompts), sorted(kwargs)))
        return [float(self.values[i % len(self.values)]) if rescuing else 0.0 for i in range(len(prompts))]


def rescued(folder, *values, library=None, callbacks=(), trainer=None, **arguments):
    """A trainer with a RescueCallback, its callback, its reward, and what it trains on."""
    reward = HintedReward(*values)
    callback = RescueCallback(
        library or library_of("shift 3"), **{"visits": 1, "position": "prefix", "seed": 0} | arguments
    )
    made = make_trainer(folder, reward, callbacks=[callback, *callbacks], **trainer or {})
    reward.trainer = made
    return made, callback, reward, watch(made)


@given(st.integers(1, 6), st.integers(2, 5), st.data())
def test_hinted_rows_take_the_last_places_of_their_groups(groups, size, data):
    rerolls = data.draw(st.integers(1, size - 1))
    chosen = data.draw(st.lists(st.integers(0, groups - 1), unique=True))
    pairs = [(group, number) for number, group in enumerate(chosen)]
    sources = row_sources(groups * size, pairs, size, rerolls)
    for row, source in enumerate(sources):
        group, place = divmod(row, size)
        fresh = dict(pairs).get(group) if place >= size - rerolls else None
        expected = row if fresh is None else groups * size + fresh * rerolls + place - (size - rerolls)
        assert source == expected


def test_a_dead_group_is_learned_with_its_hint_in_the_prompt(tmp_path):
    trainer, _, reward, seen = rescued(tmp_path, 1.0, 0.0)
    losses, before = watch_loss(trainer), parameters(trainer)
    trainer.train()
    inputs, batch = seen[0]
    plain = encoded([row["prompt"] for row in inputs])
    hinted = encoded([f"{HINT}\n\n{row['prompt']}" for row in inputs])
    expected = [hinted[row] if row % GROUP >= 2 else plain[row] for row in range(16)]
    assert prompts_of(batch) == expected and plain[0] != hinted[0]
    # Rewards 0, 0, 1, 0 in each group.
    advantage = torch.tensor([-0.25, -0.25, 0.75, -0.25]) / (0.5 + 1e-4)
    torch.testing.assert_close(batch["advantages"], advantage.repeat(4))
    assert sorted(map(tuple, prompts_of(losses[0]))) == sorted(map(tuple, expected))
    assert "off_policy" not in batch and "old_per_token_logps" not in batch
    assert largest_difference(parameters(trainer), before) > 1e-4
    # Rewards saw the plain prompt, and no column of ours.
    assert [call[0] for call in reward.calls] == [False, True]
    assert reward.calls[1][1] == [inputs[group * GROUP]["prompt"] for group in range(4) for _ in range(2)]
    assert "plain_prompt" not in reward.calls[1][2]
    assert trainer.num_generations == GROUP and not trainer.is_rescuing and not trainer.is_redrawing


def test_no_metric_of_trl_sees_a_hinted_reward(tmp_path):
    trainer, *_ = rescued(tmp_path, 1.0, 0.0, trainer={"max_steps": 2})
    trainer.train()
    zeros = ("reward", "reward_std", "rewards/hinted_reward/mean", "rewards/hinted_reward/std")
    for name in zeros:
        assert logged(trainer, name) == [0.0, 0.0], name
    assert logged(trainer, "groups/dead_share") == logged(trainer, "frac_reward_zero_std") == [1.0, 1.0]
    expected = {"rescue_visits": 4, "rescued_share": 1, "dead_share_before": 1, "dead_share_after": 0}
    expected |= {"hint_solve_rate": 0.5, "reward_hinted": 0.5}
    for name, value in expected.items():
        assert logged(trainer, f"experience/{name}") == [value, value], name
    # The table of completions shows what is trained on.
    assert sum(trainer._logs["rewards"]["hinted_reward"]) > 0
    assert sum("shift" in str(prompt) for prompt in trainer._logs["prompt"]) == len(trainer._logs["prompt"]) / 2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_iterations": 2, "max_steps": 2},
        {"beta": 0.1},
        {"off_policy_correction": "shape"},
        {"dynamic_sampling_rounds": 1},
        {"loss_context": "plain"},
    ],
    ids=str,
)
def test_off_policy_completions_are_learned_with_the_plain_prompt(settings, tmp_path):
    if "beta" in settings:
        make_model().save_pretrained(tmp_path / "model")
        settings = settings | {"model": reloaded(tmp_path / "model")}
    trainer, _, _, seen = rescued(tmp_path, 1.0, 0.0, mode="off_policy", trainer=settings)
    before = parameters(trainer)
    trainer.train()
    inputs, batch = seen[0]
    plain = encoded([row["prompt"] for row in inputs])
    assert prompts_of(batch) == plain
    flags = [int(row % GROUP >= 2) for row in range(16)]
    assert batch["off_policy"].tolist() == flags
    sampled = [
        ids if not flag else encoded([f"{HINT}\n\n{row['prompt']}"])[0]
        for ids, flag, row in zip(plain, flags, inputs, strict=True)
    ]
    mask, start = batch["completion_mask"].bool(), make_model()
    expected = logps_under(start, sampled, batch).detach()
    torch.testing.assert_close(batch["old_per_token_logps"][mask], expected[mask], rtol=1e-4, atol=1e-5)
    if "beta" in settings:
        expected = logps_under(start, plain, batch).detach()
        torch.testing.assert_close(batch["ref_per_token_logps"][mask], expected[mask], rtol=1e-4, atol=1e-5)
    assert largest_difference(parameters(trainer), before) > 1e-6
    assert logged(trainer, "reward")[0] == 0.0


def reloaded(folder):
    from transformers import LlamaForCausalLM

    from trl_grpo_ext import prepare_model

    return prepare_model(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32))


def test_hints_that_do_not_help_change_nothing(tmp_path):
    """Hinted completions that fail as well leave the group as it was: the gradient is zero."""
    trainer, _, reward, seen = rescued(tmp_path, 0.0)
    before = parameters(trainer)
    trainer.train()
    inputs, batch = seen[0]
    assert [call[0] for call in reward.calls] == [False, True]
    assert prompts_of(batch) == encoded([row["prompt"] for row in inputs])
    assert batch["advantages"].abs().max() == 0 and largest_difference(parameters(trainer), before) == 0
    assert logged(trainer, "experience/rescued_share") == [0.0]
    assert logged(trainer, "experience/dead_share_after") == [1.0]


@pytest.mark.parametrize("arguments", [{"visits": 99}, {"reward_at_most": -1.0}, {"library": ()}], ids=str)
def test_a_run_without_a_rescue_is_bit_for_bit_the_run_without_the_callback(arguments, tmp_path):
    def reward(prompts, completions, **kwargs):
        return [
            float(len(text) % 3) if prompt[-1] in "01234" else 0.0
            for prompt, text in zip(prompts, completions, strict=True)
        ]

    if "library" in arguments:
        arguments = {"library": library_of(*arguments["library"])}
    callback = RescueCallback(arguments.pop("library", library_of("shift 3")), **{"visits": 1} | arguments)
    trained = []
    for callbacks in ([callback], None):
        trainer = make_trainer(tmp_path, reward, callbacks=callbacks, max_steps=3, learning_rate=0.1)
        trainer.train()
        trained.append(parameters(trainer))
    assert largest_difference(*trained) == 0.0
    assert largest_difference(trained[0], dict(make_model().named_parameters())) > 1e-3


def test_a_prompt_is_rescued_at_its_low_visit_number_m(tmp_path):
    """Ten prompts of four rows, four prompts in a step: the eleventh group is the first to come a second time."""
    trainer, callback, reward, _ = rescued(tmp_path, 1.0, 0.0, visits=2, trainer={"max_steps": 5})
    trainer.train()
    visits = {}
    for is_rescuing, prompts, _ in reward.calls:
        if not is_rescuing:
            groups = prompts[::GROUP]
            due = []
            for prompt in groups:
                visits[prompt] = visits.get(prompt, 0) + 1
                due += [prompt] * (visits[prompt] >= 2)
        else:
            assert prompts[::2] == due and due
    assert sum(call[0] for call in reward.calls) >= 2 and max(visits.values()) >= 2
    assert sorted(callback.counts.values()) == sorted(visits.values())


def test_hints_end_as_annealing_says(tmp_path):
    trainer, *_ = rescued(tmp_path, 1.0, 0.0, anneal=0.5, trainer={"max_steps": 4})
    trainer.train()
    found = logged(trainer, "experience/rescue_visits")
    # p = 1, 0.5, 0, 0.
    assert found[0] == 4 and found[1] < 4 and found[2:] == [0.0, 0.0]


def test_visits_are_counted_on_after_a_resume(tmp_path):
    def run(**settings):
        saved = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
        trainer, callback, *_ = rescued(tmp_path, 1.0, 0.0, visits=2, trainer=saved)
        trainer.train(**settings)
        return parameters(trainer), callback.counts, logged(trainer, "experience/rescue_visits")

    whole = run()
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    kept = state["stateful_callbacks"]["RescueCallback"]["attributes"]["saved"]["counts"]
    assert kept and all(count > 0 for count in kept.values())
    again = run(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again[1] == whole[1] and again[2] == whole[2] and sum(whole[2][2:]) > 0
    assert largest_difference(again[0], whole[0]) == 0.0


@pytest.mark.parametrize("position", ["system", "user", "prefix"])
def test_messages_get_their_hint_too(position, tmp_path):
    trainer, _, reward, seen = rescued(
        tmp_path,
        1.0,
        0.0,
        position=position,
        template="please {experiences}",
        trainer={"data": rows(conversational=True)},
    )
    trainer.train()
    inputs, batch = seen[0]
    ids = prompts_of(batch)
    assert [len(row) > len(ids[0]) for row in ids[:GROUP]] == [False, False, True, True]
    assert encoded(["please"])[0][0] in ids[2]
    assert reward.calls[1][1][0] == inputs[0]["prompt"]


def test_prefilled_prompts_keep_the_beginning_of_the_answer(tmp_path):
    """TRL 0.24 takes it away from the row that it is given."""
    turns = [{"role": "user", "content": "what is 3"}, {"role": "assistant", "content": "9"}]
    trainer, _, _, seen = rescued(tmp_path, 1.0, 0.0, trainer={"data": rows(prompt=lambda i: turns)})
    trainer.train()
    ids = prompts_of(seen[0][1])
    assert ids[2][-len(ids[0]) :] == ids[0] and len(ids[2]) > len(ids[0])


def test_unscored_rollouts_are_no_reason_for_a_rescue(tmp_path):
    callback = RescueCallback(library_of("shift 3"), visits=1)

    def reward(prompts, completions, **kwargs):
        return [None] * len(prompts)

    trainer = make_trainer(tmp_path, reward, callbacks=[callback])
    trainer.train()
    assert logged(trainer, "experience/rescue_visits") == [0.0] and callback.counts == {}


def test_beside_an_experience_callback_nothing_is_injected_or_stored_twice(tmp_path):
    library = ExperienceLibrary()
    library.add(Lesson("shift 3"), Lesson("shift 4", metadata={"for": "all"}))
    experience = ExperienceCallback(library, where={"for": "all"}, position="prefix")
    trainer, _, reward, seen = rescued(tmp_path, 1.0, 0.0, library=library, callbacks=[experience])
    trainer.train()
    _, batch = seen[0]
    shift, three, four = encoded(["shift 3 4"])[0]
    ids = prompts_of(batch)
    assert [(row.count(shift), row.count(three), row.count(four)) for row in ids[:1] + ids[3:4]] == [
        (1, ids[0].count(three), 1 + (ids[0][-1] == four)),
        (2, 1 + (ids[0][-1] == three), 1 + (ids[0][-1] == four)),
    ]
    # Four groups of four un-hinted rollouts, nothing of the eight hinted ones.
    assert library.counters().rollouts == 16 and library.library_size() == 0
    assert all(prompt.startswith("what is") for _, prompts, _ in reward.calls for prompt in prompts)


def test_two_ranks(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    run_ranks("two_ranks_with_rescue", tmp_path)


# Refusals.


def test_the_stock_trainer_is_refused(tmp_path):
    with pytest.raises(TypeError, match="samples inside an ExtendedGRPOTrainer, which GRPOTrainer is not"):
        make_trainer(tmp_path, HintedReward(0.0), callbacks=[RescueCallback(library_of("a"))], stock=True)


@pytest.mark.parametrize(
    ("arguments", "settings", "match"),
    [
        ({"rerolls": 4}, {}, r"rerolls must be below num_generations \(4\)"),
        ({}, {"loss_context": "plain"}, "use mode='off_policy', or loss_context='injected'"),
        ({"mode": "off_policy"}, {"clip_anchor": "reference"}, "mode='off_policy' does not work with clip_anchor"),
        ({"mode": "off_policy"}, {"kl_place": "reward", "beta": 0.1}, "mode='off_policy' does not work with kl_place"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(arguments, settings, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        make_trainer(tmp_path, HintedReward(0.0), callbacks=[RescueCallback(library_of("a"), **arguments)], **settings)


def test_a_missing_library_file_is_refused(tmp_path):
    callback = RescueCallback(tmp_path / "missing.db")
    trainer = make_trainer(tmp_path, HintedReward(0.0), callbacks=[callback])
    with pytest.raises(Exception, match="missing"):
        trainer.train()


def test_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="RescueCallback works without images only"):
        make_trainer(
            tmp_path,
            HintedReward(0.0),
            rows(image=lambda i: "picture.png"),
            model="no/such/model",
            callbacks=[RescueCallback(library_of("a"))],
        )
