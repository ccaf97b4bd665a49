"""Checkpoints of real model classes, compressed, loaded, exported and applied."""

import json

import pytest
import torch
from transformers import Qwen3ForCausalLM

import trl_grpo_ext.bitdelta as bitdelta
from tests.bitdelta.conftest import perturb, save, tiny
from tests.bitdelta.test_contract_loading import LOSSLESS, MODELS, load, same
from trl_grpo_ext.bitdelta import BitDeltaConfig, BitDeltaError, WrongBaseError, compress


@pytest.mark.parametrize("kind", ["tied", "experts", "conv1d, width 60"])
def test_the_ladder_moves_the_base_towards_the_fine_tuned_model(kind, tmp_path):
    model = MODELS[kind]()
    base, tuned = save(model, tmp_path / "base"), save(perturb(model, 1e-2), tmp_path / "tuned")
    report = compress(base, tuned, tmp_path / "delta")
    assert not report.lossless and report.delta_bytes < report.full_bytes / 4
    start, found, wanted = (load(folder).state_dict() for folder in (base, tmp_path / "delta", tuned))
    for name, entry in report.tensors.items():
        if entry.codec == "sign" and name in wanted:
            whole = (wanted[name].float() - start[name].float()).square().sum()
            left = (wanted[name].float() - found[name].float()).square().sum()
            assert left < 0.45 * whole, name


def test_export_and_apply_give_the_same_folder(pair, made, tmp_path):
    base, tuned = pair
    bitdelta.export(made[1], tmp_path / "exported")
    bitdelta.apply(base, made[1], tmp_path / "applied")
    assert same(load(tmp_path / "exported"), load(tuned))
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "exported" / file).read_bytes() == (tmp_path / "applied" / file).read_bytes()


def test_export_in_shards(pair, made, tmp_path):
    bitdelta.export(made[1], tmp_path / "out", shard_size=20_000)
    assert len(list(tmp_path.glob("out/model-*.safetensors"))) > 2
    assert same(load(tmp_path / "out"), load(pair[1]))


def test_a_delta_in_shards(pair, tmp_path):
    compress(*pair, tmp_path / "delta", BitDeltaConfig(codec="lossless", shard_size=10_000))
    assert len(list(tmp_path.glob("delta/bitdelta_model-*.safetensors"))) > 2
    assert same(load(tmp_path / "delta"), load(pair[1]))


def test_other_shard_layouts_of_base_and_fine_tuned_model(pair, made, tmp_path):
    base, tuned = (load(folder) for folder in pair)
    base.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    tuned.save_pretrained(tmp_path / "tuned", max_shard_size="50KB")
    compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta", LOSSLESS)
    assert same(load(tmp_path / "delta", base=pair[0]), tuned)
    assert same(load(made[1], base=tmp_path / "base"), tuned)


