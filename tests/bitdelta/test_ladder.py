"""The ladder takes the cheapest codec that passes."""

import pytest
import torch

from trl_grpo_ext.bitdelta import BitDeltaConfig, TensorError
from trl_grpo_ext.bitdelta.codecs import decode
from trl_grpo_ext.bitdelta.exact import changed_rows
from trl_grpo_ext.bitdelta.ladder import Ladder
from trl_grpo_ext.bitdelta.low_rank import may_be_low_rank

SHAPE = (256, 512)


def normal(seed=0, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def choose(delta, name="mlp.weight", config=None, base=None, dtype=torch.bfloat16, **options):
    base = (normal() * 0.02).to(dtype) if base is None else base
    return base, Ladder(config or BitDeltaConfig()).choose(name, base, (base.float() + delta).to(dtype), **options)


def test_nothing_changed():
    base = normal().bfloat16()
    choice = Ladder(BitDeltaConfig()).choose("mlp.weight", base, base.clone())
    assert (choice.item.codec, choice.item.parts, choice.density) == ("none", {}, 0.0)


def test_minus_zero_is_a_change():
    base = torch.zeros(8, 16)
    tuned = base.clone()
    tuned[0, 0] = -0.0
    choice = Ladder(BitDeltaConfig()).choose("mlp.weight", base, tuned)
    assert choice.item.codec in ("sparse", "rows")
    decoded = decode(choice.item, base, [8, 16], torch.float32, torch.float32)
    assert torch.equal(decoded.view(torch.int32), tuned.view(torch.int32))


def test_dense_deltas_take_one_sign_mask():
    _, choice = choose(normal(1) * 1e-2)
    assert (choice.item.codec, choice.item.params["masks"]) == ("sign", 1)
    assert 0.62 < choice.kappa < 0.66 and choice.explained == choice.kappa


def test_sparse_deltas_escalate_to_lossless_and_say_why():
    mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(3)) < 0.25
    _, choice = choose(normal(1) * 1e-3 * mask)
    assert choice.item.codec == "sparse" and choice.explained == 1.0
    assert "one sign mask explains 0.1" in choice.reason and "below 0.6" in choice.reason


def test_very_sparse_deltas_are_lossless_because_it_is_cheaper():
    mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(3)) < 0.03
    _, choice = choose(normal(1) * 1e-3 * mask)
    assert choice.item.codec == "sparse" and choice.kappa is None
    assert 8 * choice.item.nbytes / normal().numel() < 0.6


def test_heavy_tails_take_two_masks():
    uniform = torch.rand(SHAPE, generator=torch.Generator().manual_seed(5))
    laplace = -torch.log(uniform.clamp_min(1e-9)) * normal(6).sign() * 1e-2
    _, choice = choose(laplace)
    assert (choice.item.codec, choice.item.params["masks"]) == ("sign", 2)
    assert choice.kappa < 0.6 <= choice.explained


def test_merged_lora_is_low_rank():
    delta = normal(1, (256, 4)) @ normal(2, (4, 512)) * 1e-2
    _, choice = choose(delta)
    assert choice.item.codec == "low_rank" and choice.item.params["rank"] == 4
    assert choice.explained >= 0.95


def test_a_sample_of_low_rank_is_not_believed():
    """The rows that are looked at first are of rank 1, and most of the energy is in the others."""
    delta = normal(1) * 1e-2
    sampled = torch.linspace(0, 255, 20).long()
    delta[sampled] = normal(2, (20, 1)) @ normal(3, (1, 512)) * 1e-2
    assert may_be_low_rank(torch.zeros(SHAPE), delta, 10, 0.95)
    assert choose(delta)[1].item.codec == "sign"


def test_signs_and_low_rank_residual_when_asked_for():
    """Row scales can't follow a rank-1 part, and the residual's SVD can."""
    delta = normal(1) * 1e-2 + torch.outer(normal(2)[:, 0], normal(3)[0]) * 1e-2
    _, plain = choose(delta)
    base, choice = choose(delta, config=BitDeltaConfig(residual_rank=8))
    assert choice.item.codec == "sign_low_rank" and choice.item.params["rank"] == 8
    decoded = decode(choice.item, base, list(SHAPE), torch.bfloat16, torch.float32)
    left = float((decoded - base.float() - delta).square().sum() / delta.square().sum())
    assert abs(1 - left - choice.explained) < 0.01 and choice.explained > plain.explained + 0.03


