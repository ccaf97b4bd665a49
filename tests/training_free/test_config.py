"""Settings, budgets and data: bad input is refused early, and says the way out."""

import json

import pytest

from tests.training_free.lesson_world import World, solved
from tests.training_free.runs import learner
from trl_grpo_ext.training_free import Budget, GateConfig, Price, TrainingFreeConfig, TrainingFreeGRPO
from trl_grpo_ext.training_free.budget import Meter, Spending
from trl_grpo_ext.training_free.config import differences
from trl_grpo_ext.training_free.problems import batches, read_problems, split


def test_the_defaults_are_the_papers():
    config = TrainingFreeConfig()
    assert (config.num_generations, config.num_train_epochs, config.batch_size) == (5, 3, 100)
    assert (config.temperature, config.eval_temperature, config.max_lesson_words) == (0.7, 0.3, 32)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_generations": 0}, "num_generations must be a whole number of at least 1, not 0"),
        ({"num_generations": True}, "num_generations must be a whole number"),
        ({"temperature": -1}, "temperature must be a finite number of at least 0"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"lesson_dropout": 1.0}, "hides every lesson"),
        ({"lesson_dropout": 1.5}, "from 0 to 1"),
        ({"retire_alpha": 0}, "above 0 and below 1"),
        ({"shuffle": "yes"}, "shuffle must be True or False"),
        ({"num_generations": 1}, "set require_spread=False"),
        ({"template": "no place"}, "exactly once"),
        ({"failure_reward": -1.0}, "outside the gate's range"),
        ({"gate": {"alfa": 0.1}}, "gate: unknown setting 'alfa'"),
        ({"budget": {"max_call": 1}}, "unknown limit 'max_call'"),
        ({"budget": {"max_calls": 0}}, "max_calls must be a whole number above 0"),
        ({"budget": {"max_calls": 1.5}}, "max_calls must be a whole number above 0"),
        ({"budget": {"max_cost": 1.0}}, "max_cost needs prices"),
        ({"budget": {"prices": {"*": {"prompt": -1, "completion": 0}}}}, "prompt must be a number of at least 0"),
        ({"num_generation": 4}, "did you mean 'num_generations'"),
    ],
)
def test_bad_settings_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        TrainingFreeConfig.from_mapping(settings)


def test_a_mapping_as_yaml_has_it():
    config = TrainingFreeConfig.from_mapping(
        {
            "gate": {"alpha": 0.1},
            "budget": {"max_calls": 10, "prices": {"*": {"prompt": 1, "completion": 2}}},
            "answer_columns": ["gold"],
        }
    )
    assert config.gate == GateConfig(alpha=0.1) and config.budget.prices["*"] == Price(1, 2)
    assert json.loads(json.dumps(config.fixed())) == config.fixed()
    assert "budget" not in config.fixed() and config.answer_columns == ("gold",)


def test_differences_are_named_with_both_values():
    old, new = TrainingFreeConfig().fixed(), TrainingFreeConfig(num_generations=8, gate=GateConfig(alpha=0.1)).fixed()
    assert differences(old, new) == ["num_generations: 5 -> 8", "gate.alpha: 0.05 -> 0.1"]


def test_prices_by_name_part_and_default():
    budget = Budget(prices={"*": Price(1, 1), "gpt": Price(2, 4), "gpt-5": Price(8, 16)})
    assert budget.price("openai gpt-5-mini") == Price(8, 16)
    assert budget.price("gpt") == Price(2, 4) and budget.price("other") == Price(1, 1)
    meter = Meter(budget)
    meter.add("gpt", 1_000_000, 500_000)
    assert meter.spent == Spending(1, 0, 1_000_000, 500_000, 4.0)
    with pytest.raises(ValueError, match="has none for the model 'b'"):
        Budget(max_cost=1, prices={"a": Price(1, 1)}).check_models(["a", "b"])


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "dataset has no rows"),
        (["text"], "row 0 must be a mapping"),
        ([{"prompt": "a"}, {"text": "b"}], "row 1 has none of the columns prompt, question"),
        ([{"prompt": [{"role": "user"}]}], "row 0 must be a string, or messages"),
        ([{"prompt": 3}], "row 0 must be a string, or messages"),
        ([{"prompt": "only one"}], "there is one problem only"),
    ],
)
def test_bad_data_are_refused_before_a_call(rows, says):
    run = learner(World())
    with pytest.raises(ValueError, match=says):
        run.train(rows, solved)
    assert run.policy.calls == 0


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        ("no_such_reward", "Unknown reward"),
        (["exact_match", "math_equal"], "must be one reward, not 2"),
        ("exact_match", "needs the column 'solution'"),
        (lambda completions: [0.0] * len(completions), r"add \*\*kwargs"),
    ],
)
def test_bad_rewards_are_refused_before_a_call(reward, says):
    run = learner(World(), gate=None)
    with pytest.raises(ValueError, match=says):
        run.train(World().rows(12), reward)
    assert run.policy.calls == 0


def test_held_out_problems_must_be_others():
    world = World()
    with pytest.raises(ValueError, match="held_out holds 2 problems of the dataset"):
        learner(world).train(world.rows(12), solved, world.rows(2))
    with pytest.raises(ValueError, match=r"can't accept anything: 4 held-out problems with seeds=1 are 4 pairs"):
        learner(world).train(world.rows(12), solved)
    with pytest.raises(ValueError, match="gate=None switches it off"):
        learner(world, gate=None).train(world.rows(12), solved, world.rows(2, 50))


def test_a_model_must_be_one():
    policy, _ = World().backends()
    with pytest.raises(TypeError, match=r"base_model must be a model of transformers, a folder .* not int"):
        TrainingFreeGRPO(3)
    with pytest.raises(TypeError, match="reflector must be a model"):
        TrainingFreeGRPO(policy, reflector=3)
    with pytest.raises(TypeError, match="base_model is a backend; leave it out"):
        TrainingFreeGRPO(policy, tokenizer=object())
    with pytest.raises(TypeError, match="config must be a TrainingFreeConfig or a mapping"):
        TrainingFreeGRPO(policy, 3)


def test_a_reward_out_of_the_gates_range_is_refused():
    def large(completions, **kwargs):
        return [3.0] * len(completions)

    with pytest.raises(ValueError, match=r"gave 3.0, outside the gate's range \[0.0, 1.0\]"):
        learner(World()).train(World().rows(12), large, World().rows(30, 50))


def test_equal_rows_are_two_problems_and_stay_on_one_side():
    rows = [{"question": f"q{number % 10}", "answer": "1"} for number in range(20)]
    problems = read_problems(rows, ("answer",))
    assert len({problem.id for problem in problems}) == 20
    for seed in range(5):
        learned, held = split(problems, 0.3, seed)
        assert len(held) == 6 and len(learned) == 14
        assert not {item.text for item in learned} & {item.text for item in held}


def test_epochs_have_their_own_order_and_no_batch_spans_two():
    problems = read_problems(World().rows(10), ("answer",))
    found = batches(problems, 4, 2, 0, True)
    assert [len(batch) for batch in found] == [4, 4, 2, 4, 4, 2]
    first, second = [item for batch in found[:3] for item in batch], [item for batch in found[3:] for item in batch]
    assert first != second and {item.id for item in first} == {item.id for item in second}
    assert batches(problems, 4, 2, 0, True) == found
    assert batches(problems, 10, 1, 0, False) == [problems]
