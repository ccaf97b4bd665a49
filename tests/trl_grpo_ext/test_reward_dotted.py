"""`trl grpo --reward_funcs trl_grpo_ext.rewards.<name>`: every registered name, and a real command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import trl_grpo_ext.rewards as rewards
from trl_grpo_ext.rewards import REWARDS, STATEFUL

# A package of this name exists; its reward has another name as an attribute.
OTHER_NAME = {"label_free": "label_free_composite"}
TASK = {"nums": [3, 4], "target": 7}


@pytest.mark.parametrize("name", sorted({*REWARDS, *STATEFUL}))
def test_every_registered_name_is_an_attribute(name):
    reward = getattr(rewards, OTHER_NAME.get(name, name))
    assert callable(reward) and reward.__name__ == OTHER_NAME.get(name, name)
    assert (reward is getattr(rewards, OTHER_NAME.get(name, name))) == (name in REWARDS)


def test_an_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'exact_mtch'"):
        rewards.exact_mtch  # noqa: B018


@pytest.mark.line_b
def test_the_trl_command_trains_on_registered_rewards(tmp_path, tiny_model, tiny_tokenizer, subprocess_environment):
    """A built-in function, one configured from a class, and two that keep state, by their dotted names."""
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    row = {"prompt": [{"role": "user", "content": "say 7"}], "solution": "7", **TASK}
    (tmp_path / "data" / "train.jsonl").write_text("\n".join([json.dumps(row)] * 8))
    names = ["numeric_match", "math_equal_strict", "self_consistency", "label_free_composite", "countdown"]
    dotted = [f"trl_grpo_ext.rewards.{name}" for name in names]
    command = [str(Path(sys.executable).parent / "trl"), "grpo", "--model_name_or_path", str(tmp_path / "model")]
    command += ["--dataset_name", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    command += ["--num_generations", "4", "--per_device_train_batch_size", "4", "--max_completion_length", "4"]
    command += ["--max_steps", "2", "--logging_steps", "1", "--save_strategy", "no", "--report_to", "none"]
    command += ["--bf16", "False", "--gradient_checkpointing", "False", "--dtype", "float32"]
    result = subprocess.run(
        [*command, "--reward_funcs", *dotted], env=subprocess_environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    for name in names:
        assert f"rewards/{name}/mean" in result.stdout, result.stdout[-3000:]
