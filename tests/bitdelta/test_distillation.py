"""Scales distilled on logits: nearer to the fine-tuned model, and nothing else changed."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from trl_grpo_ext.bitdelta import BitDeltaConfig, BitDeltaError, compress, distill, verify
from trl_grpo_ext.bitdelta.reading import Delta


def batches(count, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 96, (count, 4, 12), generator=generator)
    mask = torch.ones_like(ids[0])
    mask[0, 6:] = 0
    return [{"input_ids": item, "attention_mask": mask} for item in ids]


@torch.no_grad()
def error(folder, wanted):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = [(item, item["attention_mask"].bool()) for item in batches(3, 0)]
    return sum(float((model(**item).logits - wanted(**item).logits)[kept].square().mean()) for item, kept in rows)


@pytest.mark.parametrize("config", [{"scale": "matrix"}, {"group_size": 16, "bits": 2}, {"residual_rank": 2}])
def test_the_compressed_model_comes_nearer_to_the_fine_tuned_one(config, pair, tmp_path):
    compress(*pair, tmp_path / "delta", BitDeltaConfig(**config))
    tuned = AutoModelForCausalLM.from_pretrained(pair[1], dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    report = distill(tmp_path / "delta", tuned, batches(3, 0), tmp_path / "better", steps=12)
    assert error(tmp_path / "better", tuned) < error(tmp_path / "delta", tuned)
    assert "distill" in report.summary()["fits"]
    assert verify(tmp_path / "better") == len(report.tensors)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tuned.state_dict().items())
    assert not any(parameter.grad is not None for parameter in tuned.parameters()) and not tuned.training
    first, second = Delta(tmp_path / "delta"), Delta(tmp_path / "better")
    for name, entry in first.tensors.items():
        others = set(entry.parts) - {"scale"}
        assert {part: entry.parts[part] for part in others} == {
            part: second.tensors[name].parts[part] for part in others
        }
        assert ("scale" in entry.parts) == (second.tensors[name].fit == "distill")


def test_what_can_not_be_distilled_is_refused(pair, made, tmp_path):
    tuned = AutoModelForCausalLM.from_pretrained(pair[1])
    with pytest.raises(BitDeltaError, match="no sign codes that Qwen3ForCausalLM has parameters for"):
        distill(made[1], tuned, batches(1, 0), tmp_path / "out")
    for options in ({"steps": 0}, {"rate": 0.0}):
        with pytest.raises(ValueError, match="must be at least one and above 0"):
            distill(made[0], tuned, batches(1, 0), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
