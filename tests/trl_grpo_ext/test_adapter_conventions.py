"""Each convention, as its own project calls it."""

import asyncio
import functools
import pickle

import pytest

from trl_grpo_ext import check_reward_columns
from trl_grpo_ext.rewards.adapters import (
    OpenRLHFReward,
    RewardError,
    ScalarReward,
    SwiftReward,
    TRLReward,
    VerlReward,
)

CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": [{"type": "text", "text": "second"}]},
]
SAID = [{"role": "assistant", "content": "7"}]
TRL_KEYWORDS = {"trainer_state": "state", "log_extra": lambda *_: None, "log_metric": lambda *_: None}


class Seen:
    """Remembers the arguments of its calls."""

    def __init__(self, result=1.0):
        self.calls, self.result = [], result

    def keep(self, *args, **kwargs):
        self.calls.append(args or kwargs)
        return self.result


def test_query_is_the_last_user_message_and_prompt_all_of_it():
    seen = Seen()
    ScalarReward(lambda query, response: seen.keep(query, response), name="r")([CHAT, "plain"], [SAID, "8"])
    assert seen.calls == [("second", "7"), ("plain", "8")]
    ScalarReward(lambda prompt, completion: seen.keep(prompt, completion), name="r")([CHAT, "plain"], [SAID, "8"])
    assert seen.calls[2:] == [("be brief\nfirst\nyes\nsecond\n", "7"), ("plain", "8")]


def test_plain_prompt_wins_over_the_injected_one():
    injected = ["lesson: say 7\nask"]
    for name, func in {"query": lambda query: query == "ask", "prompt": lambda prompt: prompt == "ask"}.items():
        reward = ScalarReward(func, name=name)
        assert reward(injected, ["c"], plain_prompt=["ask"]) == [1.0]
        assert reward(injected, ["c"]) == [0.0]
    assert TRLReward(lambda prompts, **_: [p == "ask" for p in prompts])(injected, ["c"], plain_prompt=["ask"]) == [1]


def test_a_prompt_without_a_user_message_gives_an_empty_query():
    assert ScalarReward(lambda query: query == "", name="r")([CHAT[:1]], ["c"]) == [1.0]


def test_scalar_arguments_come_by_name():
    def matches(response, answer, bonus=0.0, trainer_state=None):
        return float(response == answer) + bonus + (trainer_state == "state")

    reward = ScalarReward(matches)
    assert reward(["p"] * 2, ["7", "8"], answer=["7", "7"]) == [1.0, 0.0]
    assert reward(["p"] * 2, ["7", "8"], answer=["7", "7"], bonus=[0.5, 0.25], **TRL_KEYWORDS) == [2.5, 1.25]
    assert ScalarReward(matches, columns={"answer": "solution"})(["p"], ["7"], solution=["7"]) == [1.0]


def test_scalar_kwargs_get_the_other_columns():
    seen = Seen()

    def rest(response, gold, **kwargs):
        return seen.keep(response=response, gold=gold, **kwargs)

    ScalarReward(rest, columns={"gold": "answer"})(["p"], ["c"], answer=["a"], x=[1], prompt=["q"], **TRL_KEYWORDS)
    assert seen.calls == [{"response": "c", "gold": "a", "x": 1}]


def test_a_row_without_a_plain_prompt_keeps_its_own():
    reward = ScalarReward(lambda query: query == "ask", name="r")
    assert reward(["ask", "lesson: ask"], ["c"] * 2, plain_prompt=[None, "ask"]) == [1.0, 1.0]


def test_scalar_functions_that_cannot_fit_are_refused():
    with pytest.raises(ValueError, match=r"names no argument.*functools\.wraps"):
        ScalarReward(lambda *args, **kwargs: 1.0, name="r")
    with pytest.raises(ValueError, match="takes 'completions', the rows of a whole batch"):
        ScalarReward(lambda completions, **kwargs: [1.0], name="r")
    with pytest.raises(ValueError, match="takes 'query' by position only"):
        ScalarReward(lambda query, /, response: 1.0, name="r")
    with pytest.raises(ValueError, match="names 'gold', which is not a parameter"):
        ScalarReward(lambda query, answer: 1.0, name="r", columns={"gold": "solution"})


def test_a_partial_has_the_name_of_its_function():
    def scaled(response, factor):
        return factor * len(response)

    reward = ScalarReward(functools.partial(scaled, factor=2))
    assert reward.__name__ == "scaled"
    assert reward(["p"], ["abc"]) == [6.0]


def test_trl_function_gets_what_trl_passes():
    seen = Seen([1.0])
    reward = TRLReward(lambda **kwargs: seen.keep(**kwargs), name="r")
    reward(prompts=["p"], completions=["c"], completion_ids=[[1]], answer=["a"], **TRL_KEYWORDS)
    expected = {"prompts": ["p"], "completions": ["c"], "completion_ids": [[1]], "answer": ["a"]}
    assert seen.calls == [expected | TRL_KEYWORDS]


VERL = {"data_source": ["gsm8k", "math"], "ground_truth": ["7", "7"], "extra_info": [{"i": 0}, None]}


def test_verl_row_form():
    seen = Seen(0.5)

    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        return seen.keep(data_source, solution_str, ground_truth, extra_info)

    assert VerlReward(compute_score)(["p"] * 2, [SAID, "8"], **VERL, **TRL_KEYWORDS) == [0.5, 0.5]
    assert seen.calls == [("gsm8k", "7", "7", {"i": 0}), ("math", "8", "7", None)]


