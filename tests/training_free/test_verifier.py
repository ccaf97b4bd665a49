"""Every kind of reward as a verifier, and that none is asked twice for what it has said."""

import pytest

from trl_grpo_ext.rewards import REWARDS, STATEFUL
from trl_grpo_ext.rewards.isolation import isolate_reward_funcs
from trl_grpo_ext.training_free.cache import CallCache
from trl_grpo_ext.training_free.problems import read_problems
from trl_grpo_ext.training_free.verifier import Row, Verifier, reward_identity, reward_name

PROBLEM = read_problems([{"prompt": "What is 2+2?", "solution": "4", "answer": "4"}], ("answer",))[0]


def rows(*texts):
    return [Row(PROBLEM, text, "one") for text in texts]


def by_query(query, response):
    return float(query == "What is 2+2?" and response == "4")


def by_prompt(prompt, response, answer):
    return float(response == answer)


def of_trl(prompts, completions, solution, **kwargs):
    return [float(text == right) for text, right in zip(completions, solution, strict=True)]


async def asynchronous(completions, **kwargs):
    return [float(text == "4") for text in completions]


@pytest.mark.parametrize("reward", ["exact_match", "math_equal", by_query, by_prompt, of_trl, asynchronous])
def test_conventions(reward):
    assert Verifier(reward, CallCache())(rows("4", "5")) == [1.0, 0.0]


def test_the_text_of_a_users_reward_is_part_of_its_identity(tmp_path):
    file, found = tmp_path / "rewards.py", []
    for text in ("1.0", "2.0"):
        file.write_text(f"def reward(completions, **kwargs):\n    return [{text} for _ in completions]\n")
        (isolated,) = isolate_reward_funcs(f"{file}:reward")
        found += [reward_identity(f"{file}:reward"), reward_identity(isolated)]
    assert found[0] == found[1] != found[2] == found[3] and found[0].startswith("reward sha256:")
    assert reward_identity("exact_match") == "exact_match" and reward_identity(by_query).startswith("by_query sha256:")


def test_messages_stay_messages():
    problem = read_problems([{"prompt": [{"role": "user", "content": "Hi"}]}], ())[0]

    def reward(prompts, completions, **kwargs):
        assert prompts == [[{"role": "user", "content": "Hi"}]]
        return [float(completions[0] == [{"role": "assistant", "content": "Hello"}])]

    assert Verifier(reward, CallCache())([Row(problem, "Hello", "")]) == [1.0]


@pytest.mark.parametrize("name", sorted({*REWARDS, *STATEFUL}))
def test_every_reward_of_the_package_has_a_name_here(name):
    if name == "reasoning_gym":
        pytest.importorskip("reasoning_gym")
    assert reward_name(name)


def test_what_was_judged_is_not_judged_again():
    calls = []

    def reward(completions, **kwargs):
        calls.append(completions)
        return [None if text == "?" else 0.5 for text in completions]

    cache = CallCache()
    for _ in range(2):
        assert Verifier(reward, cache)(rows("4", "?")) == [0.5, None]
    assert calls == [["4", "?"]]


def test_a_reward_that_remembers_is_made_anew_for_each_call():
    """Its window would be another one in a resumed run."""
    verifier = Verifier("self_consistency", CallCache())
    texts = ["Answer: 4"] * 3 + ["Answer: 5"] * 2
    problems = read_problems([{"prompt": f"Question {number}?"} for number in range(20)], ())
    found = [verifier([Row(problem, text, "") for text in texts]) for problem in problems]
    assert found == [[1.0] * 3 + [0.0] * 2] * 20


def test_groups_of_one_prompt_are_compared_apart():
    """Two arms of a comparison ask the same problem; self-consistency must not mix their votes."""
    arms = {"current": ["4", "4", "4", "5", "5"], "candidate": ["5", "5", "5", "4", "4"]}
    asked = [Row(PROBLEM, f"Answer: {text}", arm) for arm, texts in arms.items() for text in texts]
    expected = [float(text == texts[0]) for texts in arms.values() for text in texts]
    assert Verifier("self_consistency", CallCache())(asked) == expected


def test_hidden_columns_do_not_reach_the_reward():
    def reward(completions, **kwargs):
        assert set(kwargs) == {"prompts", "completion_ids", "solution"}
        return [0.0] * len(completions)

    Verifier(reward, CallCache(), hidden=("answer",))(rows("4"))


def test_rewards_of_token_ids_are_refused():
    with pytest.raises(ValueError, match="reads token ids"):
        Verifier("repetition_penalty", CallCache()).check([PROBLEM])


def test_a_column_with_the_name_of_an_argument_is_refused():
    problems = read_problems([{"prompt": "a", "completions": "b"}], ())
    with pytest.raises(ValueError, match="a column 'completions', the name of an argument"):
        Verifier("math_equal", CallCache()).check(problems)
