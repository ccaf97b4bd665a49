"""The curves as PNG files: of a run alone, with a control run, by the command and by the callback's function."""

import json

import pytest

pytest.importorskip("matplotlib", reason="needs matplotlib (the extra report)")
pytest.importorskip("plotly", reason="needs plotly (the extra report)")

from tests.report.test_report import make_run
from trl_grpo_ext.cli.report import main
from trl_grpo_ext.report import pictures, write_pictures
from trl_grpo_ext.report.charts import panel_names, series
from trl_grpo_ext.report.run_files import load_run


def test_a_picture_for_every_panel(tmp_path, monkeypatch):
    run, drawn = make_run(tmp_path / "run"), {}
    own = pictures._lines

    def lines(axes, name, *rest):
        own(axes, name, *rest)
        drawn[name] = [(line.get_label(), line.get_linestyle(), list(line.get_ydata())) for line in axes.lines]

    monkeypatch.setattr(pictures, "_lines", lines)
    paths = write_pictures(run, make_run(tmp_path / "control", steps=6))
    titles = panel_names(series(load_run(run).history))
    assert len(paths) == len(titles) >= 7 and paths[0] == run / "grpo_reward.png"
    assert paths[1].name == "grpo_independent_metric_m_with_95_interval.png"
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
    assert drawn["reward"][:2] == [
        ("reward", "-", [step / 12 for step in range(1, 13)]),
        ("reward (control)", ":", [step / 6 for step in range(1, 7)]),
    ]


def test_the_command_writes_them(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    history = [{"step": step, "reward": 0.5} for step in (1, 2)]
    (run / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert main([str(run)]) == 0 and not list(run.glob("*.png"))
    assert main([str(run), "--pictures"]) == 0
    assert [path.name for path in run.glob("*.png")] == [
        "grpo_reward.png"
    ] and ", 1 PNG files" in capsys.readouterr().out


def test_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    assert main([str(make_run(tmp_path / "run")), "--pictures"]) == 1
    assert "the pictures need matplotlib: pip install" in capsys.readouterr().err
