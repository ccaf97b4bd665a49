"""Every adapter in three steps of `trainer.train()`; the model's own `adapted` rewards are computed again by hand."""

import asyncio

import pytest
from adapter_runs import dataset, texts_of
from adapter_service import service

from trl_grpo_ext.rewards.adapters import (
    HTTPReward,
    OpenRLHFEndpoint,
    OpenRLHFReward,
    RubricReward,
    ScalarReward,
    SwiftReward,
    TRLReward,
    VerlReward,
)

STEPS = 3
# More than one form, or no row would differ from another.
COLUMNS = {"answer": "7", "labels": "7", "data_source": "toy", "reward_model": {"ground_truth": "7", "style": "rule"}}


def score(text, gold="7"):
    return text.count(gold) + len(text) / 8


def seed_form(query, response):
    assert query.strip() in ("say", "1", "7", "#")
    return score(response)


def with_answer(prompt, response, answer):
    return score(response, answer)


async def async_with_answer(response, answer):
    await asyncio.sleep(0)
    return score(response, answer)


def trl_form(completions, answer, **kwargs):
    return [score(c if isinstance(c, str) else c[-1]["content"], a) for c, a in zip(completions, answer, strict=True)]


async def trl_async(completions, answer, **kwargs):
    await asyncio.sleep(0)
    return trl_form(completions, answer)


def verl_float(data_source, solution_str, ground_truth, extra_info=None):
    return score(solution_str, ground_truth)


def verl_tuple(data_source, solution_str, ground_truth, extra_info=None):
    return score(solution_str, ground_truth), {"why": "counted"}


def verl_row(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": score(solution_str, ground_truth), "length": len(solution_str), "pred": solution_str}


def verl_batch(data_sources, solution_strs, ground_truths, extra_infos):
    return [(score(s, g), "why") for s, g in zip(solution_strs, ground_truths, strict=True)]


def verl_batch_float(data_sources, solution_strs, ground_truths, extra_infos):
    return list(map(score, solution_strs, ground_truths))


def verl_batch_dict(data_sources, solution_strs, ground_truths, extra_infos):
    return [{"score": score(s, g), "length": len(s)} for s, g in zip(solution_strs, ground_truths, strict=True)]


class Swift:
    def __call__(self, completions, answer, **kwargs):
        return list(map(score, completions, answer))


class AsyncSwift(Swift):
    async def __call__(self, completions, answer, **kwargs):
        await asyncio.sleep(0)
        return super().__call__(completions, answer)


def openrlhf_form(queries, prompts, labels):
    import torch

    values = [score(q[len(p) :], gold) for q, p, gold in zip(queries, prompts, labels, strict=True)]
    return {"rewards": torch.tensor(values), "extra_logs": {"longest": torch.tensor(values)}}


def rubric_text(completion):
    return completion if isinstance(completion, str) else completion[-1]["content"]


def found(completion, answer):
    return rubric_text(completion).count(answer)


async def brief(completion):
    return len(rubric_text(completion))


REWARDS = {
    "scalar_query": lambda url: ScalarReward(seed_form),
    "scalar_answer": lambda url: ScalarReward(with_answer),
    "scalar_async": lambda url: ScalarReward(async_with_answer),
    "trl": lambda url: TRLReward(trl_form),
    "trl_async": lambda url: TRLReward(trl_async),
    "verl_float": lambda url: VerlReward(verl_float),
    "verl_dict": lambda url: VerlReward(verl_row),
    "verl_tuple": lambda url: VerlReward(verl_tuple),
    "verl_batch_float": lambda url: VerlReward(verl_batch_float),
    "verl_batch_dict": lambda url: VerlReward(verl_batch_dict),
    "verl_batch_tuple": lambda url: VerlReward(verl_batch),
    "swift": lambda url: SwiftReward(Swift),
    "swift_async": lambda url: SwiftReward(AsyncSwift),
    "openrlhf": lambda url: OpenRLHFReward(openrlhf_form),
    "openrlhf_endpoint": lambda url: OpenRLHFEndpoint(url),
    "rubric": lambda url: RubricReward([found, brief], [1.0, 0.125]),
    "http": lambda url: HTTPReward(url, columns=["answer"], batch_size=8),
}


def serve(handler, request):
    if "rows" in request:
        handler.reply({"rewards": [score(row["completion"], row["answer"]) for row in request["rows"]]})
    else:
        handler.reply({"rewards": openrlhf_form(*request.values())["rewards"].tolist()})


@pytest.fixture(scope="module")
def url():
    with service(serve) as server:
        yield server.url


@pytest.mark.parametrize("name", REWARDS)
def test_adapter_trains(name, url, tiny_model, make_tiny_trainer):
    reward = REWARDS[name](url)
    before = tiny_model.lm_head.weight.detach().clone()
    conversational = list(REWARDS).index(name) % 2 == 1
    trainer = make_tiny_trainer([reward], dataset(COLUMNS, conversational))
    trainer.train()
    rewards = list(trainer._logs["rewards"][reward.__name__])
    assert trainer.state.global_step == STEPS
    assert rewards == pytest.approx([score(text) for text in texts_of(trainer)])
    assert len(set(rewards)) > 1
    assert not tiny_model.lm_head.weight.equal(before)
    assert (reward.errors, reward.skips) == (0, 0)


@pytest.mark.line_b
def test_details_reach_the_logs_of_trl(make_tiny_trainer):
    trainer = make_tiny_trainer([VerlReward(verl_row)], dataset(COLUMNS))
    trainer.train()
    last = [entry for entry in trainer.state.log_history if "reward" in entry][-1]
    texts = texts_of(trainer)
    assert last["rewards/verl_row/length"] == pytest.approx(sum(map(len, texts)) / len(texts))
    assert (last["rewards/verl_row/errors"], last["rewards/verl_row/skips"]) == (0.0, 0.0)
    assert list(trainer._logs["extra"]["verl_row/pred"]) == texts
