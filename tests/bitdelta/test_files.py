"""Bad input: refused with the tensor's name, nothing allocated for it, and the target as it was."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

import trl_grpo_ext.bitdelta as bitdelta
from tests.bitdelta.conftest import perturb, save, tiny
from trl_grpo_ext.bitdelta import BitDeltaConfig, BitDeltaError, DamagedDeltaError, TensorError, WrongBaseError

NAME = "model.layers.0.mlp.up_proj.weight"
FILE = "bitdelta_model.safetensors"


def table(folder):
    return json.loads((folder / "bitdelta_config.json").read_text())


def change_table(folder, change):
    data = table(folder)
    change(data)
    (folder / "bitdelta_config.json").write_text(json.dumps(data))


def change_part(folder, part, change, name=NAME):
    """Tamper with a part, and with its digest, as an attacker would."""
    from trl_grpo_ext.bitdelta.fingerprint import digest

    parts = load_file(folder / FILE)
    parts[f"{name}.{part}"] = change(parts[f"{name}.{part}"].clone())
    save_file(parts, folder / FILE)
    new = digest(parts[f"{name}.{part}"])
    change_table(folder, lambda data: data["tensors"][name]["parts"].update({part: new}))


def refused(folder, tmp_path, error=DamagedDeltaError, match=NAME):
    with pytest.raises(error, match=match):
        bitdelta.export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_files(share, delta, tmp_path):
    data = (delta / FILE).read_bytes()
    (delta / FILE).write_bytes(data[: int(len(data) * share)])
    refused(delta, tmp_path, match="truncated|no safetensors file|no JSON")


def test_a_truncated_file_names_the_tensor(delta, tmp_path):
    data = (delta / FILE).read_bytes()
    (delta / FILE).write_bytes(data[:-10])
    refused(delta, tmp_path, match=r"model\.layers.* the file is truncated; it ends 10 bytes before")


def test_flipped_bits_in_the_data(delta, tmp_path):
    data = bytearray((delta / FILE).read_bytes())
    data[-1] ^= 1
    (delta / FILE).write_bytes(data)
    refused(delta, tmp_path, match=r"model\.layers.*is not what was written")


def test_missing_files(delta, tmp_path):
    (delta / FILE).unlink()
    refused(delta, tmp_path, match=r"the file bitdelta_model.safetensors that holds it is missing")
    (delta / "bitdelta_config.json").unlink()
    refused(delta, tmp_path, error=BitDeltaError, match="it is no delta")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_unknown_format_versions(version, delta, tmp_path):
    change_table(delta, lambda data: data.update(format_version=version))
    refused(delta, tmp_path, match=f"format version {version!r} is unknown")


LIES = {
    "a huge shape": {"shape": [1 << 40, 1 << 40]},
    "another shape": {"shape": [64, 80]},
    "a negative shape": {"shape": [-1, 64]},
    "a shape of words": {"shape": ["80", 64]},
    "an unknown dtype": {"dtype": "F9"},
    "a dtype of lists": {"dtype": []},
    "a base's dtype of lists": {"base": {"dtype": {}, "shape": [80, 64], "crc32": 1}},
    "another dtype": {"dtype": "F64", "codec": "raw"},
    "an unknown codec": {"codec": "zip"},
    "codec of other parts": {"codec": "low_rank"},
    "masks": {"params": {"masks": 1 << 30, "scale": "row", "group": 64}},
    "no masks": {"params": {}},
    "a group of nothing": {"params": {"masks": 1, "scale": "group", "group": 0}},
    "parameters of words": {"params": {"masks": "1", "scale": "row", "group": 64}},
    "a file outside": {"file": "../secret.safetensors"},
    "an absolute file": {"file": "/etc/passwd"},
    "no base": {"base": None},
    "a base of words": {"base": {"dtype": "BF16", "shape": [80, 64], "crc32": "1"}},
    "an extra field": {"extra": 1},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_table_that_lies(lie, delta, tmp_path):
    change_table(delta, lambda data: data["tensors"][NAME].update(LIES[lie]))
    refused(delta, tmp_path)


def test_a_file_outside_under_a_good_name(delta, tmp_path):
    change_table(delta, lambda data: data["tensors"][NAME].update(file="bitdelta_model/../../a.safetensors"))
    refused(delta, tmp_path, match=f"{NAME}: file is not what the format has")


def test_a_low_rank_code_can_not_claim_a_huge_tensor(delta, tmp_path):
    """Two thin factors would make a matrix of any size; the base's shape bounds it."""
    lie = {"codec": "low_rank", "shape": [1 << 20, 1 << 20], "params": {"rank": 1}, "parts": {"a": "", "b": ""}}
    change_table(delta, lambda data: data["tensors"][NAME].update(lie))
    refused(delta, tmp_path, match="does not follow from the base's")


def test_scales_that_are_not_finite(delta, tmp_path):
    change_part(delta, "scale", lambda scale: scale.fill_(float("nan")))
    refused(delta, tmp_path, match=f"{NAME}: its part scale is not finite")


def test_indices_out_of_range(tmp_path):
    model = tiny()
    base = save(model, tmp_path / "base")
    bitdelta.compress(base, save(perturb(model, 0.0), tmp_path / "tuned"), tmp_path / "delta")
    name = "model.embed_tokens.weight"
    codec = table(tmp_path / "delta")["tensors"][name]["codec"]
    assert codec in ("rows", "sparse")
    part, value = ("index", 1 << 40) if codec == "rows" else ("lengths", 1 << 40)
    change_part(tmp_path / "delta", part, lambda found: found.fill_(value), name)
    refused(tmp_path / "delta", tmp_path, match=name)


