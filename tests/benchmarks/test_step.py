"""`benchmarks/step.py`: the counters against the formula, real steps, and the whole script."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import step
import torch
from step_parts import arithmetic, models, points, update, whole_step
from step_parts.costs import FlopCounter, Memory
from step_parts.phases import PHASES, Phases
from step_parts.points import Point
from step_parts.results import Results

from .conftest import REPOSITORY

SMALL = Point("step", "quick", 48, 8, 4, rows=2)


@pytest.fixture(autouse=True, scope="module")
def trainers_of_the_pair_go():
    yield
    update.pair.cache_clear()


@pytest.mark.parametrize("shape", [(64, 64, 4), (256, 32, 8)])
def test_the_closed_formula_agrees_with_torchs_counter_within_5_percent(shape):
    sizes = models.sizes("quick")
    stock, ours = update.pair("quick", None)
    batch = update.micro_batch(*shape, sizes["vocab_size"], "cpu")
    assert update.counted(stock, batch)["flops"] == pytest.approx(arithmetic.dense(sizes, *shape), rel=0.05)
    expected = arithmetic.shared(sizes, *shape, arithmetic.our_head_passes(sizes, *shape[1:]))
    assert update.counted(ours, batch)["flops"] == pytest.approx(expected, rel=0.05)


def test_the_counter_knows_the_fused_attention_of_the_cpu():
    query = torch.randn(1, 2, 32, 16, requires_grad=True)
    with FlopCounter() as counter:
        torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True).sum().backward()
    # Two products forward and five backward, of 2 heads x 32 x 32 x 16 multiply-adds each.
    assert counter.total == 7 * 2 * 2 * 32 * 32 * 16


@pytest.mark.skipif(models.CUDA, reason="the allocator of a GPU rounds up")
def test_memory_is_what_was_alive_at_once():
    with Memory() as memory:
        kept = torch.ones(1000)
        memory.restart()
        for _ in range(3):
            (kept + 1).add_(1)
        assert (memory.peak, memory.most) == (4000, 8000)


def test_time_goes_to_the_innermost_phase_of_a_running_step():
    clock = iter([0, 1, 3, 6, 10, 15, 21])
    phases = Phases(lambda: (float(next(clock)),))
    with phases.phase("scoring"):
        phases.is_running = True
        with phases.phase("decode"):
            pass
    phases.settle()
    found = {name: spent[0] for name, spent in phases.totals.items() if spent[0]}
    assert found == {"scoring": 2 + 4, "decode": 3, "other": 5}


@pytest.mark.parametrize("arm", models.ARMS)
def test_a_real_step_has_every_phase_and_the_forced_lengths(arm, tmp_path):
    trainer = models.make_trainer(arm, models.sizes("quick"), str(tmp_path), *SMALL.shape, SMALL.micro_rows)
    seen = []
    prepare = trainer._prepare_inputs
    trainer._prepare_inputs = lambda batch: seen.append(prepare(batch)) or seen[-1]
    spent = whole_step.step(trainer, SMALL)
    assert set(spent) == set(PHASES)
    assert all(seconds > 0 for name, seconds in spent.items() if name not in ("scoring", "other"))
    found = sorted(length for batch in seen for length in batch["completion_mask"].sum(1).tolist())
    assert found == sorted(arithmetic.lengths(8, 4)) == [2, 4, 6, 8]
    # Nothing of the measurement stays on the trainer.
    assert {"compute_loss", "_calculate_rewards"}.isdisjoint(vars(trainer))
    assert not trainer.model._forward_hooks and not trainer.model.base_model._forward_pre_hooks


def test_operations_of_a_step_are_those_of_its_update_and_its_prefill(tmp_path):
    sizes = models.sizes("quick")
    trainer = models.make_trainer("stock", sizes, str(tmp_path), *SMALL.shape, SMALL.group)
    flops = whole_step.counted_step(trainer, replace(SMALL, rows=None))["flops"]
    expected = arithmetic.dense(sizes, *SMALL.shape)
    assert flops["loss forward"] + flops["backward"] == pytest.approx(expected, rel=0.05)
    one_pass = arithmetic.flops(sizes, 4 * 48, 0, 0) / 3
    assert flops["prefill"] == pytest.approx(one_pass, rel=0.1)
    assert flops["reward"] == flops["optimizer"] == 0


def test_a_run_that_was_cut_off_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    measured = []
    made = {"stock": {"forward": 1.0, "backward": 2.0}, "ours": {"forward": 0.5, "backward": 1.0}}
    made |= {"speedup": 2.0, "spread": None, "limit": 2.1, "share_of_limit": 2.0 / 2.1, "memory_ratio": 0.5}

    def compare(point):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(point.name)
        return made | {"gradient_difference": 1e-7}

    monkeypatch.setattr(update, "compare", compare)
    arguments = ["--quick", "--json", str(tmp_path / "step.json"), "--points"]
    with pytest.raises(KeyboardInterrupt):
        step.main([*arguments, "update/*", "scaling/*"])
    assert [len(measured), len(json.loads((tmp_path / "step.json").read_text())["results"])] == [2, 2]
    results = Results(tmp_path / "step.json")
    assert [results.has(point) for point in points.quick()] == [True, True, *[False] * 6]
    measured.clear()
    assert step.main([*arguments, "update/quick/64x64x4"]) == 0
    assert measured == ["update/quick/64x64x4"] and "met" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "step.json").read_text())["results"]) == 2


def test_figures_of_another_environment_are_not_added_to(tmp_path, capsys):
    path = tmp_path / "step.json"
    path.write_text(json.dumps({"environment": {"trl": "0.1"}, "results": []}))
    with pytest.raises(SystemExit, match="2"):
        step.main(["--quick", "--json", str(path)])
    assert "holds figures of another environment (trl" in capsys.readouterr().err


def test_a_pattern_that_fits_no_point_is_refused_with_the_points(capsys):
    with pytest.raises(SystemExit, match="2"):
        step.main(["--quick", "--points", "update/giant/*"])
    assert "'update/giant/*' fits no point; the points are update/quick/64x64x4," in capsys.readouterr().err


def test_the_full_run_has_the_grid_of_the_issue():
    names = [point.name for point in points.full()]
    assert len(set(names)) == len(names)
    for model in ("toy", "half_billion"):
        for shape in ("128x128x8", "128x512x8", "512x128x8", "1024x128x8", "1024x256x8", "2048x512x4"):
            assert f"update/{model}/{shape}" in names
    assert {"step/half_billion/1024x128x8", "step/toy/1024x128x8/rows2", "update/toy/1024x128x8/rows2"} < set(names)


@pytest.mark.slow
def test_the_quick_setting_writes_goals_table_and_picture(tmp_path):
    command = [sys.executable, "benchmarks/step.py", "--quick", "--json", str(tmp_path / "step.json")]
    done = subprocess.run([*command, "--output", str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True)
    document = json.loads((tmp_path / "step.json").read_text())
    assert set(document) == {"name", "environment", "results", "goals"}
    assert len(document["results"]) == len(points.quick())
    met = [goal["met"] for goal in document["goals"]]
    assert done.returncode == (0 if all(met) else 1), done.stderr
    assert "is not used" not in done.stderr
    by_name = {goal["name"]: goal for goal in document["goals"]}
    assert by_name["largest relative difference of a gradient"]["met"]
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
    # A prompt eight times as long as its completions: it is encoded once in place of eight times.
    long = next(row for row in document["results"] if row["part"] == "step" and row["rows"] == 8)
    assert long["ours"]["flops"]["backward"] < 0.5 * long["stock"]["flops"]["backward"]
    assert long["ours"]["flops"]["prefill"] < 0.2 * long["stock"]["flops"]["prefill"]
    assert long["memory_ratio"] < 1.0
