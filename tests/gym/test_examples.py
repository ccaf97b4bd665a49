"""`examples/experience_library`: the Python form of the Rust guide's snippets, run as their first lines say."""

import os
import re
import runpy
import subprocess
import sys

import pytest

from tests.gym.catalogue import MISSION, REPOSITORY

FOLDER = REPOSITORY / "examples" / "experience_library"
# The guide's Rust snippets by line, and the functions or names that are their Python form.
FORMS = {
    27: ("quick_start", "def fill"),
    59: ("quick_start", "def show"),
    94: ("quick_start", "ExperienceConfig"),
    106: ("quick_start", "def custom_config"),
    176: ("use_cases", "def code_with_compiler_feedback"),
    217: ("use_cases", "def continual_learning"),
    238: ("use_cases", "def several_domains"),
    267: ("use_cases", "def where_to_sample_more"),
    297: ("with_a_model", "def generate_with_experience_library"),
    325: ("quick_start", "library.stats().summary()"),
    395: ("with_a_model", "def train_with_gradients"),
    432: ("quick_start", "again.load_from_file"),
    459: ("quick_start", "def custom_config"),
    472: ("quick_start", "episode.is_stale"),
    489: ("quick_start", "library.stats()"),
}
DEFAULTS = {"group_size": 8, "max_library_size": 10_000, "max_experience_age": 604_800, "min_advantage_threshold": 0.0}


def run(name: str) -> str:
    settings = {
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(FOLDER / f"{name}.py")]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("line", FORMS)
def test_every_rust_snippet_has_a_python_form(line):
    name, form = FORMS[line]
    source = (FOLDER / f"{name}.py").read_text()
    assert form in source and f"\n    python examples/experience_library/{name}.py\n" in source


@pytest.mark.skipif(not MISSION.is_dir(), reason="../shared/mission is not here")
def test_no_rust_snippet_is_forgotten():
    (guide,) = MISSION.glob("002_*.txt")
    lines = guide.read_text(encoding="utf-8").split("\n")
    assert [number for number, line in enumerate(lines, 1) if line == "```rust"] == list(FORMS)


def test_defaults_are_those_of_the_guide():
    from trl_grpo_ext import ExperienceConfig

    config = ExperienceConfig()
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS
    assert config.sampling_temperature == 1.0 and config.use_advantage_weighting


def test_quick_start():
    printed = run("quick_start")
    assert "Successful pattern: Write a function that adds" in printed and "fresh: True" in printed
    assert re.search(r"GRPO Stats:\nTotal rollouts: 320\nStored: \d+ \(", printed) and "full: False" in printed
    loaded, size = map(int, re.search(r"loaded: (\d+) of (\d+)", printed).groups())
    assert loaded == size > 0 and "cleared: 0" in printed


def test_use_cases():
    printed = run("use_cases")
    sizes = [int(size) for size in re.findall(r"Library size: (\d+)", printed)]
    assert len(sizes) == 2 and 0 < sizes[0] < sizes[1]
    example = re.search(r"Example:\n(.*)\n\nNow write", printed).group(1)
    compile(example, "example", "exec")
    assert "Read a file: open(p).read()" in printed and "Upper-case" not in printed.split("several_domains")[1]
    assert "such as <p>text</p>" in printed and "Need more examples for prompt: Name a prime above 20" in printed


def test_with_a_model(monkeypatch, capsys):
    # In this process: importing torch and TRL in another one takes longer than the script.
    monkeypatch.setattr(sys, "argv", ["with_a_model.py", "--steps", "4"])
    runpy.run_path(str(FOLDER / "with_a_model.py"), run_name="__main__")
    printed = capsys.readouterr().out
    first, second = (int(size) for size in re.findall(r"(\d+) episodes", printed))
    assert 0 < first <= second and re.search(r"answer: '.*'", printed)
