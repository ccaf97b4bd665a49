"""Published sizes of models and GPUs. Quoted, not measured here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def _shape(width: int, inner: int, layers: int, heads: int, kv: int, vocabulary: int, tied: bool) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    heads_of = {"num_attention_heads": heads, "num_key_value_heads": kv}
    return sizes | heads_of | {"vocab_size": vocabulary, "tie_word_embeddings": tied}


# config.json of the Qwen2.5 models, arXiv 2412.15115, table 1.
MODELS = {
    "0.5B": _shape(896, 4864, 24, 14, 2, 151936, True),
    "1.5B": _shape(1536, 8960, 28, 12, 2, 151936, True),
    "3B": _shape(2048, 11008, 36, 16, 2, 151936, True),
    "7B": _shape(3584, 18944, 28, 28, 4, 152064, False),
    "14B": _shape(5120, 13824, 48, 40, 8, 152064, False),
    "32B": _shape(5120, 27648, 64, 40, 8, 152064, False),
    "72B": _shape(8192, 29568, 80, 64, 8, 152064, False),
}


def layer_parameters(shape: dict[str, Any]) -> int:
    """Weights of the layers: attention and a gated feed-forward part; norms and biases are left out."""
    width = shape["hidden_size"]
    share = shape["num_key_value_heads"] / shape["num_attention_heads"]
    attention = width * width * (2 + 2 * share)
    return int(shape["num_hidden_layers"] * (attention + 3 * width * shape["intermediate_size"]))


def parameters(shape: dict[str, Any]) -> int:
    """All weights."""
    tables = 1 if shape.get("tie_word_embeddings", False) else 2
    return layer_parameters(shape) + tables * shape["vocab_size"] * shape["hidden_size"]


def cache_bytes(shape: dict[str, Any], width: int = 2) -> int:
    """Bytes of keys and values of one token."""
    head = shape["hidden_size"] // shape["num_attention_heads"]
    return 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * head * width


@dataclass(frozen=True)
class Hardware:
    """What an accelerator is sold as.

    Args:
        name: of it.
        memory: bytes.
        flops: matrix products per second, dense bf16.
        bandwidth: bytes per second of its memory.
        link: bytes per second to the others of its machine, one direction.
        network: bytes per second to other machines, one direction, per GPU.
        per_machine: GPUs of a machine.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    network: float
    per_machine: int = 8


# NVIDIA's data sheet of the H100 (SXM): 80 GB, 3.35 TB/s, NVLink 900 GB/s in both directions together, 989 TFLOPS dense
# BF16 (1,979 with sparsity). The network is a DGX H100's: one 400 Gb/s port per GPU.
H100 = Hardware("H100 SXM 80 GB", 80e9, 989e12, 3.35e12, 450e9, 50e9)
# Model FLOPs utilisation of large runs on H100: 38 to 43 %, arXiv 2407.21783, table 4. Of peak, in the update.
UTILISATION = 0.4
# Bytes per weight under mixed precision with Adam, arXiv 1910.02054, section 3.1: 2 + 2 + 12.
TRAINED, HALF = 16, 2