def test_parts_that_the_table_does_not_know(delta, tmp_path):
    parts = load_file(delta / FILE)
    save_file(parts | {"more": torch.zeros(3)}, delta / FILE)
    refused(delta, tmp_path, match="more: the file holds it")


def test_the_wrong_base(pair, made, tmp_path):
    other = save(tiny().apply(lambda module: None), tmp_path / "same")
    bitdelta.export(made[0], tmp_path / "fine", base=other)
    wrong = save(perturb(tiny(), 1e-3, seed=9), tmp_path / "wrong")
    with pytest.raises(WrongBaseError, match=r"^\S+: its weights in .* are others\. The delta was made against"):
        bitdelta.export(made[0], tmp_path / "out", base=wrong)
    larger = save(tiny(num_hidden_layers=1), tmp_path / "shallow")
    with pytest.raises(WrongBaseError, match=r"layers\.1\.\S+: .* has no such tensor"):
        bitdelta.export(made[0], tmp_path / "out", base=larger)
    wide = save(tiny(torch.float32), tmp_path / "wide")
    with pytest.raises(WrongBaseError, match=r"has F32 .* instead of BF16"):
        bitdelta.verify(made[0], wide)
    assert not (tmp_path / "out").exists()


def test_one_weight_of_the_base_is_enough(pair, made, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(pair[0], dtype="auto")
    with torch.no_grad():
        model.get_parameter(NAME)[3, 4] += 1
    with pytest.raises(WrongBaseError, match=NAME):
        AutoModelForCausalLM.from_pretrained(made[0], base=save(model, tmp_path / "base"))


def test_a_base_that_went_away(pair, delta, tmp_path):
    change_table(delta, lambda data: data["base"].update(id=str(tmp_path / "gone")))
    refused(delta, tmp_path, error=BitDeltaError, match="Give its place as base")
    assert bitdelta.verify(delta, pair[0]) > 10


@pytest.mark.parametrize("kind", ["adapter", "pickle", "empty", "delta", "quantised", "missing shard"])
def test_what_is_no_checkpoint(kind, pair, made, tmp_path):
    folder = tmp_path / "given"
    folder.mkdir()
    if kind == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    elif kind == "pickle":
        (folder / "pytorch_model.bin").write_bytes(b"")
    elif kind == "delta":
        folder = made[0]
    elif kind == "quantised":
        (folder / "model.safetensors").write_bytes((pair[0] / "model.safetensors").read_bytes())
        (folder / "config.json").write_text(json.dumps({"quantization_config": {"load_in_4bit": True}}))
    elif kind == "missing shard":
        index = {"weight_map": {NAME: "model-00001-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    message = {
        "adapter": "Keep it as is",
        "pickle": "pickled weights only",
        "empty": "has neither",
        "delta": "export it",
        "quantised": "is quantised",
        "missing shard": "shard model-00001-of-00002.safetensors is missing",
    }
    with pytest.raises(BitDeltaError, match=message[kind]):
        bitdelta.compress(pair[0], folder, tmp_path / "out")


def test_nan_leaves_the_target_as_it_was(pair, tmp_path):
    model = tiny()
    with torch.no_grad():
        model.get_parameter(NAME)[0, 0] = float("nan")
    tuned = save(model, tmp_path / "tuned")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("kept")
    with pytest.raises(TensorError, match=NAME):
        bitdelta.compress(pair[0], tuned, tmp_path / "out", overwrite=True)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["kept"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "tuned"]


def test_targets_that_would_be_lost(pair, made, tmp_path):
    with pytest.raises(BitDeltaError, match="is not empty"):
        bitdelta.compress(*pair, pair[0])
    with pytest.raises(BitDeltaError, match="parent folder does not exist"):
        bitdelta.compress(*pair, tmp_path / "no" / "where")
    (tmp_path / "file").write_text("")
    with pytest.raises(BitDeltaError, match="is a file"):
        bitdelta.export(made[0], tmp_path / "file", overwrite=True)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "stale").write_text("")
    bitdelta.compress(*pair, tmp_path / "old", overwrite=True)
    assert not (tmp_path / "old" / "stale").exists() and bitdelta.inspect(tmp_path / "old").delta_bytes > 0


def test_other_models_are_refused(pair, tmp_path):
    save_file({"other": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(TensorError, match="no tensor name in common"):
        bitdelta.compress(pair[0], tmp_path, tmp_path / "out")


@pytest.fixture
def small_disk():
    """No file may grow beyond 9,000 bytes."""
    resource = pytest.importorskip("resource", reason="resource limits are POSIX's")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_in_the_middle(pair, made, tmp_path, small_disk):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("kept")
    for work in (partial(bitdelta.compress, *pair), partial(bitdelta.export, made[1])):
        with pytest.raises(BitDeltaError, match="there is no room for it"):
            work(tmp_path / "out", overwrite=True)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["kept"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_settings_are_kept(pair, tmp_path):
    config = BitDeltaConfig(bits=1, group_size=16, safety_threshold=0.5)
    bitdelta.compress(*pair, tmp_path / "delta", config)
    assert BitDeltaConfig.from_mapping(table(tmp_path / "delta")["settings"]) == config
