"""ReportCallback on both trainers: the report is there when the training ends, and a failed one stops nothing."""

import json

import pytest

pytest.importorskip("plotly", reason="needs plotly (the extra report)")

from tests.conformance.runs import assert_same, build_model, extended, parameters, stock, trained, wordy
from trl_grpo_ext.cli.report import main
from trl_grpo_ext.report import ReportCallback

MAKE = {"stock": stock, "extended": extended}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("model"))


def sevens(completions, **kwargs):
    return [float(text.count("7")) for text in completions]


@pytest.mark.parametrize("make", MAKE)
def test_a_run_reports_by_itself(make, model, tmp_path):
    settings = {"reward": [wordy, sevens], "reward_weights": [1.0, 0.5], "hub_token": "secret-token"}
    shown = trained(MAKE[make](model, tmp_path / "one", callbacks=[ReportCallback()], **settings))
    page = (tmp_path / "one" / "report.html").read_text()
    assert "3 of 3 steps" in page and "<td>sevens</td>" in page and "secret-token" not in page
    kept = json.loads((tmp_path / "one" / "run_settings.json").read_text())
    assert kept["reward weights"] == {"wordy": 1.0, "sevens": 0.5}
    assert kept["arguments"]["num_generations"] == 4 and kept["arguments"]["hub_token"] == "<HUB_TOKEN>"
    for name in ("num_generations", "reward weights", "max_completion_length"):
        assert name in page
    # The folder is as a later `grpo-ext report` needs it.
    assert main([str(tmp_path / "one"), "--output", str(tmp_path / "again.html")]) == 0
    plain = trained(MAKE[make](model, tmp_path / "two", **settings))
    assert_same(parameters(shown), parameters(plain), tolerance=0.0)


def test_a_report_that_fails_stops_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr("trl_grpo_ext.report.html.find_spec", lambda name: None)
    trainer = trained(stock(model, tmp_path, callbacks=[ReportCallback(control=tmp_path / "none")]))
    assert trainer.state.global_step == 3 and not (tmp_path / "report.html").exists()
    assert (tmp_path / "trainer_state.json").exists()


def test_the_settings_alone(model, tmp_path):
    trained(stock(model, tmp_path, callbacks=[ReportCallback(at_end=False)]))
    assert (tmp_path / "run_settings.json").exists() and not (tmp_path / "report.html").exists()
