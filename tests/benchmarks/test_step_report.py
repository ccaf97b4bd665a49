"""The goals, tables and picture of `benchmarks/step.py`, from made figures."""

import json

import pytest
import step
from step_parts import goals, report
from step_parts.phases import PHASES

from .conftest import REPOSITORY

ENVIRONMENT = {
    "trl": "9.9",
    "transformers": "5",
    "torch": "2",
    "device": "CPU, 1 thread, fp32",
    "clock": "CPU seconds",
}


def row(part, shape, stock, ours, model="toy", limit=4.0, rows=None, layers=None):
    place = dict(zip(("prompt", "completion", "group"), shape, strict=True))
    place |= {"part": part, "model": model, "rows": rows or shape[2], "layers": layers}
    arms = {}
    for arm, cost, peak in (("stock", stock, 400), ("ours", ours, 100)):
        arms[arm] = {"forward": cost / 3, "backward": cost * 2 / 3, "peak_bytes": peak * 2**20}
        if part == "step":
            arms[arm] |= {"phases": dict.fromkeys(PHASES, cost / len(PHASES)), "seconds": cost}
    speed = stock / ours
    figures = {"speedup": speed, "spread": 0.02, "limit": limit, "share_of_limit": speed / limit, "memory_ratio": 0.25}
    return place | arms | figures | ({} if part == "step" else {"gradient_difference": 4e-7})


ROWS = [
    row("update", (1024, 128, 8), 38.0, 10.0),
    row("update", (128, 512, 8), 9.0, 10.0, limit=1.2),
    row("update", (1024, 128, 8), 10.0, 5.0, "half_billion", limit=2.1),
    row("update", (1024, 128, 8), 30.0, 10.0, "half_billion", limit=3.0, layers=6),
    row("scaling", (1024, 4, 2), 2.0, 1.0),
    row("scaling", (1024, 4, 16), 16.0, 1.1),
    *(row("scaling", (1024, 128, group), 3.0 * group, 1.0 + 0.1 * group) for group in (2, 4, 8)),
    row("step", (1024, 128, 8), 20.0, 8.0),
    row("step", (1024, 128, 8), 20.0, 19.0, rows=2),
]


def document():
    return {"name": "step", "environment": ENVIRONMENT, "results": ROWS, "goals": goals.goals(ROWS)}


def test_goals_are_the_lines_of_the_issue():
    found = {goal["name"]: (goal["value"], goal["met"]) for goal in goals.goals(ROWS)}
    assert found == {
        "largest relative difference of a gradient": (4e-7, True),
        "least share of the FLOP limit, toy": (0.75, False),
        "least share of the FLOP limit, half_billion": (pytest.approx(0.952, abs=1e-3), True),
        # (10 + 22 * 20 / 4) / (5 + 22 * 5 / 4).
        "update speed at (1024, 128, 8), half_billion, 24 layers (extrapolated from 2 and 6)": (
            pytest.approx(120 / 32.5),
            True,
        ),
        "cost is linear in the completions: largest distance from a line": (pytest.approx(0, abs=1e-9), True),
        "the prompt's part is flat: cost of 16 over 2 completions of 4 tokens": (pytest.approx(1.1), True),
        "update speed at (128, 512, 8), toy": (pytest.approx(0.9), False),
        "step speed at (1024, 128, 8), toy": (2.5, True),
        "peak memory above weights and optimizer at (1024, 128, 8), toy": (0.25, True),
    }


def test_goals_whose_points_were_not_measured_are_left_out():
    assert goals.goals([]) == []
    assert [goal["name"] for goal in goals.goals(ROWS[-1:])] == []


def test_a_line_through_points():
    assert goals.line([(1, 3), (2, 5), (4, 9)]) == (pytest.approx(1), pytest.approx(2))
    assert goals.deeper(10.0, 14.0, 2, 4, depth=24) == 54.0


def test_the_tables_are_made_of_the_file_alone(tmp_path, capsys):
    path = tmp_path / "step.json"
    path.write_text(json.dumps(document()))
    assert step.main(["--table", str(path), "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| toy (1024, 128, 8) | 38.00 | 10.00 | 3.80 | 4.00 | 95% | 400 | 100 |" in lines
    assert any(line.startswith("| half_billion (1024, 128, 8), 6 layers | 30.00 |") for line in lines)
    cells = "2.50 / 1.00 | " * len(PHASES)
    assert f"| toy (1024, 128, 8) | {cells}20.00 / 8.00 | **2.50** | 4.00 | 400 / 100 |" in lines
    assert any(line.startswith("| toy (1024, 128, 8), micro-batch 2 |") for line in lines)
    assert "| least share of the FLOP limit, toy | at least 0.9 | 0.75 | **unmet** |" in lines
    assert any("TRL 9.9" in line and "2 of its 24 layers" in line for line in lines)
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")


def test_one_line_per_point():
    assert report.line(ROWS[0]).split() == (
        "update toy (1024, 128, 8) stock 38.000 s ours 10.000 s x3.80 ±1% of 4.00 (95%) memory 0.25".split()
    )


def test_the_readme_shows_the_file_of_the_full_run():
    path = REPOSITORY / "benchmarks" / "results" / "step.json"
    if not path.is_file():
        pytest.skip("benchmarks/results/step.json is not in this checkout")
    assert report.readme_table(json.loads(path.read_text())) in (REPOSITORY / "README.md").read_text()
