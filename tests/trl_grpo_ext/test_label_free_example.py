"""The conservation example runs as printed, and prefers what it says it prefers."""

import importlib.util
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def example(repository):
    spec = importlib.util.spec_from_file_location("conservation", repository / "examples/rewards/conservation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_runs_as_printed_and_ranks_the_advice(repository, subprocess_environment):
    done = subprocess.run(
        [sys.executable, "examples/rewards/conservation.py"],
        cwd=repository,
        env=subprocess_environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    order = [line.split("  ")[-1][:20] for line in done.stdout.splitlines()[1:]]
    assert order == [
        "Sea turtles must not",
        "Sea turtles must not",
        "Nature is nice.",
        "Artificial light on ",
        "Lift the turtle hatc",
    ]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("Corals are animals that live together with algae.", "Corals are not animals that live together with algae."),
        ("Bats must not be disturbed in their winter roost.", "Disturb the bats in their winter roost."),
        ("Do not feed wild dolphins.", "Feed the wild dolphins, because it is better for a dolphin."),
        (
            "Balloons released into the air end as litter, because turtles swallow them.",
            "Balloons released into the air end as litter.",
        ),
    ],
    ids=["grounded", "harmless", "harm is not bought by teaching", "educational"],
)
def test_preferences(example, better, worse):
    scores = example.conservation_reward()(completions=[better, [{"role": "assistant", "content": worse}]])
    assert scores[0] > scores[1]
