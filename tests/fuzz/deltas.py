"""Delta folders, and the checkpoint folders that deltas are made against, whose files somebody else wrote."""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.target import Target
from tests.fuzz.values import damage_bytes, damage_tree

TABLE = "bitdelta_config.json"
WEIGHTS = "bitdelta_model.safetensors"
INDEX = "model.safetensors.index.json"
Damage = tuple[str, bytes]


@cache
def folders() -> dict[str, Path]:
    """A base, and deltas against it, in a folder that lasts as long as the process."""
    from tests.bitdelta.conftest import perturb, save, tiny
    from trl_grpo_ext.bitdelta import BitDeltaConfig, compress

    root = Path(tempfile.mkdtemp(prefix="fuzz-deltas-"))
    model = tiny(num_hidden_layers=1)
    base = save(model, root / "base")
    tuned = save(perturb(model), root / "tuned")
    compress(base, tuned, root / "delta")
    compress(base, tuned, root / "exact", BitDeltaConfig(codec="lossless"))
    return {name: root / name for name in ("base", "delta", "exact")}


def forget() -> None:
    """Remove the folders."""
    if folders.cache_info().currsize:
        shutil.rmtree(folders()["base"].parent, ignore_errors=True)
        folders.cache_clear()


def _header(draw: st.DrawFn, data: bytes) -> bytes:
    """A safetensors file whose header says something else."""
    length = int.from_bytes(data[:8], "little")
    text = json.dumps(damage_tree(draw, json.loads(data[8 : 8 + length]))).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _damage(draw: st.DrawFn) -> tuple[str, Damage]:
    kind = draw(st.sampled_from(["delta", "exact"]))
    file = draw(st.sampled_from([TABLE, WEIGHTS]))
    data = (folders()[kind] / file).read_bytes()
    how = draw(st.integers(0, 2))
    if how == 0:
        return kind, (file, damage_bytes(draw, data))
    if file == TABLE:
        return kind, (file, json.dumps(damage_tree(draw, json.loads(data))).encode())
    return kind, (file, _header(draw, data))


def _checkpoint(draw: st.DrawFn) -> Damage:
    base = folders()["base"]
    file = draw(st.sampled_from(["config.json", "model.safetensors", INDEX]))
    if file == INDEX:
        tree: Any = {"metadata": {}, "weight_map": {"lm_head.weight": "model.safetensors"}}
        return file, json.dumps(damage_tree(draw, tree)).encode()
    data = (base / file).read_bytes()
    if draw(st.booleans()):
        return file, damage_bytes(draw, data)
    if file == "config.json":
        return file, json.dumps(damage_tree(draw, {"quantization_config": None} | json.loads(data))).encode()
    return file, _header(draw, data)


def delta_files(given: tuple[str, Damage]) -> None:
    """Check a damaged delta, then export it; a tensor is never of another shape than the base's."""
    from trl_grpo_ext import bitdelta

    kind, (file, data) = given
    with tempfile.TemporaryDirectory() as root:
        folder = shutil.copytree(folders()[kind], Path(root) / "delta")
        (folder / file).write_bytes(data)
        bitdelta.inspect(folder)
        bitdelta.verify(folder, folders()["base"])
        bitdelta.export(folder, Path(root) / "out", base=folders()["base"])
        assert (Path(root) / "out").is_dir()


def checkpoint_files(given: Damage) -> None:
    """Open a damaged checkpoint as a base, and read it."""
    from trl_grpo_ext.bitdelta.sources import open_source

    file, data = given
    with tempfile.TemporaryDirectory() as root:
        folder = shutil.copytree(folders()["base"], Path(root) / "base")
        (folder / file).write_bytes(data)
        source = open_source(folder)
        for name in source.names():
            source.meta(name)
            source.tensor(name)


def targets() -> list[Target]:
    """The targets of this file."""
    from trl_grpo_ext.bitdelta import BitDeltaError

    return [
        Target("delta files", st.composite(_damage)(), delta_files, (BitDeltaError,)),
        Target("checkpoint files", st.composite(_checkpoint)(), checkpoint_files, (BitDeltaError,)),
    ]
