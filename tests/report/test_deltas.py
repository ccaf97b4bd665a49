"""The deltas of a run in its report: the figures are those of the delta's own report, and a damaged one stops nothing."""

import json
import shutil

import pytest

pytest.importorskip("plotly", reason="needs plotly (the extra report)")

from tests.bitdelta.conftest import perturb, save, tiny
from tests.report.test_report import HOSTILE, make_run
from trl_grpo_ext.bitdelta import BitDeltaConfig, codecs, compress
from trl_grpo_ext.report import write_report
from trl_grpo_ext.report.deltas import LOSSY, delta_paths, summaries, tensor_rows


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with an exact delta at step 2, an approximate one at step 10, and one of its end."""
    folder = tmp_path_factory.mktemp("made")
    model = tiny()
    models = save(model, folder / "base"), save(perturb(model), folder / "tuned")
    run, reports = make_run(folder / "run"), {}
    for name, codec in (("checkpoint-2", "lossless"), ("checkpoint-10", "auto"), (".", "auto")):
        (run / name).mkdir(exist_ok=True)
        reports[name] = compress(*models, run / name / "bitdelta", BitDeltaConfig(codec=codec))
    return run, reports


@pytest.fixture
def run(made, tmp_path):
    folder, reports = made
    return shutil.copytree(folder, tmp_path / "run"), reports


def test_the_figures_are_those_of_the_delta(run):
    folder, reports = run
    found = summaries(folder)
    assert list(found) == ["checkpoint-2", "checkpoint-10", "end of the run"]
    for own, report in zip(found.values(), reports.values(), strict=True):
        expected = report.summary()
        assert own["bits_per_weight"] == pytest.approx(expected["bits_per_weight"], abs=1e-4)
        assert own["density"] == pytest.approx(expected["density"], abs=1e-4)
        for name in ("base", "delta_bytes", "full_bytes", "lossless", "codecs", "quality"):
            assert own[name] == expected[name], name
    assert [item["lossless"] for item in found.values()] == [True, False, False]
    where, rows = tensor_rows(folder)
    assert where == "end of the run" and {row[0] for row in rows} == set(reports["."].tensors)
    assert rows[0][1:3] == [
        (largest := max(reports["."].tensors.values(), key=lambda entry: entry.nbytes)).codec,
        f"{8 * largest.nbytes / largest.numel:.3f}",
    ]


def test_the_page_shows_them(run):
    folder, reports = run
    path = folder / "bitdelta" / "bitdelta_config.json"
    table = json.loads(path.read_text())
    next(iter(table["tensors"].values()))["reason"] = HOSTILE
    path.write_text(json.dumps(table))
    page = write_report(folder).read_text()
    assert "Delta of the weights" in page and f"<td>{reports['.'].delta_bytes:,}</td>" in page
    assert "Tensors (end of the run)" in page and HOSTILE not in page
    assert "Delta of the weights" not in write_report(make_run(folder / "other", steps=2)).read_text()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"tensors": {"a": {}}, "base": {"id": "b"}}', '{"tensors": [1]}'])
def test_a_damaged_delta_is_left_out(run, text):
    folder, _ = run
    (folder / "bitdelta" / "bitdelta_config.json").write_text(text)
    assert list(summaries(folder)) == ["checkpoint-2", "checkpoint-10"] and tensor_rows(folder)[0] == "checkpoint-10"
    assert "checkpoint-10" in write_report(folder).read_text()


def test_other_folders_are_no_checkpoints(tmp_path):
    for name in ("checkpoint-best", "checkpoint-3"):
        (tmp_path / name / "bitdelta").mkdir(parents=True)
        (tmp_path / name / "bitdelta" / "bitdelta_config.json").write_text("{}")
    assert list(delta_paths(tmp_path)) == ["checkpoint-3"] and summaries(tmp_path) == {}


def test_the_approximating_codecs_are_those_of_the_format():
    assert LOSSY == codecs.LOSSY
