"""Damaged and forged deltas: an error of ours or whole tensors, and no memory beyond what the files and the base have."""

import contextlib
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.bitdelta.conftest import save, tiny
from trl_grpo_ext.bitdelta import BitDeltaConfig, BitDeltaError, compress, inspect, verify
from trl_grpo_ext.bitdelta.fingerprint import digest

CONFIG, PARTS = "bitdelta_config.json", "bitdelta_model.safetensors"
# The checkpoint has 0.2 MB.
ROOM = 48_000_000


def changed():
    """A model with a tensor for every codec."""
    model, generator = tiny(), torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).bfloat16()

    with torch.no_grad():
        first, second = model.model.layers
        model.model.embed_tokens.weight[:3] += 1
        model.lm_head.weight.copy_(normal(*model.lm_head.weight.shape))
        first.mlp.up_proj.weight += 1e-2 * normal(80, 64)
        first.mlp.gate_proj.weight[:, 7] += 1
        second.mlp.up_proj.weight += 1e-1 * normal(80, 1) @ normal(1, 64)
        second.mlp.down_proj.weight += 1e-2 * normal(64, 80)
    return model


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a base, and two deltas that have every codec between them."""
    folder = tmp_path_factory.mktemp("fuzz")
    base, tuned = save(tiny(), folder / "base"), save(changed(), folder / "tuned")
    reports = [
        compress(base, tuned, folder / f"delta-{rank}", BitDeltaConfig(residual_rank=rank, low_rank_energy=0.9))
        for rank in (0, 2)
    ]
    codecs = {entry.codec for report in reports for entry in report.tensors.values()}
    assert codecs == {"none", "rows", "sparse", "low_rank", "sign", "sign_low_rank", "raw"}
    return folder


@contextlib.contextmanager
def little_memory():
    """Let this process map ROOM bytes more than it has, and not one more: an allocation beyond is an error."""
    resource = pytest.importorskip("resource", reason="resource limits are POSIX's")
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("/proc is Linux's")
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def survives(folder, base):
    """Only the documented error, whatever the files hold."""
    with little_memory(), contextlib.suppress(BitDeltaError):
        inspect(folder)
        verify(folder, base)


def test_the_limit_is_one():
    with little_memory(), pytest.raises(RuntimeError, match="memory"):
        torch.empty(2 * ROOM, dtype=torch.uint8)


NUMBERS = st.one_of(st.integers(-2, 200), st.sampled_from([1 << 31, 1 << 40, (1 << 63) - 1, 10**30, -(1 << 40), 0.5]))
WORDS = ["sign", "row", "group", "matrix", "raw", "rows", "sparse", "low_rank", "none", "BF16", "F32", "I64", "U8", ""]
VALUES = st.one_of(
    NUMBERS,
    st.sampled_from([*WORDS, None, True, math.inf, math.nan, [], {}, "../x", "bitdelta_model-x.safetensors"]),
    st.lists(NUMBERS, max_size=4),
    st.dictionaries(st.sampled_from(["masks", "scale", "group", "rank", "dtype", "shape", "crc32"]), NUMBERS),
)


def flip(data, folder):
    """Other bytes in one of the files, most in the part whose numbers decide what is allocated; or a shorter file."""
    file = folder / data.draw(st.sampled_from([CONFIG, PARTS]))
    content = bytearray(file.read_bytes())
    end = min(len(content), data.draw(st.sampled_from([16, 4000, len(content)])))
    for _ in range(data.draw(st.integers(0, 5))):
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.one_of(st.none(), st.integers(0, len(content))))])


def rewrite_table(data, folder):
    """Other values in the table, at the top, in a tensor's entry, or one level deeper."""
    table = json.loads((folder / CONFIG).read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        place = table
        if data.draw(st.integers(0, 3)):
            place = table["tensors"][data.draw(st.sampled_from(sorted(table["tensors"])))]
        key = data.draw(st.sampled_from(sorted(place)))
        if isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place, key = place[key], data.draw(st.sampled_from(sorted(place[key])))
        place[key] = data.draw(VALUES)
        if not isinstance(table.get("tensors"), dict) or not table["tensors"]:
            break
        if not all(isinstance(entry, dict) and entry for entry in table["tensors"].values()):
            break
    (folder / CONFIG).write_text(json.dumps(table))


def rewrite_header(data, folder):
    """Other dtypes, shapes and offsets in the header of the file of the parts, whose length is kept right or not."""
    content = (folder / PARTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    entry = header[data.draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))]
    key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
    if key != "dtype" and data.draw(st.booleans()):
        entry[key][data.draw(st.integers(0, len(entry[key]) - 1))] = data.draw(NUMBERS)
    else:
        entry[key] = data.draw(VALUES)
    text = json.dumps(header).encode()
    claimed = data.draw(st.sampled_from([len(text), len(text), len(text), 0, 1 << 40, (1 << 64) - 1]))
    (folder / PARTS).write_bytes(claimed.to_bytes(8, "little") + text + content[8 + length :])


def forge_part(data, folder):
    """Any bytes in place of a part, with its digest, as an attacker would."""
    parts = load_file(folder / PARTS)
    name = data.draw(st.sampled_from(sorted(parts)))
    content = parts[name].contiguous().view(torch.uint8).view(-1)
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    save_file(parts, folder / PARTS)
    table = json.loads((folder / CONFIG).read_text())
    tensor, part = name.rsplit(".", 1)
    table["tensors"][tensor]["parts"][part] = digest(parts[name])
    (folder / CONFIG).write_text(json.dumps(table))


DAMAGES = {"bytes": flip, "table": rewrite_table, "header": rewrite_header, "part": forge_part}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_deltas_never_crash_nor_allocate(kind, world, tmp_path):
    @settings(max_examples=120, deadline=None, derandomize=True, database=None)
    @given(st.data())
    def damaged(data):
        folder = tmp_path / "delta"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        source = world / f"delta-{data.draw(st.sampled_from([0, 2]))}"
        for file in (CONFIG, PARTS):
            shutil.copyfile(source / file, folder / file)
        DAMAGES[kind](data, folder)
        survives(folder, world / "base")

    damaged()