def test_a_few_rows_of_an_embedding():
    delta = torch.zeros(SHAPE)
    delta[[3, 17]] = 1.0
    _, choice = choose(delta, "model.embed_tokens.weight")
    assert choice.item.codec == "rows" and choice.item.parts["index"].tolist() == [3, 17]


def test_one_weight_far_to_the_right():
    base, changed = normal().bfloat16(), normal().bfloat16()
    changed[17, 500] += 1
    assert [found if isinstance(found, int) else found.tolist() for found in changed_rows(base, changed)] == [1, [17]]


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight", "norm.weight"])
def test_embeddings_heads_and_vectors_are_exact(name):
    shape = (300,) if name == "norm.weight" else SHAPE
    base = normal(0, shape).bfloat16()
    _, choice = choose(normal(1, shape) * 1e-2, name, base=base)
    assert choice.item.codec in ("sparse", "raw") and choice.explained == 1.0


def test_group_size_and_bits_are_honoured():
    _, choice = choose(normal(1) * 1e-2, config=BitDeltaConfig(bits=1, group_size=128, safety_threshold=0.6))
    assert choice.item.params == {"masks": 1, "scale": "group", "group": 128}
    assert list(choice.item.parts["scale"].shape) == [1, 256, 4]
    _, two = choose(normal(1) * 1e-2, config=BitDeltaConfig(bits=2))
    assert two.item.params["masks"] == 2


def test_plain_bitdelta_takes_signs_whatever_they_explain():
    mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(3)) < 0.2
    _, choice = choose(normal(1) * 1e-2 * mask, config=BitDeltaConfig(codec="sign", scale="matrix"))
    assert choice.item.codec == "sign" and choice.kappa < 0.2


def test_experts_in_three_dimensions_are_rows():
    base = normal(0, (4, 32, 64)).bfloat16() * 0.02
    _, choice = choose(normal(1, (4, 32, 64)) * 1e-2, "experts.gate_up_proj", base=base)
    assert choice.item.codec == "sign" and list(choice.item.parts["sign"].shape) == [1, 128, 8]
    assert decode(choice.item, base, [4, 32, 64], torch.bfloat16, torch.bfloat16).shape == base.shape


def test_dtypes_may_differ():
    base = (normal() * 0.02).bfloat16()
    tuned = base.float() + normal(1) * 1e-6
    choice = Ladder(BitDeltaConfig()).choose("mlp.weight", base, tuned)
    decoded = decode(choice.item, base, list(SHAPE), torch.float32, torch.float32)
    delta = tuned - base.float()
    assert choice.item.codec == "sign" and decoded.dtype == torch.float32
    assert torch.equal((decoded >= base.float())[delta != 0], (delta > 0)[delta != 0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nan_and_infinity_are_refused_by_name(value, dtype):
    tuned = normal().to(dtype)
    tuned[3, 4] = value
    with pytest.raises(TensorError, match=r"^mlp.weight: the fine-tuned tensor holds NaN or infinity"):
        Ladder(BitDeltaConfig()).choose("mlp.weight", normal().to(dtype), tuned)
    with pytest.raises(TensorError, match=r"^mlp.weight: the base tensor"):
        Ladder(BitDeltaConfig()).choose("mlp.weight", tuned, normal().to(dtype))


def test_large_finite_numbers_are_none():
    huge = torch.full((8, 16), 3e38)
    assert Ladder(BitDeltaConfig()).choose("mlp.weight", huge, huge).item.codec == "none"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 0}, "bits must be an integer in"),
        ({"bits": True}, "bits must be an integer in"),
        ({"group_size": 12}, "multiple of 8"),
        ({"scale": "group"}, "group_size must be set"),
        ({"scale": "matrix", "group_size": 128}, "contradict"),
        ({"safety_threshold": 1.5}, "safety_threshold must be a number in"),
        ({"fit": "gptq"}, "fit must be one of"),
        ({"codec": "zip"}, "codec must be one of"),
        ({"exact": "embed"}, "exact must be a list"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        BitDeltaConfig(**settings)


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match="unknown setting 'bit'"):
        BitDeltaConfig.from_mapping({"bit": 1})
    assert BitDeltaConfig.from_mapping(BitDeltaConfig(group_size=128).to_dict()) == BitDeltaConfig(group_size=128)
