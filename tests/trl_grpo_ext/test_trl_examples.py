"""The scripts of `examples/trl`, run as their first lines say."""

import json
import re
import subprocess
import sys

import pytest


@pytest.fixture
def run_example(repository, subprocess_environment):
    def run(*arguments):
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=repository, env=subprocess_environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("name", ["grpo_gsm8k", "reward_control"])
def test_head_names_the_launch_lines(repository, name):
    path = f"examples/trl/{name}.py"
    source = (repository / path).read_text()
    assert f"\n    python {path}" in source
    assert f"\n    torchrun --nproc_per_node 2 {path}" in source
    assert len(source.splitlines()) <= 100


def train_on_gsm8k(run_example, model, data, output):
    limits = ["--steps", "2", "--num-generations", "2", "--max-completion-length", "8"]
    paths = ["--model", str(model), "--data", str(data), "--output", str(output)]
    printed = run_example("examples/trl/grpo_gsm8k.py", *paths, *limits)
    assert len(re.findall("'rewards/gsm8k_number/mean'", printed)) == 2
    assert (output / "model.safetensors").exists()


def test_grpo_gsm8k(run_example, tiny_model, tiny_tokenizer, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"question": f"{i} and {i}", "answer": f"it is {2 * i}\n#### {2 * i}"} for i in range(8)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train_on_gsm8k(run_example, tmp_path / "model", tmp_path / "data.jsonl", tmp_path / "out")


@pytest.mark.slow
def test_grpo_gsm8k_on_a_pretrained_model_and_the_real_set(run_example, repository, tmp_path):
    shared = repository.parent / "shared"
    model, data = shared / "models" / "stories260K", shared / "data" / "gsm8k" / "train.jsonl"
    if not (model.exists() and data.exists()):
        pytest.skip("../shared/models/stories260K or ../shared/data/gsm8k is not here")
    train_on_gsm8k(run_example, model, data, tmp_path / "out")


def test_reward_control(run_example):
    printed = run_example("examples/trl/reward_control.py", "--steps", "12")
    means = {c: (float(a), float(b)) for c, a, b in re.findall(r"control=(\w+): mean reward (\S+) -> (\S+)", printed)}
    assert means["none"][1] > means["none"][0] + 0.15
    assert abs(means["shuffled"][1] - means["shuffled"][0]) < 0.15
