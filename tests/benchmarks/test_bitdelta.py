"""`benchmarks/bitdelta.py`: its goals, its merged files, the README's tables, and each part in the quick setting."""

import json
import subprocess
import sys

import bitdelta as benchmark
import pytest
import torch
from bitdelta_parts import goals, readme, speed
from bitdelta_parts.tensors import normal

from .conftest import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results" / "bitdelta.json"


def document(part, load, figures, rows):
    where = {"torch": "2", "transformers": "5", "quick": True, "load_before_and_after": [load, load]}
    found = {"results": [{"part": part} | row for row in rows], "goals": goals.judge(part, figures)}
    return {"name": "bitdelta", "environment": {part: where}} | found


def test_what_was_not_measured_is_not_met():
    found = goals.judge("memory", {})
    assert [(goal["value"], goal["met"]) for goal in found] == [(None, False)]
    assert [goal["met"] for goal in goals.judge("memory", {"memory": 512.0})] == [True]
    assert [goal["met"] for goal in goals.judge("memory", {"memory": 512.1})] == [False]
    assert goals.line(found[0]).endswith("UNMET (not measured)")


def test_a_part_measured_again_replaces_itself_alone(tmp_path):
    path = tmp_path / "new" / "bitdelta.json"
    memory = document("memory", 1.0, {"memory": 3.0}, [{"arm": "memory"}])
    benchmark.write(path, memory)
    benchmark.write(path, document("speed", 2.0, {"packing": 5.0}, [{"arm": "bf16 add"}]))
    benchmark.write(path, document("memory", 4.0, {"memory": 900.0}, [{"arm": "memory, again"}]))
    found = json.loads(path.read_text())
    assert set(found) == {"name", "environment", "results", "goals"} and list(found["environment"]) == [
        "speed",
        "memory",
    ]
    assert [row["arm"] for row in found["results"]] == ["bf16 add", "memory, again"]
    assert [goal["value"] for goal in found["goals"] if goal["value"] is not None] == [5.0, 900.0]
    assert found["environment"]["memory"]["load_before_and_after"] == [4.0, 4.0]


def test_the_tables_say_what_is_missed_and_take_their_place(tmp_path):
    rows = [{"arm": "SFT: lossless", "all_bits": 10.5, "KL": 0.0}]
    sft = document("sft", 1.5, {"kl": 0.75, "bytes": 1.0}, rows)
    rows = [{"arm": "GRPO: lossless", "all_bits": 4.25, "KL": 0.0, "reward": 0.875, "density": 0.5}]
    both = goals.merged(sft, document("grpo", 1.5, {}, rows))
    lines = readme.tables(both).splitlines()
    assert "| lossless | 10.5 | 0 | 4.25 | 0 | 0.875 |" in lines
    assert "| SFT: KL, share of BitDelta + distillation at equal bytes | <= 0.5 | 0.75 | **unmet** |" in lines
    assert "| GRPO: reward retained by the ladder | >= 0.99 |  | **not measured** |" in lines
    assert "load 1.5 to 1.5" in lines[-1] and "The GRPO delta has density 0.5." in lines[-1]
    page, data = tmp_path / "README.md", tmp_path / "bitdelta.json"
    page.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    data.write_text(json.dumps(both))
    for _ in range(2):
        assert benchmark.main(["--table", str(data), "--readme", str(page)]) == 0
        assert page.read_text() == f"before\n{readme.BEGIN}\n{readme.tables(both)}\n{readme.END}\nafter\n"
    page.write_text("none")
    with pytest.raises(ValueError, match="has no lines"):
        readme.rewrite(page, both)


def test_the_published_packing_is_the_papers():
    base, tuned = normal((64, 5), 0, 1.0), normal((64, 5), 1, 1.0)
    words, scale = speed.published_packing(base.T.contiguous(), tuned.T.contiguous())
    delta = tuned - base
    assert words.shape == (2, 5)
    bits = (words.T[:, :, None] >> torch.arange(32)) & 1
    assert torch.equal(bits.reshape(5, 64).T == 1, delta >= 0)
    torch.testing.assert_close(scale, delta.abs().mean())


@pytest.mark.slow
@pytest.mark.parametrize("part", goals.PARTS)
def test_the_quick_setting_writes_its_goals(part, tmp_path):
    path = tmp_path / "bitdelta.json"
    command = [sys.executable, "benchmarks/bitdelta.py", "--quick", "--only", part, "--json", str(path)]
    done = subprocess.run(
        [*command, "--cache", str(tmp_path / "starts")], cwd=REPOSITORY, capture_output=True, text=True
    )
    found = json.loads(path.read_text())
    assert done.returncode == (0 if all(goal["met"] for goal in found["goals"]) else 1), done.stderr
    assert {goal["name"] for goal in found["goals"]} == set(goals.GOALS[part])
    # Sparse only if so few weights changed in the short run.
    assert all(goal["value"] is not None for goal in found["goals"] if "small rate" not in goal["name"])
    assert all(row["part"] == part for row in found["results"]) and found["environment"][part]["quick"] is True


def test_the_readme_shows_the_file_of_the_full_run():
    if not RESULTS.is_file():
        pytest.skip("benchmarks/results/bitdelta.json is not in this checkout")
    assert readme.tables(json.loads(RESULTS.read_text())) in (REPOSITORY / "README.md").read_text()
