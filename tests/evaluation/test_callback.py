"""EvaluationCallback on the stock trainer and on ours: figures, the best checkpoint by them, nothing else changed."""

import json
import math

import pytest
import torch

from tests.conformance.runs import CHARACTERS, assert_same, build_model, extended, logged, parameters, stock, wordy
from trl_grpo_ext.evaluation import EvaluationCallback, Sampling, evaluate, flexible_match, read_rows, rows_of_step

MAKE = {"stock": stock, "extended": extended}
PROBLEMS = [{"prompt": text, "solution": "7"} for text in ("say ", "1 ", "7 ")]
EVALUATING = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("model"))


def has_solution(completions, solution, **kwargs):
    return [float(gold in text) for text, gold in zip(completions, solution, strict=True)]


def make_callback(**options):
    sampling = Sampling(samples=4, max_new_tokens=6, batch_size=5, seed=3)
    return EvaluationCallback(PROBLEMS, [has_solution], sampling, **options)


@pytest.mark.parametrize("make", MAKE)
def test_figures_are_those_of_the_file(make, model, tmp_path):
    callback = make_callback()
    trainer = MAKE[make](model, tmp_path, callbacks=[callback], max_steps=2, **EVALUATING)
    trainer.train()
    rows = read_rows(tmp_path / "evaluation_samples.jsonl")
    assert [(row["step"], row["evaluation"]) for row in rows] == [(1, 1)] * 12 + [(2, 2)] * 12
    for step in (1, 2):
        estimates = evaluate(rows_of_step(rows, step)[0], [has_solution]).estimates()
        assert set(estimates) == {
            f"has_solution/{name}" for name in ("avg@4", *(f"pass{s}{k}" for s in "@^" for k in (1, 2, 4)))
        }
        for name, item in estimates.items():
            assert logged(trainer, f"eval_{name}")[step - 1] == pytest.approx(item.value), name
            assert logged(trainer, f"eval_{name}_low")[step - 1] == pytest.approx(item.low)
    for row in rows:
        assert row["scores"]["has_solution"] == float("7" in row["completion"]) and row["sample"] < 4
        # The untrained model draws the padding token too, which no text shows.
        assert len(row["completion"]) <= row["tokens"] <= 6
        assert row["truncated"] == (row["tokens"] == 6)


@pytest.mark.parametrize("make", MAKE)
def test_training_goes_on_as_without_it(make, model, tmp_path):
    def run(callbacks, **settings):
        trainer = MAKE[make](model, tmp_path / str(len(callbacks)), callbacks=callbacks, max_steps=3, **EVALUATING)
        before = torch.random.get_rng_state()
        trainer.train()
        assert not torch.equal(before, torch.random.get_rng_state())
        return trainer

    plain, evaluated = run([]), run([make_callback()])
    assert_same(parameters(evaluated), parameters(plain), tolerance=0.0)
    assert evaluated.model.generation_config.to_dict() == plain.model.generation_config.to_dict()
    assert evaluated.model.config.use_cache == plain.model.config.use_cache
    assert logged(evaluated, "eval_reward") == logged(plain, "eval_reward")


def test_samples_come_from_the_policy_without_the_model_s_own_settings(model, tmp_path):
    """A generation config that would make every sample greedy is not read; the share of each first token is its probability."""
    trainer = stock(model, tmp_path, max_steps=1)
    trainer.model.generation_config.top_k, trainer.model.generation_config.temperature = 1, 0.01
    # Nothing of ours says a word of this one: transformers fills it in from the model's own.
    trainer.model.generation_config.suppress_tokens = [2, 3]
    callback = EvaluationCallback(
        [{"prompt": "say "}], [wordy_score], Sampling(samples=2000, max_new_tokens=1, batch_size=500)
    )
    callback.attach(trainer)
    callback.evaluate()
    rows = read_rows(tmp_path / "evaluation_samples.jsonl")
    ids = torch.tensor([trainer.processing_class("say ")["input_ids"]])
    with torch.no_grad():
        shares = trainer.model.eval()(ids).logits[0, -1].float().softmax(-1)
    for place, character in enumerate(CHARACTERS, 2):
        drawn = sum(row["completion"] == character for row in rows) / len(rows)
        assert drawn == pytest.approx(shares[place].item(), abs=4 * math.sqrt(0.25 / 2000))
    assert trainer.model.generation_config.top_k == 1


def wordy_score(completions, **kwargs):
    return wordy(completions)


def hacked(completions, **kwargs):
    """A reward that can be hacked: every 7 and every character counts."""
    return [float(text.count("7") * 3 + len(text)) for text in completions]


def short(completions, **kwargs):
    """What is wanted: an answer of at most two 7s."""
    return [float(text.count("7") <= 2) for text in completions]


