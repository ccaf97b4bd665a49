"""ReportCallback on both trainers: the report is there when the training ends, and a failed one stops nothing."""

import json

import pytest

pytest.importorskip("plotly", reason="needs plotly (the extra report)")

from tests.conformance.runs import assert_same, build_model, extended, logged, parameters, stock, trained, wordy
from trl_grpo_ext._compat import library_versions
from trl_grpo_ext.cli.report import main
from trl_grpo_ext.report import ReportCallback
from trl_grpo_ext.row_log import read_rows

MAKE = {"stock": stock, "extended": extended}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("model"))


def sevens(completions, **kwargs):
    return [float(text.count("7")) for text in completions]


@pytest.mark.parametrize("make", MAKE)
def test_a_run_reports_by_itself(make, model, tmp_path):
    settings = {"reward": [wordy, sevens], "reward_weights": [1.0, 0.5], "hub_token": "secret-token", "max_steps": 4}
    # One generation for two steps, and an evaluation between them, whose completions are none of the training's.
    settings |= {"steps_per_generation": 4, "eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 8}
    callback = ReportCallback(
        pictures=make == "stock",
        tables=lambda: {"Lessons": (["text"], [["Add first."]])},
        settings={"mine": {"data": "sums"}},
    )
    shown = trained(MAKE[make](model, tmp_path / "one", callbacks=[callback], **settings))
    page = (tmp_path / "one" / "report.html").read_text()
    assert "4 of 4 steps" in page and "<td>sevens</td>" in page and "secret-token" not in page
    kept = json.loads((tmp_path / "one" / "run_settings.json").read_text())
    assert kept["reward weights"] == {"wordy": 1.0, "sevens": 0.5} and kept["mine"] == {"data": "sums"}
    assert kept["arguments"]["num_generations"] == 4 and kept["arguments"]["hub_token"] == "<HUB_TOKEN>"
    assert kept["versions"] == library_versions() and {"trl", "torch", "python"} <= set(kept["versions"])
    for text in ("num_generations", "reward weights", "Add first.", "sums", f"<td>{kept['versions']['torch']}</td>"):
        assert text in page
    assert (tmp_path / "one" / "grpo_reward.png").exists() == (make == "stock")
    # The folder is as a later `grpo-ext report` needs it.
    assert main([str(tmp_path / "one"), "--output", str(tmp_path / "again.html")]) == 0
    plain = trained(MAKE[make](model, tmp_path / "two", **settings))
    assert_same(parameters(shown), parameters(plain), tolerance=0.0)
    assert_completions_are_those_of_the_run(tmp_path / "one" / "completions.jsonl", shown)


def assert_completions_are_those_of_the_run(path, trainer):
    rows = read_rows(path)
    assert [row["step"] for row in rows] == [1] * 16 + [3] * 16
    for place, step in enumerate((1, 3)):
        own = [row for row in rows if row["step"] == step]
        assert logged(trainer, "reward")[place] == pytest.approx(sum(row["reward"] for row in own) / 16)
        for start in range(0, 16, 4):
            group = own[start : start + 4]
            assert len({row["prompt"] for row in group}) == 1
            assert sum(row["advantage"] for row in group) == pytest.approx(0.0, abs=1e-4)
    for row in rows:
        assert row["rewards"]["sevens"] == row["completion"].count("7")
        assert row["reward"] == pytest.approx(row["rewards"]["wordy"] + 0.5 * row["rewards"]["sevens"])


def sometimes(completions, **kwargs):
    return [None if "7" in text else 1.0 for text in completions]


def test_completions_of_a_resumed_run_and_without_a_reward(model, tmp_path):
    settings = {"reward": sometimes, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    trained(stock(model, tmp_path, callbacks=[ReportCallback(at_end=False)], **settings))
    path = tmp_path / "completions.jsonl"
    before = path.read_text().splitlines()
    with open(path, "a") as file:
        file.write('{"step": 9, "prom')
    trainer = stock(model, tmp_path, callbacks=[ReportCallback(at_end=False)], **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    rows = read_rows(path)
    assert path.read_text().splitlines()[:16] == before[:16] and len(before) == 32
    assert [row["step"] for row in rows[::8]] == [1, 2, 3, 4]
    assert {row["reward"] for row in rows if "7" in row["completion"]} == {None} != {row["reward"] for row in rows}
    off = ReportCallback(at_end=False, completions=False)
    trained(stock(model, tmp_path / "off", callbacks=[off], max_steps=1))
    assert not (tmp_path / "off" / "completions.jsonl").exists()


def test_another_trainer_is_refused(tmp_path):
    with pytest.raises(TypeError, match="needs a GRPOTrainer"):
        ReportCallback().on_train_begin(None, None, None)


def test_a_report_that_fails_stops_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr("trl_grpo_ext.report.html.find_spec", lambda name: None)
    trainer = trained(stock(model, tmp_path, callbacks=[ReportCallback(control=tmp_path / "none")]))
    assert trainer.state.global_step == 3 and not (tmp_path / "report.html").exists()
    assert (tmp_path / "trainer_state.json").exists()


def test_the_settings_alone(model, tmp_path):
    trained(stock(model, tmp_path, callbacks=[ReportCallback(at_end=False)]))
    assert (tmp_path / "run_settings.json").exists() and not (tmp_path / "report.html").exists()
