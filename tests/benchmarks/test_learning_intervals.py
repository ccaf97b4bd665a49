"""The figures of `benchmarks/learning.py` that are computed, not trained."""

import csv
import json
import random
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st
from learning_tasks import intervals, report
from learning_tasks.intervals import T_975, comparisons, goals, t_interval, verdict

from .conftest import REPOSITORY

METRICS = {"addition": "greedy"}
FIGURES = st.floats(-100, 100, allow_nan=False)


def row(arm, seed, end, control="none", start=0.3):
    figures = {"greedy_start": start, "greedy_end": end, "sampled_end": 0.1, "steps": 100 + seed, "cpu_seconds": 30.1}
    curve = [[0.0, start], [1 / 3, start], [2 / 3, end], [1.0, end]]
    return {"kind": "run", "task": "addition", "arm": arm, "control": control, "seed": seed, "curve": curve} | figures


def runs(seeds=3):
    ends = {
        ("trl", "none"): (0.50, 0.52, 0.54),
        ("gspo@2", "none"): (0.60, 0.62, 0.65),
        ("grpo", "none"): (0.40, 0.60, 0.55),
        ("rloo", "none"): (0.40, 0.42, 0.43),
        ("trl", "shuffled"): (0.01, 0.02, 0.00),
        ("trl", "flipped"): (0.00, 0.00, 0.01),
    }
    return [row(arm, s, values[s], control) for (arm, control), values in ends.items() for s in range(seeds)]


def document(seeds=3):
    where = {"tasks": ["addition"], "seeds": seeds, "cpu_seconds": 30.0, "line": "TRL 9.9"}
    rows = runs(seeds)
    return {
        "name": "learning",
        "environment": where,
        "results": [*rows, *comparisons(rows, METRICS)],
        "goals": goals(rows, METRICS),
    }


def test_the_interval_of_a_hand_computed_example():
    # s of (1, 2, 3) is 1; 4.3027 / sqrt(3) is 2.4842.
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.0 - 2.4842, 2.0 + 2.4842), abs=1e-4)
    assert t_interval([0.4]) == (0.4, None, None)
    for count in (0, len(T_975) + 2):
        with pytest.raises(ValueError, match=rf"1 to {len(T_975) + 1} values, not {count}"):
            t_interval([0.0] * count)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_the_interval_holds_the_truth_in_95_percent_of_normal_samples(count):
    draw = random.Random(count)
    normal = NormalDist()
    held = 0
    for _ in range(4000):
        _, low, high = t_interval([normal.inv_cdf(draw.uniform(1e-9, 1 - 1e-9)) for _ in range(count)])
        held += low <= 0.0 <= high
    assert held / 4000 == pytest.approx(0.95, abs=0.015)


@given(st.lists(FIGURES, min_size=2, max_size=10), FIGURES)
def test_the_interval_moves_with_its_values(values, shift):
    plain, moved = t_interval(values), t_interval([value + shift for value in values])
    assert moved == pytest.approx([figure + shift for figure in plain], abs=1e-6)
    assert plain[1] <= plain[0] <= plain[2]


def test_comparisons_are_paired_by_seed_and_say_only_what_the_interval_says():
    found = {(c["arm"], c["control"]): c for c in comparisons(runs(), METRICS)}
    assert found["gspo@2", "none"]["difference"] == pytest.approx(0.1033, abs=1e-4)
    # Differences 0.10, 0.10, 0.11: the spread over seeds that both share is gone.
    assert found["gspo@2", "none"]["difference_low"] == pytest.approx(0.1033 - 4.3027 * 0.0057735 / 3**0.5, abs=1e-3)
    said = {key: comparison["verdict"] for key, comparison in found.items()}
    assert said == {
        ("trl", "none"): "baseline",
        ("gspo@2", "none"): "better",
        ("grpo", "none"): "no difference shown",
        ("rloo", "none"): "worse",
        ("trl", "shuffled"): "worse",
        ("trl", "flipped"): "worse",
    }


def test_a_seed_without_a_baseline_takes_no_part():
    rows = [*runs(2), row("gspo@2", 2, 0.99)]
    (found,) = [c for c in comparisons(rows, METRICS) if c["arm"] == "gspo@2"]
    assert (found["seeds"], found["end"]) == (2, pytest.approx(0.61))


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ((0.01, 0.2), "better"),
        ((-0.2, -0.01), "worse"),
        ((0.0, 0.2), "no difference shown"),
        ((None, None), "one seed"),
    ],
)
def test_verdicts(bounds, said):
    assert verdict(*bounds) == said


def test_goals_are_that_the_baseline_learns_and_the_controls_do_not():
    learns, shuffled, flipped = goals(runs(), METRICS)
    assert [g["met"] for g in (learns, shuffled, flipped)] == [True, True, True]
    assert learns["value"] == pytest.approx(0.22 - 4.3027 * 0.02 / 3**0.5, abs=1e-3)
    high = [r | {"greedy_end": 0.36} if r["control"] != "none" else r | {"greedy_end": 0.3} for r in runs()]
    assert [g["met"] for g in goals(high, METRICS)] == [False, False, False]
    without = [r for r in runs() if r["control"] == "none"]
    assert [(g["value"], g["met"]) for g in goals(without, METRICS)[1:]] == [(None, False), (None, False)]


def test_the_table_is_made_of_the_file_alone():
    text = report.readme_table(json.loads(json.dumps(document())))
    lines = text.splitlines()
    assert lines[0] == "| preset | addition: greedy accuracy | against TRL's default |"
    assert lines[2] == "| before training | 0.300 (0.300 to 0.300) |  |"
    assert lines[3] == "| `trl` | 0.520 (0.470 to 0.570) | baseline |"
    assert lines[4].startswith("| `gspo@2` | 0.623 (0.561 to 0.686) | **better** +0.103 (+0.089 to +0.118) |")
    assert lines[5].startswith("| `grpo` |") and "**" not in lines[5]
    assert lines[7].startswith("| `trl`, shuffled rewards |") and "**" not in lines[7]
    assert "30 CPU seconds" in lines[-1] and "TRL 9.9" in lines[-1] and "3 seeds" in lines[-1]


def test_one_seed_has_no_interval_and_says_so():
    text = report.readme_table(document(seeds=1))
    assert "| `gspo@2` | 0.600 | +0.100 |" in text
    assert "One seed: no interval." in text and "to " not in text.split("|")[8]


def test_csv_and_picture(tmp_path):
    report.write_csv(tmp_path / "runs.csv", document())
    with (tmp_path / "runs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 18 and rows[3]["arm"] == "gspo@2" and float(rows[3]["greedy_end"]) == 0.6
    assert "curve" not in rows[0] and "kind" not in rows[0]
    assert report.curves(document(), "addition")["trl", "none"][-1] == (1.0, pytest.approx(0.52))
    report.plot(tmp_path / "runs.png", document())
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")


def test_the_readme_shows_the_file_of_the_full_run():
    path = REPOSITORY / "benchmarks" / "results" / "learning.json"
    if not path.is_file():
        pytest.skip("benchmarks/results/learning.json is not in this checkout")
    assert report.readme_table(json.loads(path.read_text())) in (REPOSITORY / "README.md").read_text()


def test_there_is_a_quantile_for_every_number_of_seeds():
    scipy_stats = pytest.importorskip("scipy.stats", reason="scipy is in the environment of line A only")
    exact = [scipy_stats.t.ppf(0.975, degrees) for degrees in range(1, intervals.MOST_SEEDS)]
    assert pytest.approx(exact, abs=5e-5) == list(T_975)