def test_apply_in_place_again_and_again(pair, made):
    """From the base's own bytes every time; `DeltaModel` has the test of a hundred swaps."""
    base, tuned = (load(folder) for folder in pair)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for turn in range(6):
        bitdelta.apply(base, made[turn % 2])
        assert same(base, tuned) == (turn % 2 == 1)
        base.load_state_dict(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_apply_twice_is_refused_and_changes_nothing(pair, made):
    base = load(pair[0])
    bitdelta.apply(base, made[1])
    with pytest.raises(WrongBaseError, match="weights in the model are others"):
        bitdelta.apply(base, made[1])
    assert same(base, load(pair[1]))


def test_a_wrong_last_tensor_is_refused_before_the_first_changes(pair, made):
    base = load(pair[0])
    last = list(bitdelta.inspect(made[1]).tensors)[-1]
    with torch.no_grad():
        base.state_dict()[last].view(-1)[0] += 1
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    with pytest.raises(WrongBaseError, match=last):
        bitdelta.apply(base, made[1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_models_in_memory_and_their_ties(tmp_path):
    base, tuned = tiny(tie_word_embeddings=True), perturb(tiny(tie_word_embeddings=True))
    report = compress(base, tuned, tmp_path / "delta", LOSSLESS)
    assert "lm_head.weight" not in report.tensors
    assert same(bitdelta.apply(base, tmp_path / "delta"), tuned)


def test_a_resized_vocabulary(tmp_path):
    model = tiny(tie_word_embeddings=False)
    base = save(model, tmp_path / "base")
    model.resize_token_embeddings(104)
    tuned = save(perturb(model), tmp_path / "tuned")
    report = compress(base, tuned, tmp_path / "delta", LOSSLESS)
    assert report.tensors["model.embed_tokens.weight"].codec == "rows"
    assert same(load(tmp_path / "delta"), load(tuned))
    smaller = load(tuned)
    smaller.resize_token_embeddings(90)
    compress(tuned, save(smaller, tmp_path / "smaller"), tmp_path / "cut", LOSSLESS)
    assert same(load(tmp_path / "cut"), smaller)
    with pytest.raises(BitDeltaError, match="changes its shape"):
        bitdelta.apply(load(base), tmp_path / "delta")


def test_an_untied_head_and_a_dropped_one(tmp_path):
    tied = save(tiny(tie_word_embeddings=True), tmp_path / "tied")
    untied = save(tiny(tie_word_embeddings=False), tmp_path / "untied")
    report = compress(tied, untied, tmp_path / "more", LOSSLESS)
    assert report.tensors["lm_head.weight"].codec == "raw"
    assert same(load(tmp_path / "more"), load(untied))
    compress(untied, tied, tmp_path / "less", LOSSLESS)
    assert same(load(tmp_path / "less"), load(tied))


def test_deltas_below_the_base_precision_survive_in_float32(tmp_path):
    """bf16 base, fp32 masters: 1e-6 vanishes in bf16, and is there in float32."""
    model = tiny(torch.bfloat16)
    base = save(model, tmp_path / "base")
    tuned = save(perturb(model.float(), 1e-6, rows=0), tmp_path / "tuned")
    compress(base, tuned, tmp_path / "delta")
    name = "model.layers.0.mlp.up_proj.weight"
    start, wanted = load(base).state_dict()[name].float(), load(tuned).state_dict()[name]
    found = load(tmp_path / "delta", dtype=torch.float32)
    assert found.dtype == torch.float32
    left = (found.state_dict()[name] - wanted).square().sum() / (wanted - start).square().sum()
    assert left < 0.4
    assert load(tmp_path / "delta", dtype="bfloat16").dtype == torch.bfloat16
    with pytest.warns(UserWarning, match="below its precision"):
        bitdelta.export(tmp_path / "delta", tmp_path / "narrow", dtype=torch.bfloat16)


def test_the_folder_has_no_pickle_and_nothing_that_loads_by_accident(made):
    names = {file.name for file in made[0].iterdir()}
    assert {"bitdelta_config.json", "bitdelta_model.safetensors", "config.json", "README.md"} <= names
    assert "model.safetensors" not in names
    assert all(name.endswith((".json", ".safetensors", ".md")) for name in names)
    table = json.loads((made[0] / "bitdelta_config.json").read_text())
    assert table["format_version"] == 1 and len(table["base"]["fingerprint"]) == 32


def test_lora_export(pair, tmp_path):
    """A merged LoRA comes back as an adapter whose logits are those of the merged model."""
    peft = pytest.importorskip("peft")
    model = tiny(torch.float32)
    base = save(model, tmp_path / "base")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("q_proj.weight") or name.endswith("up_proj.weight"):
                left, right = (torch.randn(side, generator=generator) for side in ((len(parameter), 1), (1, 64)))
                parameter += left @ right * 1e-2
    tuned = save(model, tmp_path / "tuned")
    report = compress(base, tuned, tmp_path / "delta")
    assert {entry.codec for entry in report.tensors.values()} == {"low_rank", "none"}
    bitdelta.export(tmp_path / "delta", tmp_path / "lora", format="lora")
    adapted = peft.PeftModel.from_pretrained(load(base), tmp_path / "lora")
    tokens = torch.arange(12)[None]
    start, found, wanted = (item(tokens).logits for item in (load(base), adapted, load(tuned)))
    assert (found - wanted).norm() < 0.02 * (start - wanted).norm()
    compress(*pair, tmp_path / "full")
    with pytest.raises(BitDeltaError, match="is not of low rank"):
        bitdelta.export(tmp_path / "full", tmp_path / "none", format="lora")
    assert not (tmp_path / "none").exists()


def test_scales_from_prompts_lower_the_error_of_the_outputs(pair, tmp_path):
    base, tuned = pair
    model = load(tuned)
    assert isinstance(model, Qwen3ForCausalLM)
    tokens = torch.randint(0, 96, (8, 24), generator=torch.Generator().manual_seed(0))
    inputs = bitdelta.collect_inputs(model, [tokens], tokens=128)
    assert inputs["model.layers.0.mlp.down_proj.weight"].shape == (128, 80)
    fitted = compress(base, tuned, tmp_path / "fitted", inputs=inputs)
    assert {entry.fit for entry in fitted.tensors.values() if entry.codec == "sign"} == {"activation"}
    compress(base, tuned, tmp_path / "mean", BitDeltaConfig(fit="mean"), inputs=inputs)
    with torch.no_grad():
        wanted = model.float()(tokens).logits.log_softmax(-1)
        errors = {}
        for name in ("fitted", "mean"):
            found = load(tmp_path / name, dtype=torch.float32)(tokens).logits.log_softmax(-1)
            errors[name] = float((wanted.exp() * (wanted - found)).sum(-1).mean())
    assert errors["fitted"] < errors["mean"]


def test_padding_is_no_calibration(pair):
    model = load(pair[1])
    tokens = torch.arange(20).view(2, 10)
    mask = torch.ones_like(tokens)
    mask[0, :6] = 0
    inputs = bitdelta.collect_inputs(model, [{"input_ids": tokens, "attention_mask": mask}], tokens=100)
    assert inputs["model.layers.0.self_attn.q_proj.weight"].shape == (14, 64)
