"""`docs/batching.md`: its table is the fields' own, and what it says of models and tolerances is the code's."""

import dataclasses
from pathlib import Path

from tests.batching.test_defaults import NAMES
from trl_grpo_ext import ExtendedGRPOConfig
from trl_grpo_ext.batching import attention, generation, support, verification

PAGE = (Path(__file__).parents[2] / "docs" / "batching.md").read_text(encoding="utf-8")
OPTIONS = (*NAMES, "skip_entropy", "skip_zero_advantages")


def tables():
    rows = [[]]
    for line in PAGE.splitlines():
        if line.startswith("|"):
            rows[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows[-1]:
            rows.append([])
    return [table[2:] for table in rows if table]


def test_the_options_are_the_fields():
    fields = {item.name: item for item in dataclasses.fields(ExtendedGRPOConfig)}
    found = {name.strip("`"): (default, text) for name, default, text in tables()[0]}
    assert found == {name: (str(fields[name].default), fields[name].metadata["help"]) for name in OPTIONS}


def test_every_default_is_explained():
    assert {row[0].strip("`") for row in tables()[1]} == set(NAMES)


def test_facts():
    text = " ".join(PAGE.split())
    assert {"gpt2", "llama", "mistral", "qwen2", "qwen3"} == support.SHARING_MODEL_TYPES
    assert "a Llama, Mistral, Qwen2, Qwen3 or GPT-2 model" in text and attention.NAME in text
    assert f"above {verification.TOLERANCE} nats (in 16 bits a mean above {verification.TOLERANCE_16_BITS})" in text
    assert {"use_cache", "cache_implementation", "prefill_chunk_size"} <= generation._PLAIN.keys()
