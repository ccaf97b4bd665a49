"""`DeltaModel`: variants swapped in, and several of them in one batch."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.bitdelta.conftest import perturb, save, tiny
from trl_grpo_ext.bitdelta import BitDeltaConfig, BitDeltaError, DeltaModel, WrongBaseError, compress
from trl_grpo_ext.bitdelta.codecs import decode
from trl_grpo_ext.bitdelta.unmerged import delta_product

CONFIGS = {
    "signs": BitDeltaConfig(),
    "masks": BitDeltaConfig(bits=2, group_size=16),
    "ranked": BitDeltaConfig(residual_rank=4, codec="auto"),
    "exact": BitDeltaConfig(codec="lossless"),
}


def change_all(model, seed):
    """Beside the linear layers and the embedding also a norm, which no linear layer covers."""
    perturb(model, seed=seed)
    with torch.no_grad():
        model.model.norm.weight[:5] *= 1.5
    return model


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A base in float32, four variants of it by four configurations, and their folders."""
    folder = tmp_path_factory.mktemp("served")
    base = save(tiny(torch.float32), folder / "base")
    served = DeltaModel(base)
    for seed, (name, config) in enumerate(CONFIGS.items(), 1):
        tuned = save(change_all(tiny(torch.float32), seed), folder / f"tuned-{name}")
        compress(base, tuned, folder / name, config)
        served.load(name, folder / name)
    return served, folder


def ids(rows, seed=0, length=7):
    return torch.randint(0, 96, (rows, length), generator=torch.Generator().manual_seed(seed))


def bits_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_swap_gives_the_model_that_from_pretrained_gives(served):
    model, folder = served
    codecs = set()
    for name in CONFIGS:
        loaded = AutoModelForCausalLM.from_pretrained(folder / name)
        assert equal(bits_of(model.activate(name)), bits_of(loaded)), name
        codecs |= {type(part).__name__ for part in model._variants[name].values()}
    assert codecs == {"Packed", "Patch", "Whole"}
    assert model.activate(None) is model.model


def test_a_hundred_swaps_leave_the_base_as_it_was(served):
    model, _ = served
    before = bits_of(model.activate(None))
    order = torch.randint(0, 5, (100,), generator=torch.Generator().manual_seed(3)).tolist()
    names = [*CONFIGS, None]
    wanted = {name: bits_of(model.activate(name)) for name in CONFIGS}
    for place in order:
        model.activate(names[place])
    assert equal(bits_of(model.model), wanted.get(model.active, before))
    assert equal(bits_of(model.activate(None)), before)


@torch.no_grad()
def test_a_batch_of_variants_is_every_variant_by_itself(served):
    model, _ = served
    names = ["signs", None, "exact", "masks", "signs", "ranked"]
    inputs = ids(len(names))
    alone = [model.activate(name)(inputs[row : row + 1]).logits for row, name in enumerate(names)]
    model.activate("exact")
    with model.batch(names) as live:
        together = live(inputs).logits
        kinds = {type(layer).__name__ for layer in live.modules()}
    assert {"BitDeltaLinear", "SwappedRows"} <= kinds
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert (alone[0] - model.activate(None)(inputs[:1]).logits).abs().max() > 1e-2
    assert model.active is None


@torch.no_grad()
def test_generation_repeats_requests(served):
    model, _ = served
    inputs, options = ids(2, 5), {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    alone = [
        model.activate(name).generate(inputs[row : row + 1], **options) for row, name in enumerate([None, "masks"])
    ]
    beams = options | {"num_return_sequences": 3, "num_beams": 3}
    single = [
        model.activate(name).generate(inputs[row : row + 1], **beams) for row, name in enumerate([None, "masks"])
    ]
    with model.batch([None, "masks"]) as live:
        assert torch.equal(live.generate(inputs, **beams), torch.cat(single))
    with model.batch([None, "masks"]) as live:
        assert torch.equal(live.generate(inputs, **options), torch.cat(alone))


def test_the_layers_are_put_back_after_an_error(served):
    model, _ = served
    before = [type(layer) for layer in model.model.modules()]
    model.activate("signs")
    refusal = pytest.raises(BitDeltaError, match="sees 3 rows, which are no multiple of the batch's 2")
    with refusal, model.batch(["masks", "exact"]) as live:
        live(ids(3))
    assert [type(layer) for layer in model.model.modules()] == before
    assert model.active == "signs"


def test_products_without_the_delta_made_whole(served):
    model, _ = served
    inputs = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1))
    for name in ("signs", "masks", "ranked"):
        part = model._variants[name]["model.layers.0.self_attn.q_proj.weight"].item
        zero = torch.zeros(64, 64)
        whole = decode(part, zero, [64, 64], torch.float32, torch.float32)
        torch.testing.assert_close(delta_product(part, inputs), inputs @ whole.T, rtol=1e-5, atol=1e-5)


def test_variants_are_small_and_can_be_forgotten(served, tmp_path):
    model, folder = served
    assert model.nbytes("signs") < model.nbytes("masks") < model.nbytes("exact")
    model.load("again", folder / "signs")
    model.activate("again")
    model.unload("again")
    assert model.active is None and "again" not in model.names
    for call in (model.activate, model.unload, model.nbytes):
        with pytest.raises(BitDeltaError, match="no variant 'again'; loaded: signs, masks"):
            call("again")
    with pytest.raises(BitDeltaError, match="there is a variant 'signs' already"):
        model.load("signs", folder / "signs")
    with pytest.raises(ValueError, match="must be a folder or hub id"):
        DeltaModel(model.model)
    other = save(perturb(tiny(torch.float32), seed=9), tmp_path / "other")
    compress(other, save(tiny(torch.float32), tmp_path / "tuned"), tmp_path / "delta")
    with pytest.raises(WrongBaseError, match="are others"):
        model.load("wrong", tmp_path / "delta")
    assert "wrong" not in model.names
