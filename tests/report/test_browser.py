"""The report in a real headless browser: no error, every control works, reachable by keyboard, readable when narrow."""

import json

import pytest

pytest.importorskip("plotly", reason="needs plotly (the extra report)")

from tests.report.browser import browser, look, screenshot
from tests.report.test_report import HOSTILE, make_run
from trl_grpo_ext.report import write_report

pytestmark = [
    pytest.mark.skipif(browser() is None, reason="no chromium or google-chrome on this machine"),
    pytest.mark.slow,
]


TENSOR = {"codec": "sign", "shape": [64, 64], "dtype": "BF16", "nbytes": 640, "density": 0.9, "reason": "dense"}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    run = make_run(folder / "run", steps=40)
    finding = {"step": 9, "rule": "kl_divergence", "seen": "kl is 2.40 nats per token.", "change": "Raise beta."}
    (run / "health.jsonl").write_text(json.dumps(finding) + "\n")
    settings = {"arguments": {"learning_rate": 1e-6, "a_name_that_is_very_long_" * 3: "a value " * 40}}
    (run / "run_settings.json").write_text(json.dumps(settings))
    make_run(folder / "control", steps=40)
    model, tensors = {"id": "a/base/model"}, {"model.layers.0.mlp.up_proj.weight": TENSOR}
    (run / "bitdelta").mkdir()
    (run / "bitdelta" / "bitdelta_config.json").write_text(json.dumps({"base": model, "tensors": tensors}))
    lessons = {
        "Experiences learned and used": (["kind", "text", "uses"], [["lesson", "Add the tens first. " * 12, 3]])
    }
    return write_report(run, control=folder / "control", tables=lessons)


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it(report, tmp_path, width):
    seen = look(report, tmp_path, width)
    assert seen["errors"] == [] and seen["images"] == 0
    assert seen["width"] == width and seen["content"] <= width, "the page scrolls sideways"
    assert seen["wide"] == 0, "charts run over their frames"
    assert seen["charts"] >= 7 and seen["lines"] >= 14
    assert seen["chosen"] == "40" and seen["earlier"] == "39" and len(seen["texts"]) == 4
    assert all(text.endswith(HOSTILE) for text in (*seen["texts"], *seen["first"]))
    assert seen["unreachable"] == 0 and {"earlier", "later", "step", "group-number", "summary"} <= set(
        seen["focusable"]
    )
    assert seen["small"] == 0, "text smaller than 10 pixels"
    assert seen["broken"] == [], "words of tables are broken"
    assert screenshot(report, tmp_path, width, 1600).stat().st_size > 20_000
