"""`bitdelta*` in LLaMA-Factory: what is refused, what the keys become, and real runs that end with a delta."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamafactory_plugin.bitdelta import bitdelta_line, other_stage_callbacks
from llamafactory_plugin.bitdelta_arguments import parse_bitdelta
from llamafactory_plugin.errors import UsageError
from tests.llamafactory_plugin import tiny
from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.test_training import vowels

__all__ = ["vowels"]

KEYS = {
    "bitdelta": True,
    "bitdelta_group_size": 128,
    "bitdelta_every_checkpoint": True,
    "bitdelta_safety_threshold": 0.5,
}
FLAGS = "--bitdelta --bitdelta_group_size 128 --bitdelta_every_checkpoint true --bitdelta_safety_threshold 0.5".split()


def explicit_of(flags: list[str]) -> dict[str, Any]:
    from llamafactory_plugin.raw_arguments import explicit_arguments

    return explicit_arguments(flags, frozenset(KEYS))


@pytest.mark.parametrize("args", [KEYS, FLAGS])
def test_the_keys_become_one_callback_in_another_stage(args: Any) -> None:
    explicit = args if isinstance(args, dict) else explicit_of(args)
    (callback,) = other_stage_callbacks(args, explicit, "sft")
    assert (callback.config.group_size, callback.config.safety_threshold, callback.on) == (128, 0.5, "both")
    line = bitdelta_line(parse_bitdelta(args, explicit))
    assert line == "delta of the start model: at every checkpoint and at the end, groups of 128, safety threshold 0.5"


def test_without_keys_nothing_is_added() -> None:
    assert other_stage_callbacks({"stage": "sft"}, {"stage": "sft"}, "sft") == []
    assert other_stage_callbacks({"bitdelta": False}, {"bitdelta": False}, "rm") == []
    (callback,) = other_stage_callbacks({"bitdelta": True}, {"bitdelta": True}, "dpo")
    assert (callback.config.group_size, callback.config.scale, callback.on) == (None, "row", "train_end")


@pytest.mark.parametrize(
    ("keys", "stage", "sentence"),
    [
        ({"bitdelta": True}, "rm", "stage rm trains a value head"),
        ({"bitdelta": True}, "ppo", "stage ppo trains a value head"),
        ({"bitdelta": "yes"}, "sft", "bitdelta must be true or false, not 'yes'"),
        ({"bitdelta_group_size": 128}, "sft", "bitdelta_group_size: it is read only with bitdelta"),
        (
            {"bitdelta": True, "bitdelta_group_size": 12},
            "sft",
            "must be a multiple of 8, at least 8, such as 128, not 12",
        ),
        ({"bitdelta": True, "bitdelta_safety_threshold": 1.5}, "sft", "at least 0 and at most 1, not 1.5"),
        ({"bitdelta": True, "bitdelta_safety_threshold": None}, "sft", "bitdelta_safety_threshold has no value"),
    ],
)
def test_what_can_not_work_is_refused(keys: dict[str, Any], stage: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        other_stage_callbacks(keys, keys, stage)


def test_refused_in_stage_grpo_before_anything_is_written(workspace: Workspace) -> None:
    assert "it is read only with bitdelta" in workspace.refused(bitdelta_every_checkpoint=True)
    sentence = workspace.refused(bitdelta=True, do_train=False, do_eval=True, eval_dataset="words")
    assert "bitdelta: nothing is trained" in sentence


def rewards_of(model_folder: Path, tokenizer_folder: Path) -> list[float]:
    """The share of vowels in greedy completions of the training prompts."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    found = []
    for row in tiny.questions(16):
        prompt = tokenizer(f"<|im_start|>user\n{row['instruction']}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        output = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, pad_token_id=0)
        text = tokenizer.decode(output[0, len(prompt) :])
        found.append(sum(letter in "aeiou" for letter in text) / max(len(text), 1))
    return found


def check_delta(workspace: Workspace, folder: Path, model: Path) -> Any:
    """A delta that loads, is of the start model, and scores the reward of the trained model; returns its report."""
    import trl_grpo_ext.bitdelta as bitdelta

    report = bitdelta.inspect(folder)
    assert report.table.base["id"] == str(Path(workspace.defaults["model_name_or_path"]).resolve())
    assert report.density > 0.5, "nothing was trained"
    wanted, found = rewards_of(model, workspace.output), rewards_of(folder, workspace.output)
    before = rewards_of(Path(workspace.defaults["model_name_or_path"]), workspace.output)
    assert wanted != before
    assert found == wanted
    return report


@pytest.mark.slow
def test_a_grpo_run_ends_with_a_delta_that_scores_the_same_reward(workspace: Workspace, vowels: Any) -> None:
    """With a threshold that no sign code reaches every tensor is kept without loss."""
    options = vowels | {"learning_rate": 1e-2, "finetuning_type": "full", "max_steps": 4}
    options |= {"save_strategy": "steps", "save_steps": 2}
    path = workspace.yaml(**options, bitdelta=True, bitdelta_every_checkpoint=True, bitdelta_safety_threshold=1.0)
    output = workspace.cli(path).stdout
    assert "delta of the start model: at every checkpoint and at the end, a scale per row" in output
    report = check_delta(workspace, workspace.output / "bitdelta", workspace.output)
    assert report.lossless
    first = workspace.output / "checkpoint-2"
    assert rewards_of(first / "bitdelta", workspace.output) == rewards_of(first, workspace.output)


@pytest.mark.slow
def test_an_sft_run_ends_with_a_delta_that_scores_the_same_reward(workspace: Workspace) -> None:
    """Without the plugin's stage: the callback alone, on signs whose scales are fitted to the rows trained on."""
    columns = {"prompt": "instruction", "response": "output"}
    tiny.write_dataset(workspace.data, "words", tiny.questions(16), columns=columns)
    common = {name: None for name in workspace.defaults if name.startswith("grpo_")}
    common |= {"stage": "sft", "finetuning_type": "full", "max_steps": 30, "learning_rate": 3e-3}
    workspace.cli(workspace.yaml(**common, bitdelta=True, bitdelta_group_size=8))
    report = check_delta(workspace, workspace.output / "bitdelta", workspace.output)
    assert report.summary()["codecs"]["sign"] > 4 and set(report.summary()["fits"]) == {"activation"}
    assert not (workspace.output / "bitdelta-source").exists()
