"""What loading relies on in transformers' registration and `from_pretrained`; run with transformers 4.57.6 as well."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.bitdelta.conftest import HEADS, SIZES, perturb, save, tiny
from trl_grpo_ext.bitdelta import BitDeltaConfig, BitDeltaError, DeltaModel, compress

LOSSLESS = BitDeltaConfig(codec="lossless")


def moe():
    torch.manual_seed(0)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "decoder_sparse_step": 1}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES | HEADS | experts)).bfloat16()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=60, n_layer=2, n_head=4, n_positions=64)).bfloat16()


MODELS = {
    "tied": lambda: tiny(tie_word_embeddings=True),
    "untied": lambda: tiny(tie_word_embeddings=False),
    "experts": moe,
    "conv1d, width 60": gpt2,
    "float32": lambda: tiny(torch.float32),
}


def same(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def load(folder, **options):
    # transformers 4 loads float32 unless it is told otherwise.
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": "auto"} | options)


@pytest.mark.parametrize("kind", MODELS)
def test_lossless_is_bit_exact_through_auto_model(kind, tmp_path):
    model = MODELS[kind]()
    base, tuned = save(model, tmp_path / "base"), save(perturb(model), tmp_path / "tuned")
    report = compress(base, tuned, tmp_path / "delta", LOSSLESS)
    assert report.lossless
    loaded, wanted = load(tmp_path / "delta"), load(tuned)
    assert type(loaded) is type(wanted) and loaded.dtype == wanted.dtype
    assert same(loaded, wanted)
    tokens = torch.arange(12)[None]
    assert torch.equal(loaded(tokens).logits, wanted(tokens).logits)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_dtype_asked_for(name, pair, made):
    plain = AutoModelForCausalLM.from_pretrained
    assert plain(made[0]).dtype == plain(pair[0]).dtype
    assert plain(made[0], **{name: torch.float32}).dtype == torch.float32
    assert plain(made[0], **{name: "auto"}).dtype == torch.bfloat16


def test_device_map_and_other_options(made):
    model = load(made[1], device_map="cpu", attn_implementation="eager")
    assert model.config._attn_implementation == "eager" and model.device.type == "cpu"
    with pytest.raises(BitDeltaError, match="export it"):
        load(made[1], quantization_config={"load_in_4bit": True})


def test_generation_settings_are_those_of_the_checkpoint(tmp_path):
    model = tiny()
    base, tuned = save(model, tmp_path / "base"), save(perturb(model), tmp_path / "tuned")
    GenerationConfig(do_sample=True, temperature=0.7, top_k=7, eos_token_id=[3, 4]).save_pretrained(tuned)
    compress(base, tuned, tmp_path / "delta")
    found, wanted = (load(folder).generation_config.to_diff_dict() for folder in (tmp_path / "delta", tuned))
    assert found == wanted and found["eos_token_id"] == [3, 4]


def test_experts_that_are_served_are_right_or_refused(tmp_path):
    """transformers 4 has a module per expert, as checkpoints do; transformers 5 holds those of a layer in one tensor."""
    model = moe()
    base, tuned = save(model, tmp_path / "base"), save(perturb(model), tmp_path / "tuned")
    compress(base, tuned, tmp_path / "delta", LOSSLESS)
    served = DeltaModel(base)
    if "model.layers.0.mlp.experts.0.down_proj.weight" in served.model.state_dict():
        assert same(served.load("a", tmp_path / "delta").activate("a"), load(tuned))
        with pytest.raises(BitDeltaError, match="a mixture of experts mixes the rows"), served.batch(["a"]):
            pass
    else:
        with pytest.raises(BitDeltaError, match="Load the delta with from_pretrained instead"):
            served.load("a", tmp_path / "delta")
