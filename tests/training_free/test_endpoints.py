"""The loop over real models and a real HTTP server, which goes away in the middle."""

import json

import pytest

from tests.training_free.http_server import Answer, completion, error, serving
from tests.training_free.lesson_world import World
from tests.training_free.runs import GATE, export, train
from tests.training_free.tiny_models import SHARED, STORIES
from trl_grpo_ext.training_free import BackendError, ChatRequest, GateConfig, TrainingFreeConfig, TrainingFreeGRPO

WORLD = World(seed=1)
SMALL = {"problems": 6, "held_out": 24}


def served(world, alive=lambda: True):
    """Answers of an endpoint behind which the world's policy and reflector stand, as long as it is alive."""

    def answer(body):
        if not alive():
            return Answer(503, error("overloaded"))
        messages = tuple((message["role"], message["content"]) for message in body["messages"])
        request = ChatRequest(messages, body["temperature"], body["max_tokens"], body["seed"])
        script = world.policy if body["model"] == "policy" else world.reflector
        return Answer(body=completion(script(request, 0)))

    return answer


def over_http(url, output_dir, concurrency=16):
    pytest.importorskip("httpx")
    from trl_grpo_ext.training_free.backends import OpenAIBackend, RetryPolicy

    retry = RetryPolicy(attempts=2, base=0.001)
    models = [
        OpenAIBackend(url, name, retry=retry, label=name, concurrency=concurrency) for name in ("policy", "reflector")
    ]
    settings = {"batch_size": 6, "num_train_epochs": 2, "gate": GATE, "max_attempts": 2}
    config = TrainingFreeConfig(**settings)
    return TrainingFreeGRPO(models[0], config, reflector=models[1], output_dir=output_dir)


def test_a_run_over_http_is_the_same_at_any_concurrency(tmp_path):
    exports = []
    for concurrency in (2, 16):
        with serving(served(WORLD)) as endpoint:
            run = over_http(endpoint.url, tmp_path / str(concurrency), concurrency)
            train(run, WORLD, **SMALL)
            assert 1 < endpoint.most_under_way <= concurrency
            assert run.report.spent["calls"] == len(endpoint.requests)
        exports.append(export(run, tmp_path))
    assert exports[0] == exports[1] and run.library.lesson_count() >= 4


@pytest.mark.parametrize("last", [15, 45, 65])
def test_a_server_that_dies_and_comes_back(tmp_path, last):
    """In the rollouts, in the reflection, and in the gate's rollouts: the run stops or goes on, and loses nothing."""
    answered, stopped = [], False

    def alive():
        answered.append(1)
        return len(answered) <= last

    with serving(served(WORLD, alive)) as endpoint:
        try:
            train(over_http(endpoint.url, tmp_path), WORLD, **SMALL)
        except BackendError as failed:
            stopped = "overloaded" in str(failed) and "run the same command again" in str(failed)
    assert stopped
    with serving(served(WORLD)) as endpoint:
        run = over_http(endpoint.url, tmp_path)
        train(run, WORLD, **SMALL)
    assert run.report.status == "finished" and run.report.pending == []
    assert len(run.report.lessons) >= 4 and set(run.report.lessons.values()) <= set(WORLD.truth())


def rows_of_gsm8k(count):
    path = SHARED / "data" / "gsm8k" / "train.jsonl"
    if not path.is_file():
        pytest.skip("../shared/data/gsm8k is not here")
    with path.open(encoding="utf-8") as file:
        found = [json.loads(next(file)) for _ in range(count)]
    return [{"prompt": row["question"], "solution": row["answer"], "answer": row["answer"]} for row in found]


@pytest.mark.skipif(not STORIES.is_dir(), reason="../shared/models/stories260K is not here")
def test_a_model_that_can_not_solve_anything_learns_nothing(tmp_path):
    """A real model of 260 K parameters on real problems: no lesson is the right answer."""
    gate = GateConfig(min_pairs=2, max_pairs=4, look_every=2)
    config = TrainingFreeConfig(
        num_generations=2,
        num_train_epochs=1,
        batch_size=4,
        max_completion_length=8,
        max_reflection_length=8,
        gate=gate,
    )
    run = TrainingFreeGRPO(str(STORIES), config, output_dir=tmp_path)
    assert run.train(rows_of_gsm8k(6), "math_equal") == []
    assert run.report.status == "finished" and run.report.steps[0]["rollouts"] == 8
    assert run.report.rewards == [0.0]
    again = TrainingFreeGRPO(str(STORIES), config, output_dir=tmp_path)
    again.train(rows_of_gsm8k(6), "math_equal")
    assert again.report.spent == run.report.spent
    assert isinstance(run.infer("Once upon a time"), str)
