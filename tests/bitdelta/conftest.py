"""Tiny models on disk: a base, and fine-tunes of it made by adding known deltas."""

import shutil

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


def tiny(dtype=torch.bfloat16, **settings):
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES | HEADS | settings)).to(dtype)


def perturb(model, size=3e-3, rows=3, seed=1):
    """Add a dense delta to the linear layers, and change a few rows of the embedding."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "embed" in name or "wte" in name:
                parameter[:rows] += (noise[:rows] * 0.01).to(parameter.dtype)
            elif parameter.ndim >= 2:
                parameter += (noise * size).to(parameter.dtype)
    return model


def save(model, folder):
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Folders of a base and of a fine-tune."""
    folder = tmp_path_factory.mktemp("pair")
    model = tiny()
    base = save(model, folder / "base")
    return base, save(perturb(model), folder / "tuned")


@pytest.fixture(scope="session")
def made(pair, tmp_path_factory):
    """Folders of a delta, and of a lossless one."""
    from trl_grpo_ext.bitdelta import BitDeltaConfig, compress

    folder = tmp_path_factory.mktemp("deltas")
    compress(*pair, folder / "delta")
    compress(*pair, folder / "exact", BitDeltaConfig(codec="lossless"))
    return folder / "delta", folder / "exact"


@pytest.fixture
def delta(made, tmp_path):
    """A delta to damage."""
    return shutil.copytree(made[0], tmp_path / "delta")


@pytest.fixture
def exact(made, tmp_path):
    """A lossless delta to damage."""
    return shutil.copytree(made[1], tmp_path / "exact")