@pytest.mark.parametrize("as_async", [False, True])
def test_verl_batch_form(as_async):
    seen = Seen([1.0, {"score": 0.25, "acc": True}])

    def compute_score(data_sources, solution_strs, ground_truths, extra_infos):
        return seen.keep(data_sources, solution_strs, ground_truths, extra_infos)

    async def compute_score_async(data_sources, solution_strs, ground_truths, extra_infos):
        return seen.keep(data_sources, solution_strs, ground_truths, extra_infos)

    reward = VerlReward(compute_score_async if as_async else compute_score, name="v")
    assert reward(["p"] * 2, ["7", "8"], **VERL) == [1.0, 0.25]
    assert seen.calls == [(["gsm8k", "math"], ["7", "8"], ["7", "7"], [{"i": 0}, None])]
    assert reward.last_metrics["rewards/v/acc"] == 1.0


def test_verl_ground_truth_from_reward_model_and_constant_data_source():
    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        return float(solution_str == ground_truth and data_source == "mine" and extra_info is None)

    reward = VerlReward(compute_score, data_source="mine")
    assert reward(["p"] * 2, ["7", "8"], reward_model=[{"ground_truth": "7", "style": "rule"}] * 2) == [1.0, 0.0]
    assert reward(["p"], ["7"], ground_truth=["7"], reward_model=[{"ground_truth": "8"}]) == [1.0]
    with pytest.raises(ValueError, match="needs the dataset column 'ground_truth'"):
        reward(["p"], ["7"])
    with pytest.raises(ValueError, match="'reward_model', and row 0 of this call holds 'None'"):
        reward(["p"], ["7"], reward_model=[None])


def test_verl_data_source_is_required_before_training():
    with pytest.raises(ValueError, match="needs the argument 'data_source'"):
        check_reward_columns(VerlReward(lambda **kwargs: 1.0, name="v"), ["prompt", "ground_truth"])
    check_reward_columns(VerlReward(lambda **kwargs: 1.0, name="v", data_source="x"), ["prompt", "ground_truth"])


def test_verl_dicts_and_tuples():
    results = iter([{"score": 1.0, "acc": 1, "pred": "7"}, {"score": 0.0, "acc": 0}, (0.5, "why"), {"acc": 1}, ()])
    reward = VerlReward(lambda **kwargs: next(results), data_source="x", name="v", on_error="skip")
    columns = {}
    rewards = reward(
        ["p"] * 5, ["c"] * 5, ground_truth=["7"] * 5, log_extra=columns.__setitem__, log_metric=columns.__setitem__
    )
    assert rewards == [1.0, 0.0, 0.5, None, None]
    assert reward.last_metrics["rewards/v/acc"] == pytest.approx(2 / 3)
    assert columns["v/pred"] == ["7", None, None, None, None]
    assert columns["rewards/v/errors"] == 2.0
    with pytest.raises(RewardError, match="a dict without 'score', only acc"):
        VerlReward(lambda **kwargs: {"acc": 1}, data_source="x", name="v")(["p"], ["c"], ground_truth=["7"])


class Matches:
    """An ms-swift ORM; `trainer_state` only, or it fails."""

    def __call__(self, completions, solution, **kwargs):
        assert set(kwargs) == {"trainer_state"}
        return [float(completion == gold) for completion, gold in zip(completions, solution, strict=True)]


class AsyncMatches(Matches):
    async def __call__(self, completions, solution, **kwargs):
        await asyncio.sleep(0)
        return super().__call__(completions, solution, **kwargs)


@pytest.mark.parametrize("orm", [Matches, Matches(), AsyncMatches, AsyncMatches()])
def test_swift_orm(orm):
    reward = pickle.loads(pickle.dumps(SwiftReward(orm)))
    assert reward.__name__ in ("Matches", "AsyncMatches")
    assert reward(["p"] * 2, [SAID, "8"], solution=["7", "7"], **TRL_KEYWORDS) == [1.0, 0.0]


def test_openrlhf_function():
    seen = Seen([1.0, 2.0])
    reward = OpenRLHFReward(lambda queries, prompts, labels: seen.keep(queries, prompts, labels), name="o")
    assert reward([CHAT[1:2], "ask "], [SAID, "8"], labels=["7", "8"]) == [1.0, 2.0]
    assert seen.calls == [(["first\n7", "ask 8"], ["first\n", "ask "], ["7", "8"])]


def test_openrlhf_results():
    import torch

    def rewards_of(result, **kwargs):
        reward = OpenRLHFReward(lambda queries, prompts, labels: result, label_column="gold", name="o", **kwargs)
        return reward(["p"] * 2, ["c"] * 2, gold=["a"] * 2), reward.last_metrics

    assert rewards_of(torch.tensor([0.5, 1.0]))[0] == [0.5, 1.0]
    full = {"rewards": torch.tensor([0.5, 1.0]), "scores": [0.0, 1.0], "extra_logs": {"acc": torch.tensor([1.0, 1.0])}}
    rewards, metrics = rewards_of(full)
    assert rewards == [0.5, 1.0]
    assert (metrics["rewards/o/scores"], metrics["rewards/o/acc"]) == (0.5, 1.0)
    assert rewards_of({"score": [1, 1]}, on_error=0.0)[0] == [0.0, 0.0]
    rewards, metrics = rewards_of({"rewards": [1, 2], "extra_logs": {"rate": torch.tensor(0.25), "n": 3}})
    assert rewards == [1.0, 2.0]
    assert (metrics["rewards/o/rate"], metrics["rewards/o/n"]) == (0.25, 3.0)
