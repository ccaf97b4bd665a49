"""`grpo_eval_metrics`, `do_predict`, the watching callbacks and the report in LLaMA-Factory's stage grpo, by YAML keys."""

import json

import pytest

pytest.importorskip("llamafactory", reason="needs LLaMA-Factory (line A)")

from llamafactory_plugin.errors import UsageError
from tests.llamafactory_plugin import tiny
from tests.llamafactory_plugin.conftest import Workspace, quiet_environment  # noqa: F401
from trl_grpo_ext.evaluation import evaluate, read_rows, rows_of_step
from trl_grpo_ext.experience import ExperienceLibrary, Lesson

pytestmark = pytest.mark.line_a

# The reward counts vowels, and can be hacked by writing nothing else; what can be read has other letters too.
REWARDS = """
def text_of(completion):
    return completion[0]["content"]

def vowels(completions, **kwargs):
    return [sum(letter in "aeiou" for letter in text_of(item)) / max(len(text_of(item)), 1) for item in completions]

def readable(completions, **kwargs):
    return [float(share <= 0.25) for share in vowels(completions)]

def of_the_trainer(completions, trainer_state, **kwargs):
    return [0.0] * len(completions)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def workspace(tmp_path, model):
    workspace = Workspace(tmp_path, model)
    (tmp_path / "rewards.py").write_text(REWARDS, encoding="utf-8")
    workspace.defaults |= {
        "reward_funcs": f"{tmp_path / 'rewards.py'}:vowels",
        "grpo_reward_in_process": True,
        "grpo_eval_metrics": f"{tmp_path / 'rewards.py'}:readable",
        "val_size": 4,
        "per_device_eval_batch_size": 8,
        "grpo_disable_report": None,
    }
    return workspace


def state_of(workspace):
    return json.loads((workspace.output / "trainer_state.json").read_text())


def figures(workspace, name):
    return [entry[name] for entry in state_of(workspace)["log_history"] if name in entry]


def test_a_hackable_reward_picks_the_wrong_checkpoint_and_the_metric_the_right_one(workspace):
    """One run, judged by both: the reward has its best checkpoint at the end, what is wanted before."""
    workspace.run(
        eval_strategy="steps", eval_steps=4, save_strategy="steps", save_steps=4, max_steps=12, logging_steps=1,
        load_best_model_at_end=True, finetuning_type="full", learning_rate=2e-2, per_device_train_batch_size=32,
        grpo_group_size=8, disable_gradient_checkpointing=True, plot_loss=True, grpo_eval_samples=16, do_predict=True,
    )  # fmt: skip
    state = state_of(workspace)
    metric, rewards = figures(workspace, "eval_readable/avg@16"), figures(workspace, "eval_reward")
    # The last evaluation is that of the model that was picked.
    assert rewards[2] == max(rewards[:3]) > rewards[0] + 0.05, "the reward would keep the last checkpoint"
    assert metric[0] == max(metric[:3]) > metric[2] + 0.2, metric
    assert state["best_model_checkpoint"].endswith("checkpoint-4") and state["best_metric"] == pytest.approx(metric[0])
    # What is left, and what do_predict measures, is the model that the metric picked.
    predicted = json.loads((workspace.output / "predict_results.json").read_text())
    assert predicted["predict_readable/avg@16"] == pytest.approx(metric[0])
    rows = read_rows(workspace.output / "predict_samples.jsonl")
    assert len(rows) == 4 * 16 and {row["scores"]["readable"] for row in rows} <= {0.0, 1.0}
    measured = evaluate(rows, ks=[1, 16]).means()
    assert measured["readable/pass@16"] == pytest.approx(predicted["predict_readable/pass@16"])
    # After training the best model is evaluated once more, at the last step: the file tells the two apart.
    samples = read_rows(workspace.output / "evaluation_samples.jsonl")
    assert [row["evaluation"] for row in samples[:: 4 * 16]] == [1, 2, 3, 4]
    assert evaluate(rows_of_step(samples)[0]).means()["readable/avg@16"] == pytest.approx(metric[0])
    for name in ("reward", "frac_reward_zero_std", "eval_readable_avg@16", "eval_readable_pass@4"):
        assert (workspace.output / f"training_{name}.png").stat().st_size > 5000
    assert not list(workspace.output.glob("training_*_low.png"))
    page = (workspace.output / "report.html").read_text()
    assert "Independent metric: readable" in page and "12 of 12 steps" in page and "checkpoint-4" in page
    assert "grpo_eval_metrics" in page and "num_generations" in page and "per_device_train_batch_size" in page


def test_do_predict_alone(workspace):
    arguments = {"do_train": False, "do_predict": True, "grpo_eval_metrics": "normalised_match,flexible_match"}
    tiny.write_dataset(
        workspace.data, "sums", [{"instruction": f"{i} + 1?", "output": f"{i + 1}"} for i in (1, 2, 2, 5)]
    )
    for _ in range(2):
        workspace.run(**arguments, dataset=None, eval_dataset="sums", val_size=None, grpo_eval_temperature=0)
    predicted = json.loads((workspace.output / "predict_results.json").read_text())
    # Two of the four rows are the same, and greedy samples are one of each.
    assert len(read_rows(workspace.output / "predict_samples.jsonl")) == 3
    assert 0 <= predicted["predict_normalised_match/pass@1"] <= 1 and "predict_flexible_match/maj@1" in predicted
    assert not (workspace.output / "eval_completions.jsonl").exists()
    assert not (workspace.output / "report.html").exists()


def test_each_is_switched_off_by_its_key(workspace, capfd):
    zero = workspace.folder / "zero.py"
    zero.write_text("def zero(completions, **kwargs):\n    return [0.0] * len(completions)\n", encoding="utf-8")
    common = {"reward_funcs": f"{zero}:zero", "grpo_eval_metrics": None, "val_size": None, "max_steps": 10}
    with ExperienceLibrary(workspace.folder / "lessons.db") as library:
        library.add(Lesson("Write fewer vowels."))
    told = {"experience_library": str(workspace.folder / "lessons.db"), "ms_hub_token": "very-secret"}
    workspace.run(**common, **told)
    shown = capfd.readouterr().err
    assert "step 10/10 | reward 0.000" in shown and "A loss near 0 is normal" in shown
    (found,) = read_rows(workspace.output / "health.jsonl")
    assert found["rule"] == "dead_groups" and "too hard" in found["seen"]
    page = (workspace.output / "report.html").read_text()
    for text in (
        "dead_groups",
        "Write fewer vowels.",
        "LLaMA-Factory&#x27;s keys",
        "<td>ms_hub_token</td>",
        "trl-grpo-ext",
    ):
        assert text in page
    assert "very-secret" not in page + (workspace.output / "run_settings.json").read_text()
    # The trainer writes its completions itself, each once.
    steps = [row["step"] for row in read_rows(workspace.output / "completions.jsonl")]
    assert len(steps) == 10 * steps.count(1) and steps == sorted(steps)
    off = {f"grpo_disable_{name}": True for name in ("live", "health", "report")}
    workspace.run(**common, **off, output_dir=str(workspace.folder / "off"))
    assert "step 10/10 | reward" not in capfd.readouterr().err
    for name in ("health.jsonl", "report.html", "run_settings.json"):
        assert not (workspace.folder / "off" / name).exists()


def test_early_stopping_looks_at_the_metric(workspace):
    same = workspace.folder / "same.py"
    same.write_text("def same(completions, **kwargs):\n    return [1.0] * len(completions)\n", encoding="utf-8")
    stopping = {"early_stopping_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 6}
    stopping |= {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1}
    workspace.run(**stopping, grpo_eval_metrics=f"{same}:same", grpo_eval_samples=1, grpo_disable_report=True)
    state = state_of(workspace)
    assert state["global_step"] == 2 and state["best_metric"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grpo_eval_metrics": "no_such", "do_eval": True}, "grpo_eval_metrics: .*no_such"),
        ({"grpo_eval_metrics": "strict_match", "do_predict": True}, "grpo_eval_metrics: strict_match .*no number"),
        ({"grpo_eval_metrics": "rewards.py:of_the_trainer", "do_eval": True}, "'trainer_state', which only a trainer"),
        ({"do_eval": True, "grpo_eval_samples": 2, "grpo_eval_temperature": 0}, "grpo_eval_samples: temperature 0"),
        ({"do_eval": True, "grpo_eval_samples": 0}, "grpo_eval_samples must be a whole number"),
        ({"grpo_disable_live": "perhaps"}, "grpo_disable_live"),
        (
            {"metric_for_best_model": "eval_readable/avg@3", "load_best_model_at_end": True, "eval_strategy": "steps"}
            | {"save_strategy": "steps"},
            "no evaluation logs 'eval_readable/avg@3'; did you mean 'eval_readable/avg@4'",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_the_model_is_loaded(workspace, arguments, message, monkeypatch):
    monkeypatch.chdir(workspace.folder)
    monkeypatch.setattr("llamafactory_plugin.workflow.load_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises((UsageError, ValueError), match=message):
        workspace.run(**arguments)
    assert not workspace.output.exists()
