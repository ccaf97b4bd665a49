"""The Python of README, quickstart_trl, migration, extending and gym runs."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.docs.pages import blocks
from tests.llamafactory_plugin import tiny

PROMPTS = ["What is two and two?"] * 4
SOLUTIONS = ["#### 4"] * 4


@pytest.fixture
def trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a reader has before the snippets: a model, its tokenizer, a dataset, a config, and TRL."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_grpo_ext import import_trl, prepare_model

    monkeypatch.chdir(tmp_path)
    found = import_trl()
    folder = tiny.build_model(tmp_path / "model")
    config = found.GRPOConfig(
        "out",
        num_generations=4,
        per_device_train_batch_size=4,
        max_steps=1,
        report_to="none",
        use_cpu=True,
        max_completion_length=8,
    )
    return {
        "GRPOTrainer": found.GRPOTrainer,
        "model": prepare_model(AutoModelForCausalLM.from_pretrained(folder)),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "dataset": Dataset.from_dict({"prompt": PROMPTS, "solution": SOLUTIONS}),
        "config": config,
    }


def small(block: str) -> str:
    """A block with one step of short completions on the processor."""
    sizes = 'max_steps=1, max_completion_length=8, report_to="none", use_cpu=True, save_strategy="no"'
    return block.replace("max_steps=100", sizes)


def test_readme(trl: dict[str, Any]) -> None:
    reward, alone = blocks("README.md", "python")
    exec(reward, trl)
    texts = [[{"role": "assistant", "content": text}] for text in ("blue", "red", "blue " * 50)]
    assert trl["short"](texts, ["blue"] * 3) == [1.0, 0.0, 0.0]
    exec(alone, trl)
    trl["trainer"].train()
    assert Path("experiences.db").exists()


def test_quickstart_trl(trl: dict[str, Any]) -> None:
    pytest.importorskip("plotly", reason="needs plotly (the extra report)")
    stock, extended = blocks("docs/quickstart_trl.md", "python")
    exec(small(stock), trl)
    assert Path("out/report.html").exists()
    exec(small(extended), trl)
    config = trl["trainer"].args
    assert (config.loss_type, config.scale_rewards, config.dynamic_sampling_rounds) == ("dr_grpo", "none", 2)
    assert trl["trainer"].state.global_step == 1


def test_migration() -> None:
    verl, swift, open_r1, openrlhf, one_row = blocks("docs/migration.md", "python")
    made: dict[str, Any] = {}
    exec(verl, made)
    assert made["reward"](["p"] * 2, ["it is 7", "8"], ground_truth=["7", "7"]) == [1.0, 0.0]
    exec(swift, made)
    assert made["reward"](["p"] * 2, [" 7", "8"], solution=["7", "7"]) == [1.0, 0.0]
    exec(open_r1, made)
    texts = [[{"role": "assistant", "content": "it is 7"}]] * 2
    assert made["accuracy_reward"](completions=texts, solution=["7", None]) == [1.0, None]
    exec(openrlhf, made)
    assert made["reward"](["2+2="], ["4"], labels=["4"]) == [1.0]
    exec(one_row, made)
    assert made["reward"](["p"] * 2, ["5", "four"], answer=["4", "4"]) == [0.5, None]


def test_extending_by_a_reward() -> None:
    from trl_grpo_ext.rewards.registry import GROUP

    made: dict[str, Any] = {}
    exec(blocks("docs/extending.md", "python")[0], made)
    logged: list[tuple[str, float]] = []
    assert made["short"](["7", "8"], ["7", None], log_metric=lambda *item: logged.append(item)) == [1.0, None]
    assert logged == [("short/characters", 1.0)]
    (text,) = blocks("docs/extending.md", "toml")
    (entry_points,) = tomllib.loads(text)["project"]["entry-points"].items()
    assert entry_points == (GROUP, {"short": "my_package.rewards:short"})


def test_extending_by_a_loss() -> None:
    from trl_grpo_ext import LossInputs

    made: dict[str, Any] = {}
    exec(blocks("docs/extending.md", "python")[1], made)
    logps = torch.tensor([[-1.0, -2.0], [-3.0, math.nan]], requires_grad=True)
    mask = torch.tensor([[1, 1], [1, 0]])
    inputs = LossInputs(logps, torch.tensor([1.0, -1.0]), mask, num_items=3, accumulation_steps=1)
    plain, found = made["policy_loss"](inputs, made["CONFIG"]), made["with_entropy_bonus"](inputs)
    assert found.metrics["surprise"] == 2.0
    assert torch.allclose(found.loss, plain.loss - 0.002)
    found.loss.backward()
    assert bool(torch.isfinite(logps.grad).all())  # type: ignore[union-attr]


def test_extending_by_a_codec() -> None:
    from importlib import import_module

    exec(blocks("docs/extending.md", "python")[2], {})
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    named = re.findall(r"`(codecs|ladder|exact)\.(\w+)`", page)
    assert len(named) == 8
    for module, name in named:
        assert hasattr(import_module(f"trl_grpo_ext.bitdelta.{module}"), name)


def test_gym() -> None:
    (block,) = blocks("docs/gym.md", "python")
    exec(block, {})
