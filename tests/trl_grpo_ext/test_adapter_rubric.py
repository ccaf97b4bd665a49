"""Rubrics: weighted functions that take their arguments by name."""

import asyncio
import pickle

import pytest
from test_adapter_conventions import CHAT, SAID, Seen

from trl_grpo_ext import check_reward_columns
from trl_grpo_ext.rewards.adapters import RubricReward


def right(completion, answer):
    return float(completion == answer)


async def brief(completion):
    await asyncio.sleep(0)
    return 1.0 / (1 + len(completion))


def test_rubric_adds_weighted_functions():
    reward = pickle.loads(pickle.dumps(RubricReward([right, brief], [2.0, 0.5])))
    assert reward(["p"] * 2, ["7", "888"], answer=["7", "7"]) == [2.25, 0.125]
    assert reward.last_metrics["rewards/rubric/right"] == 0.5
    assert reward.last_metrics["rewards/rubric/brief"] == 0.375


def test_rubric_arguments_by_name():
    seen = Seen()

    def everything(prompt, completion, answer, info, task, state, parser, level):
        state["noticed"] = level
        return seen.keep(prompt, completion, answer, info, task, parser)

    def after(state, missing=0):
        return state["noticed"] + missing + (state["completion"] == "c")

    reward = RubricReward([everything, after], parser="parser")
    assert reward([CHAT, "p"], [SAID, "c"], level=[10, 20]) == [11.0, 22.0]
    assert seen.calls == [(CHAT, SAID, "", {}, "default", "parser"), ("p", "c", "", {}, "default", "parser")]
    with pytest.raises(ValueError, match="needs the dataset column 'level'"):
        reward(["p"], ["c"])
    with pytest.raises(ValueError, match="needs the argument 'level'"):
        check_reward_columns(reward, ["prompt"])


def test_rubric_row_without_a_score_of_one_function():
    def sometimes(completion):
        return {"none": None, "bad": float("nan")}.get(completion, 1.0)

    reward = RubricReward([sometimes, brief], on_error=-1.0)
    assert reward(["p"] * 3, ["none", "bad", "c"]) == [None, -1.0, 1.5]
    assert (reward.errors, reward.skips) == (1, 1)


def test_rubric_from_an_object_and_refusals():
    class Rubric:
        reward_funcs, reward_weights, parser = [right], [3.0], None

    reward = RubricReward.from_rubric(Rubric())
    assert reward.__name__ == "Rubric"
    assert reward(["p"], ["7"], answer=["7"]) == [3.0]
    with pytest.raises(ValueError, match="must have a list `funcs`"):
        RubricReward.from_rubric(object())
    with pytest.raises(ValueError, match="not 1 functions and 2 weights"):
        RubricReward([right], [1.0, 2.0])
    with pytest.raises(ValueError, match="two functions of one name"):
        RubricReward([right, right])
    with pytest.raises(ValueError, match="finite weights"):
        RubricReward([right], [float("nan")])

    def whole_group(completions, answer):
        return [1.0]

    with pytest.raises(ValueError, match="'whole_group' takes 'completions', the rows of a whole batch"):
        RubricReward([right, whole_group])
