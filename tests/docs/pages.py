"""Every block and every command of README and docs: the test that runs it, or the reason why none does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
HERE = "tests/docs/test_snippets.py"
HERE_A = "tests/docs/test_snippets_llamafactory.py"
BITDELTA = "tests/docs/test_bitdelta_page.py"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

# Page -> language -> how many blocks there are, and the test that runs all of them.
BLOCKS: dict[str, dict[str, tuple[int, str]]] = {
    "README.md": {"python": (2, HERE), "yaml": (4, HERE_A)},
    # The block without a language is the command's synopsis.
    "docs/bitdelta.md": {"python": (5, BITDELTA), "yaml": (1, HERE_A), "": (1, BITDELTA)},
    "docs/board.md": {"json": (1, HERE_A)},
    "docs/evaluation.md": {
        "python": (1, "tests/evaluation/test_pages.py"),
        "yaml": (1, "tests/evaluation/test_pages.py"),
    },
    "docs/experience.md": {
        "python": (3, "tests/llamafactory_plugin/test_experience_page.py"),
        "yaml": (1, "tests/llamafactory_plugin/test_experience_page.py"),
        "": (1, "tests/llamafactory_plugin/test_experience_page.py"),
    },
    "docs/extending.md": {"python": (3, HERE), "toml": (1, HERE)},
    "docs/gym.md": {"python": (1, HERE)},
    "docs/losses.md": {
        "python": (2, "tests/llamafactory_plugin/test_losses_page.py"),
        "yaml": (1, "tests/llamafactory_plugin/test_losses_page.py"),
    },
    "docs/migration.md": {"python": (5, HERE)},
    "docs/quickstart_llamafactory.md": {"json": (1, HERE_A), "yaml": (1, HERE_A)},
    "docs/quickstart_trl.md": {"python": (2, HERE)},
    "docs/report.md": {"python": (2, "tests/evaluation/test_pages.py")},
    "docs/rewards.md": {
        "python": (13, "tests/trl_grpo_ext/test_rewards_page.py"),
        "yaml": (1, "tests/trl_grpo_ext/test_rewards_page.py"),
    },
    "docs/rewards_llamafactory.md": {"yaml": (4, HERE_A)},
    "docs/serving.md": {"python": (1, "tests/training_free/test_cli_page.py")},
    "docs/training_free.md": {
        "python": (1, "tests/training_free/test_cli_page.py"),
        "yaml": (2, "tests/training_free/test_cli_page.py"),
    },
}

# The beginning of a command -> the test that runs it, and a word of that test.
RUN = {
    "grpo-ext train-free": ("tests/training_free/test_cli_page.py", "run_commands"),
    "grpo-ext infer": ("tests/training_free/test_cli_page.py", "run_commands"),
    "grpo-ext serve": ("tests/training_free/test_cli_page.py", "serve.parser"),
    "grpo-ext evaluate quickstart": (HERE_A, "run_command(command) for command in (evaluate"),
    "grpo-ext report quickstart": (HERE_A, "run_command(command) for command in (evaluate"),
    "grpo-ext evaluate saves": ("tests/evaluation/test_pages.py", "evaluate"),
    "grpo-ext report saves": ("tests/evaluation/test_pages.py", "report_parser"),
    "grpo-ext check grpo.yaml": (HERE_A, "run_command(check)"),
    "llamafactory-cli train grpo.yaml": (HERE_A, "run_exp()"),
    "python -m llamafactory_plugin train": ("tests/packaging/test_command_line.py", "test_train_is_patched"),
    "python -m llamafactory_plugin doctor": ("tests/packaging/test_command_line.py", "doctor"),
    "python benchmarks/learning.py": ("tests/benchmarks/test_learning.py", "learning"),
    "python benchmarks/step.py": ("tests/benchmarks/test_step.py", "step"),
    "python benchmarks/ppo_vs_grpo.py": ("tests/benchmarks/test_ppo_vs_grpo.py", "ppo_vs_grpo"),
    "python benchmarks/bitdelta.py": ("tests/benchmarks/test_bitdelta.py", "bitdelta"),
    "python benchmarks/scaling.py": ("tests/benchmarks/test_scaling.py", "scaling"),
    "trl grpo --reward_funcs": ("tests/trl_grpo_ext/test_reward_dotted.py", "trl"),
}
# The beginning of a command -> why no test runs it.
NOT_RUN = {
    "pip install": "needs the package index and gigabytes; tests/packaging installs wheels, test_resolver.py asks pip's resolver",
    "make quickstart": "installs an environment and trains for 4 minutes; tests/quickstart tests its parts",
    "python examples/quickstart/run.py": "trains for 4 minutes; tests/quickstart tests its parts",
}


def pages() -> list[Path]:
    """README and everything of docs."""
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def blocks(name: str, language: str) -> list[str]:
    """The blocks of a page in a language."""
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    return [body for found, body in BLOCK.findall(text) if found == language]


def commands(name: str) -> list[str]:
    """The commands of a page, without comments, continued lines joined; those of the quickstart's environment too."""
    lines = "".join(blocks(name, "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [shlex.join(found).removeprefix(".venv-quickstart/bin/") for found in words if found]