def test_a_hacked_reward_picks_the_wrong_checkpoint_and_the_metric_the_right_one(model, tmp_path):
    """The reward rises from step to step while what is wanted falls: TRL #2959."""
    callback = EvaluationCallback(PROBLEMS, [short], Sampling(samples=32, max_new_tokens=5, batch_size=96), ks=[1])
    trainer = stock(
        model, tmp_path, reward=hacked, callbacks=[callback], metric_for_best_model="eval_short/avg@32",
        load_best_model_at_end=True, greater_is_better=True, max_steps=6, eval_steps=2, save_steps=2,
        save_strategy="steps", learning_rate=3.0, eval_strategy="steps", per_device_eval_batch_size=8,
    )  # fmt: skip
    trainer.train()
    figures, rewards = logged(trainer, "eval_short/avg@32"), logged(trainer, "eval_reward")
    assert rewards[-1] == max(rewards) > rewards[0] + 1 and figures[0] == max(figures) > figures[-1] + 0.1
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    # The model that is left is the one that was picked.
    assert callback.evaluate()["short/avg@32"] == pytest.approx(figures[0])


def test_a_resumed_run_goes_on_with_the_file(model, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **EVALUATING}
    stock(model, tmp_path, callbacks=[make_callback()], **settings).train()
    before = (tmp_path / "evaluation_samples.jsonl").read_text().splitlines()
    with open(tmp_path / "evaluation_samples.jsonl", "a") as file:
        file.write('{"step": 4, "prompt": "to')
    trainer = stock(model, tmp_path, callbacks=[make_callback()], **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    after = (tmp_path / "evaluation_samples.jsonl").read_text().splitlines()
    assert after[:24] == before[:24] and len(after) == 48
    assert [json.loads(line)["step"] for line in after[24:]] == [3] * 12 + [4] * 12
    assert [json.loads(line)["evaluation"] for line in after[24::12]] == [3, 4]


def test_several_evaluation_sets_are_one_evaluation(model, tmp_path):
    callback = make_callback()
    trainer = stock(model, tmp_path, callbacks=[callback], max_steps=1, **EVALUATING)
    callback.attach(trainer)
    data = trainer.eval_dataset
    trainer.evaluate({"one": data, "two": data})
    assert len(read_rows(tmp_path / "evaluation_samples.jsonl")) == 12
    metrics = trainer.evaluate({"one": data, "two": data})
    rows = read_rows(tmp_path / "evaluation_samples.jsonl")
    assert len(rows) == 24 and "eval_has_solution/pass@4" in metrics
    # Both are of step 0: the figures of a step are those of its last evaluation.
    last, _ = rows_of_step(rows, 0)
    assert last == rows[12:] and {row["evaluation"] for row in last} == {2}
    assert evaluate(last, [has_solution]).means()["has_solution/avg@4"] == metrics["eval_has_solution/avg@4"]
    # Another process that evaluates into the file goes on counting.
    again = make_callback()
    again.attach(trainer)
    again.evaluate()
    assert [row["evaluation"] for row in read_rows(tmp_path / "evaluation_samples.jsonl")[24:]] == [3] * 12


def test_the_names_of_the_figures_are_known_before(model, tmp_path):
    callback = EvaluationCallback(PROBLEMS, [has_solution, flexible_match], Sampling(samples=3, max_new_tokens=2))
    callback.attach(stock(model, tmp_path, max_steps=1))
    figures = callback.evaluate()
    assert callback.figure_names() == [name for name in figures if not name.endswith(("_low", "_high"))]
    assert "flexible_match/maj@3" in figures and "has_solution/maj@3" not in figures


def test_bad_input_is_refused_early(model, tmp_path):
    for arguments, message in (
        (([], [has_solution]), "at least one row"),
        (([{"solution": "1"}], [has_solution]), "has no prompt"),
        (([PROBLEMS[0], PROBLEMS[0]], [has_solution]), "the same problem"),
        (([PROBLEMS[0] | {"step": 1}], [has_solution]), "'step' is one that the file of samples adds"),
        ((PROBLEMS, []), "at least one function"),
        ((PROBLEMS, [has_solution, has_solution]), "a name of its own"),
        ((PROBLEMS, [object()]), "has no __name__"),
    ):
        with pytest.raises(ValueError, match=message):
            EvaluationCallback(*arguments)
    with pytest.raises(ValueError, match="ks must be from 1"):
        make_callback(ks=[8])
    for wrong, message in (
        ({"samples": 0}, "samples must"),
        ({"temperature": -1.0}, "temperature must"),
        ({"top_p": 0.0}, "top_p must"),
        ({"samples": 2, "temperature": 0.0}, "the same completion 2 times"),
    ):
        with pytest.raises(ValueError, match=message):
            Sampling(**wrong)
    with pytest.raises(TypeError, match="needs a GRPOTrainer"):
        make_callback().attach(object())
    with pytest.raises(RuntimeError, match="call attach"):
        make_callback().evaluate()
