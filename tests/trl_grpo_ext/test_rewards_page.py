"""`docs/rewards.md`: its code runs from top to bottom, its YAML composes, and it names every registered reward."""

import re
import subprocess
import sys

import pytest
import yaml

from trl_grpo_ext.rewards import REWARDS, adapters
from trl_grpo_ext.rewards.composition import compose
from trl_grpo_ext.rewards.registry import STATEFUL


@pytest.fixture(scope="module")
def page(repository):
    return (repository / "docs" / "rewards.md").read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def test_the_code_runs(page, subprocess_environment, tmp_path):
    found = blocks(page, "python")
    assert len(found) == 13
    script = tmp_path / "page.py"
    script.write_text("\n".join(found), encoding="utf-8")
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=subprocess_environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_yaml_composes(page):
    (text,) = blocks(page, "yaml")
    reward = compose(yaml.safe_load(text))
    texts = ["<think>3+4</think><answer>7</answer>", "7"]
    first, second = reward(completions=texts, prompts=["p", "p"], solution=["7", "7"])
    assert first > second


def test_every_name_is_on_the_page(page):
    table = page.partition("## By name")[2].partition("## Adapters")[0]
    named = set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    assert named == {*REWARDS, *STATEFUL}
    classes = {name for name in adapters.__all__ if name not in ("RewardAdapter", "RewardError", "ServiceError")}
    assert {name for name in classes if name not in page} == set()
