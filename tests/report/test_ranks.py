"""Evaluation, health and report say on two ranks what they say on one."""

import json

import pytest

pytest.importorskip("plotly", reason="needs plotly (the extra report)")

from tests.conformance.runs import build_model
from tests.ranks import run_ranks
from tests.report.two_ranks import watched
from trl_grpo_ext.evaluation import read_rows


def test_two_ranks_say_what_one_says(tmp_path):
    model = build_model(tmp_path / "model")
    run_ranks("tests.report.two_ranks", model, tmp_path / "two")
    _, one = watched(model, tmp_path / "one")
    assert [json.loads((tmp_path / "two" / f"rank-{rank}.json").read_text()) for rank in (0, 1)] == [one, one]
    assert [item["rule"] for item in one["findings"]] == ["dead_groups"]
    assert one["figures"]["has_solution/avg@4"] not in (0.0, 1.0)
    # Written once, by the main process, and the report has it.
    files = {name: [read_rows(tmp_path / folder / name) for folder in ("one", "two")] for name in FILES}
    assert files["health.jsonl"][0] == files["health.jsonl"][1] and len(files["health.jsonl"][0]) == 1
    assert files["evaluation_samples.jsonl"][0] == files["evaluation_samples.jsonl"][1]
    assert len(files["evaluation_samples.jsonl"][0]) == 28
    # Two ranks of the same batch size generate twice as many completions, and all are kept, once.
    assert [len(rows) for rows in files["completions.jsonl"]] == [11 * 8, 11 * 16]
    assert all([row["step"] for row in rows[:: len(rows) // 11]] == list(range(1, 12)) for rows in files[LAST])
    for name in ("one", "two"):
        page = (tmp_path / name / "report.html").read_text()
        assert "dead_groups" in page and "11 of 11 steps" in page


LAST = "completions.jsonl"
FILES = ("health.jsonl", "evaluation_samples.jsonl", LAST)
