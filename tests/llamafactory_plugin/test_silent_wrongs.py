"""What a naive port gets wrong without any error; each test fails when the fix is taken out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.llamafactory_plugin import tiny
from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.test_training import Probe, vowels

__all__ = ["vowels"]


def prompts_of(probe: Probe, workspace: Workspace) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(workspace.defaults["model_name_or_path"])
    texts = [tokenizer.decode(row) for batch in probe.prompts for row in batch]
    return [text.replace("<|endoftext|>", "") for text in texts]


def test_long_prompts_reach_the_model_whole(workspace: Workspace, vowels: Any) -> None:
    """TRL's default of 512 tokens, on LLaMA-Factory's tokenizer, cuts the question and the assistant's header off."""
    story = "red blue green " * 250
    rows = [{"instruction": f"{story} {index} Which word is last?", "output": "green"} for index in range(8)]
    tiny.write_dataset(workspace.data, "long", rows)
    probe = Probe()
    workspace.run([probe], **vowels, dataset="long", cutoff_len=1000, max_steps=1)
    assert probe.prompts[0].shape[1] > 600
    for text in prompts_of(probe, workspace):
        assert text.startswith("<|im_start|>system\n")
        assert text.endswith("Which word is last?<|im_end|>\n<|im_start|>assistant\n")


def test_prompts_longer_than_cutoff_len_are_dropped_not_cut(
    workspace: Workspace, vowels: Any, log_lines: list[str]
) -> None:
    rows = [{"instruction": "red " * 300 + str(index), "output": "x"} for index in range(3)]
    tiny.write_dataset(workspace.data, "mixed", rows + tiny.questions(8))
    probe = Probe()
    workspace.run([probe], **vowels, dataset="mixed", cutoff_len=200)
    assert all(text.endswith("<|im_start|>assistant\n") for text in prompts_of(probe, workspace))
    assert any("3 of 11 prompts longer than 200 tokens" in line for line in log_lines)


def test_the_template_of_the_yaml_renders_not_the_tokenizers(workspace: Workspace, vowels: Any) -> None:
    """`template: qwen` has a default system message, this tokenizer's own chat template has none."""
    probe = Probe()
    workspace.run([probe], **vowels, max_steps=1)
    for text in prompts_of(probe, workspace):
        assert "You are Qwen, created by Alibaba Cloud." in text


def test_prompt_ids_are_those_of_llamafactorys_inference(workspace: Workspace, vowels: Any) -> None:
    """The Template encodes piece by piece; encoding the joined text again merges otherwise over a boundary."""
    from llamafactory.data.template import TEMPLATES

    tokenizer = AutoTokenizer.from_pretrained(workspace.defaults["model_name_or_path"])
    probe = Probe()
    workspace.run([probe], **vowels, template="alpaca", max_steps=1)
    rows = workspace.completions()
    for ids, row in zip(probe.prompts[0].tolist(), rows[: len(probe.prompts[0])], strict=True):
        turns = [*row["prompt"], {"role": "assistant", "content": ""}]
        expected = TEMPLATES["alpaca"].encode_oneturn(tokenizer, turns)[0]
        assert tokenizer.encode(tokenizer.decode(expected), add_special_tokens=False) != expected
        assert ids[-len(expected) :] == expected
        assert set(ids[: -len(expected)]) <= {tokenizer.pad_token_id}


def test_rollouts_are_sampled_from_the_policy_itself(workspace: Workspace, vowels: Any, tmp_path: Path) -> None:
    """Neither LLaMA-Factory's chat defaults (0.95, 0.7, 50) nor the model's generation config may truncate it."""
    model = tiny.build_model(tmp_path / "chatty")
    path = model / "generation_config.json"
    chatty = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | chatty), encoding="utf-8")
    probe = Probe()
    workspace.run([probe], **vowels, model_name_or_path=str(model), max_steps=1)
    used = probe.options[0]
    assert (used.temperature, used.top_p, used.top_k, used.do_sample) == (1.0, 1.0, 0, True)
    saved = json.loads(probe.model.generation_config.to_json_string())
    assert {name: saved[name] for name in chatty} == chatty, "the model's own config is for serving, and stays"


def test_sampling_keys_that_were_set_are_used(workspace: Workspace, vowels: Any) -> None:
    probe = Probe()
    workspace.run(
        [probe],
        **vowels,
        temperature=0.8,
        top_p=0.9,
        top_k=7,
        max_new_tokens=5,
        grpo_max_completion_length=None,
        max_steps=1,
    )
    used = probe.options[0]
    assert (used.temperature, used.top_p, used.top_k, used.max_new_tokens) == (0.8, 0.9, 7, 5)


