"""The Python of docs/bitdelta.md runs, in its order, on tiny models; its synopsis is what the command takes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.docs.pages import blocks
from tests.llamafactory_plugin import tiny

TEXTS = ["What is two and two?", "red blue", "one two three"]


def perturbed(folder: Path, base: Path, seed: int) -> Path:
    """Save a copy of a model whose weights have moved a little, with its tokenizer."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 1e-3 * torch.randn(weight.shape, generator=generator)
    shutil.copytree(base, folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a reader has before the page: a base, a fine-tune, a measure, a trainer, and requests."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_grpo_ext import ExtendedGRPOConfig, ExtendedGRPOTrainer, prepare_model

    monkeypatch.chdir(tmp_path)
    base = tiny.build_model(Path("base"))
    tuned = perturbed(Path("fine-tuned"), base, 1)
    sizes = {"num_generations": 4, "per_device_train_batch_size": 4, "max_steps": 1, "max_completion_length": 8}
    trainer = ExtendedGRPOTrainer(
        model=prepare_model(AutoModelForCausalLM.from_pretrained(base)),
        reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
        args=ExtendedGRPOConfig("out", report_to="none", use_cpu=True, bf16=False, learning_rate=1e-3, **sizes),
        train_dataset=Dataset.from_dict({"prompt": TEXTS[:1] * 4}),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    requests = tokenizer(TEXTS, padding=True, return_tensors="pt") | {"max_new_tokens": 4}
    return {
        **{"trainer": trainer, "tokenizer": tokenizer, "texts": TEXTS, "requests": requests},
        **{"mean_reward": lambda model: 1.0, "finetuned_model": AutoModelForCausalLM.from_pretrained(tuned)},
    }


def test_the_page_runs(reader: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    import trl_grpo_ext.bitdelta as bitdelta

    convert, gate, train, distil, serve = blocks("docs/bitdelta.md", "python")
    exec(convert, reader)
    assert "codec" in capsys.readouterr().out and type(reader["model"]).__name__ == "Qwen2ForCausalLM"
    Path("delta").rename("without-gate")
    exec(gate, reader)
    assert bitdelta.verify("delta", base="base")
    exec(train, reader)
    assert bitdelta.verify("out/bitdelta", base="base") and reader["trainer"].state.global_step == 1
    exec(distil, reader)
    assert bitdelta.inspect("better-delta")
    Path("without-gate").rename("delta-a")
    bitdelta.compress("base", perturbed(Path("other"), Path("base"), 2), "delta-b")
    exec(serve, reader)


def test_the_synopsis() -> None:
    from trl_grpo_ext.cli.bitdelta import parser

    (synopsis,) = blocks("docs/bitdelta.md", "")
    for line in synopsis.splitlines():
        words = re.sub(r"\[--[^]]*\]", "", line).split()[2:]
        assert parser().parse_args(words)
