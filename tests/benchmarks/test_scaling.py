"""`benchmarks/scaling.py`: its formulas against measured points and published sizes."""

import itertools
import json
import sys

import pytest
import scaling
from scaling_parts import measured
from scaling_parts.shapes import H100, MODELS, cache_bytes, parameters
from scaling_parts.step_cost import Work, cost, fewest_gpus, lora_parameters

from .conftest import REPOSITORY


@pytest.fixture(scope="module")
def rows():
    return measured.load()


@pytest.fixture(scope="module")
def found(rows):
    return measured.fit(rows)


# Billions, with norms and biases, which the formula leaves out: arXiv 2412.15115 and the model cards.
@pytest.mark.parametrize(
    ("name", "billions"),
    [("0.5B", 0.49), ("1.5B", 1.54), ("3B", 3.09), ("7B", 7.61), ("14B", 14.7), ("32B", 32.5), ("72B", 72.7)],
)
def test_parameters_are_the_published_ones(name, billions):
    assert parameters(MODELS[name]) == pytest.approx(billions * 1e9, rel=0.02)


def test_cache_of_a_known_model():
    # 28 layers, 4 heads of 128, keys and values, 2 bytes.
    assert cache_bytes(MODELS["7B"]) == 2 * 28 * 4 * 128 * 2


def test_lora_is_what_peft_makes():
    peft = pytest.importorskip("peft")
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50}
    config = peft.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(Qwen2ForCausalLM(Qwen2Config(**shape)), config)
    assert lora_parameters(shape) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_every_goal_is_met_on_the_stored_figures(rows, found):
    assert {goal["name"]: goal["met"] for goal in scaling.goals(rows, found)} == {
        "memory of an update: median error": True,
        "seconds of an update: median error": True,
        "seconds of decoding: median error": True,
    }


def test_no_measured_point_is_far_off(rows, found):
    for name, values in scaling.errors(rows, found).items():
        assert max(map(abs, values)) < 0.75, (name, values)


def test_a_point_that_was_left_out_is_predicted(rows):
    """The memory of the largest model's updates, from the small model's and from one of its own."""
    kept = [row for row in rows if row["model"] == "toy" or row["layers"]]
    found = measured.fit(kept + [row for row in measured.steps(rows) if row["model"] != "toy"])
    left = [row for row in measured.updates(rows) if row not in kept]
    assert len(left) >= 5
    for row in left:
        assert measured.predicted_peak(row, found) == pytest.approx(row["ours"]["peak_bytes"], rel=0.5)


def test_more_gpus_take_no_more_memory(found):
    for shape in MODELS.values():
        for method in ("lora", "full"):
            memory = [cost(shape, count, method, Work(), found, H100).memory for count in scaling.GPUS]
            assert all(later <= before * 1.0001 for before, later in itertools.pairwise(memory))


def test_generation_on_gathered_weights_bounds_the_model(found):
    """ZeRO-3 divides the training state; the whole model must fit on each GPU all the same."""
    assert fewest_gpus(MODELS["72B"], "full", Work(), found, H100) is None
    assert fewest_gpus(MODELS["0.5B"], "full", Work(), found, H100) == 1
    one = cost(MODELS["72B"], 64, "full", Work(), found, H100)
    assert one.rollout > 2 * parameters(MODELS["72B"]) * 63 / 64


def test_the_network_is_slower_than_the_machine(found):
    near, far = (cost(MODELS["7B"], count, "full", Work(), found, H100).exchange for count in (8, 16))
    assert far > 5 * near


def test_checkpointing_trades_memory_for_time(found):
    plain, saved = (cost(MODELS["7B"], 8, "lora", Work(checkpointing=flag), found, H100) for flag in (False, True))
    assert saved.update < plain.update / 3 and saved.compute == pytest.approx(plain.compute * 4 / 3)


@pytest.mark.parametrize(("method", "gpus"), [("qlora", 1), ("full", 0)])
def test_bad_input(method, gpus, found):
    with pytest.raises(ValueError, match="method must be full or lora and gpus at least 1"):
        cost(MODELS["7B"], gpus, method, Work(), found, H100)


def test_the_script_and_the_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--json", str(tmp_path / "out.json")])
    assert scaling.main() == 0
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    assert len(written["results"]) == len(MODELS) * 2 * len(scaling.GPUS) and len(written["goals"]) == 3
    # docs/scaling.md shows what the script prints.
    page = (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 2 * len(MODELS) and all(row in page for row in rows)


def test_quick_prints_fewer_columns(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--quick"])
    assert scaling.main() == 0
    assert "| model | method | 1 | 8 | 64 | fewest GPUs |" in capsys.readouterr().out
