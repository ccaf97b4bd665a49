"""EvaluationCallback on LLaMA-Factory's stage grpo: its template, its stop words, its best checkpoint."""

import json

import pytest

pytest.importorskip("llamafactory", reason="needs LLaMA-Factory (line A)")

from tests.llamafactory_plugin import tiny
from tests.llamafactory_plugin.conftest import Workspace, quiet_environment  # noqa: F401
from trl_grpo_ext.cli.evaluate import main
from trl_grpo_ext.evaluation import EvaluationCallback, Sampling, read_rows

pytestmark = pytest.mark.line_a


def vowels(completions, **kwargs):
    texts = [completion[0]["content"] for completion in completions]
    return [float(any(letter in "aeiou" for letter in text)) for text in texts]


def test_the_best_checkpoint_of_a_run_is_the_metric_s(tmp_path, capsys):
    workspace = Workspace(tmp_path, tiny.build_model(tmp_path / "model"))
    rows = tiny.questions(5, seed=9)
    problems = [
        {"prompt": [{"role": "user", "content": row["instruction"]}], "solution": row["output"]} for row in rows
    ]
    callback = EvaluationCallback(problems, [vowels], Sampling(samples=4, max_new_tokens=8))
    evaluating = {"eval_strategy": "steps", "eval_steps": 1, "val_size": 4, "per_device_eval_batch_size": 8}
    best = {"metric_for_best_model": "eval_vowels/avg@4", "load_best_model_at_end": True, "save_strategy": "steps"}
    workspace.run(callbacks=[callback], save_steps=1, **evaluating, **best)
    samples = read_rows(workspace.output / "evaluation_samples.jsonl")
    assert [row["step"] for row in samples] == [1] * 20 + [2] * 40
    state = json.loads((workspace.output / "trainer_state.json").read_text())
    figures = [entry["eval_vowels/avg@4"] for entry in state["log_history"] if "eval_vowels/avg@4" in entry]
    assert len(figures) == 2 and state["best_metric"] == max(figures)
    for step in (1, 2):
        scores = [row["scores"]["vowels"] for row in samples if row["step"] == step][:20]
        assert figures[step - 1] == pytest.approx(sum(scores) / 20)
    # After training LLaMA-Factory evaluates the best model, which is loaded by then.
    final = [row["scores"]["vowels"] for row in samples[40:]]
    assert state["best_metric"] == pytest.approx(sum(final) / 20)
    # The file that stage grpo writes by itself can be evaluated after the run.
    assert main([str(workspace.output / "eval_completions.jsonl"), "--scorer", "normalised_match", "--step", "1"]) == 0
    assert "normalised_match/pass@4" in capsys.readouterr().out