@pytest.mark.parametrize("finetuning_type", ["lora", "full"])
def test_non_reentrant_checkpointing_survives_the_rollout(
    workspace: Workspace, vowels: Any, monkeypatch: pytest.MonkeyPatch, finetuning_type: str
) -> None:
    import torch.utils.checkpoint as checkpointing

    used: list[Any] = []
    original = checkpointing.checkpoint

    def spy(*args: Any, **kwargs: Any) -> Any:
        used.append(kwargs.get("use_reentrant"))
        return original(*args, **kwargs)

    monkeypatch.setattr(checkpointing, "checkpoint", spy)
    workspace.run(**vowels, finetuning_type=finetuning_type, use_reentrant_gc=False)
    assert used and set(used) == {False}


def test_every_stop_word_of_the_template_ends_a_completion(workspace: Workspace, vowels: Any) -> None:
    """Template llama3 stops at <|eot_id|> (the eos) and at <|eom_id|>; TRL 0.24 knows one eos.

    A bias makes <|eom_id|> likely at every position. What would follow it must not be trained on, and a completion
    that it ends is not counted as cut off.
    """
    tokenizer = AutoTokenizer.from_pretrained(workspace.defaults["model_name_or_path"])
    eom = tokenizer.convert_tokens_to_ids("<|eom_id|>")
    masks: list[torch.Tensor] = []
    probe = Probe()

    from llamafactory_plugin.trainer import LlamaFactoryGRPOTrainer

    original = LlamaFactoryGRPOTrainer._compute_loss

    def spy(self: Any, model: Any, inputs: dict[str, Any]) -> Any:
        masks.append(torch.where(inputs["completion_mask"].bool(), inputs["completion_ids"], -1))
        return original(self, model, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaFactoryGRPOTrainer, "_compute_loss", spy)
        workspace.run(
            [probe],
            **vowels,
            template="llama3",
            grpo_max_completion_length=60,
            grpo_config={"generation_kwargs": {"sequence_bias": [[[eom], 5.0]]}},
        )
    assert set(probe.options[0].eos_token_id) == {eom, tokenizer.convert_tokens_to_ids("<|eot_id|>")}
    ended = [row for batch in masks for row in batch if eom in row]
    assert len(ended) >= 12
    for row in ended:
        after = row[row.tolist().index(eom) + 1 :]
        assert set(after.tolist()) <= {-1}
    cut_off = [entry["completions/clipped_ratio"] for entry in workspace.log() if "completions/clipped_ratio" in entry]
    total = sum(len(batch) for batch in masks)
    assert sum(cut_off) / len(cut_off) == pytest.approx((total - len(ended)) / total)


def test_ranking_rows_stay_conversational(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL may look at the texts in `chosen` to tell whether prompts are messages: which key, the hash seed decides."""
    import trl.trainer.grpo_trainer as trl_module

    asked: list[set[str]] = []
    original = trl_module.is_conversational

    def spy(example: dict[str, Any]) -> bool:
        asked.append(set(example))
        return original(example)

    monkeypatch.setattr(trl_module, "is_conversational", spy)
    rows = [
        {"instruction": row["instruction"], "input": "", "chosen": row["output"], "rejected": "none of them"}
        for row in tiny.questions(16)
    ]
    columns = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    tiny.write_dataset(workspace.data, "pairs", rows, ranking=True, columns=columns)
    (workspace.folder / "rewards.py").write_text(
        "def seen(prompts, completions, chosen, rejected, solution, **kwargs):\n"
        "    assert all(isinstance(prompt, list) for prompt in prompts)\n"
        "    assert all(completion[0]['role'] == 'assistant' for completion in completions)\n"
        "    assert chosen == solution and set(rejected) == {'none of them'}\n"
        "    return [0.0] * len(prompts)\n",
        encoding="utf-8",
    )
    workspace.run(dataset="pairs", reward_funcs=f"{workspace.folder / 'rewards.py'}:seen")
    assert asked and not set.union(*asked) & {"chosen", "rejected", "completion", "messages"}
    workspace.run(dataset="pairs", overwrite_output_dir=True)
    assert set(workspace.completions()[0]["rewards"]) == {"preference_overlap"}
