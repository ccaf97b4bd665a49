"""The behaviour gate: escalate until it passes, or refuse."""

import pytest
import torch

from trl_grpo_ext.bitdelta import BitDeltaConfig, BitDeltaError, Gate, compress, inspect


def likeness(pair):
    """Score of a model: minus its distance from the fine-tuned one, above 100 so that ratios mean something."""
    from transformers import AutoModelForCausalLM

    wanted = AutoModelForCausalLM.from_pretrained(pair[1]).state_dict()

    def scores(model):
        found = model.state_dict()
        far = sum(float((found[name] - wanted[name]).float().square().sum()) for name in wanted)
        return {"likeness": 100 - far * 1e3}

    return scores


def test_it_passes_and_is_written_down(pair, tmp_path):
    report = compress(*pair, tmp_path / "delta", gate=Gate(lambda model: {"reward": 1.0}))
    assert not report.lossless
    quality = inspect(tmp_path / "delta").summary()["quality"]["gate"]
    assert quality["passed"] and quality["compressed"] == {"reward": 1.0}


def test_it_escalates_until_it_passes(pair, tmp_path):
    report = compress(*pair, tmp_path / "delta", gate=Gate(likeness(pair), min_ratio=1.0))
    assert report.lossless and inspect(tmp_path / "delta").lossless
    loose = compress(*pair, tmp_path / "loose", gate=Gate(likeness(pair), min_ratio=0.1))
    assert not loose.lossless


def test_it_refuses_and_leaves_nothing(pair, tmp_path):
    with pytest.raises(BitDeltaError, match=r"the behaviour gate refuses it: likeness 100 became"):
        compress(*pair, tmp_path / "delta", gate=Gate(likeness(pair), 1.0, on_fail="refuse"))
    assert list(tmp_path.iterdir()) == []


def test_scores_below_zero_may_fall_by_a_share_of_their_size():
    gate = Gate(lambda model: {}, min_ratio=0.9)
    assert gate.quality({"r": -10.0}, {"r": -10.9})["passed"]
    assert not gate.quality({"r": -10.0}, {"r": -11.1})["passed"]
    assert not gate.quality({"r": 1.0}, {})["passed"]


def test_bad_gates():
    with pytest.raises(ValueError, match="must be a function"):
        Gate("reward")
    with pytest.raises(ValueError, match="min_ratio"):
        Gate(len, min_ratio=2)
    with pytest.raises(ValueError, match="on_fail"):
        Gate(len, on_fail="ignore")
    with pytest.raises(ValueError, match="numbers by name"):
        Gate(lambda model: {"r": float("nan")}).scores(torch.nn.Linear(1, 1), "")


def test_attempts_keep_more_and_more():
    tried = list(Gate(len).attempts(BitDeltaConfig()))
    assert [(item.bits, item.codec) for item in tried] == [(1, "auto"), (2, "auto"), (1, "lossless")]
    assert len(list(Gate(len).attempts(BitDeltaConfig(codec="lossless")))) == 1
