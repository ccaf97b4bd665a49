"""`grpo-ext train-free cfg.yaml`: learn lessons from groups of rollouts, without a gradient."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trl_grpo_ext.experience import ExperienceError
from trl_grpo_ext.rewards import RewardError
from trl_grpo_ext.training_free import (
    BackendError,
    PreparedRun,
    Report,
    RunBusyError,
    read_run_settings,
    shown_progress,
)

DESCRIPTION = """Learn lessons from groups of rollouts, without a gradient (Training-Free GRPO, arXiv 2510.08191).

Ctrl-C stops the run, a kill or a failed server too; the same command continues it, and no reply is paid for twice.
Status: 0 finished, or a budget is reached; 1 refused or failed; 3 finished, but reflections are pending; 130 Ctrl-C."""

STATUS = {"finished": 0, "stopped": 0, "degraded": 3}
INTERRUPTED = 130
REFUSED = (BackendError, ExperienceError, ImportError, OSError, RewardError, RunBusyError, ValueError)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    found = argparse.ArgumentParser(
        prog="grpo-ext train-free", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("config", type=Path, help="YAML file with policy, dataset, reward, output_dir (docs/training_free.md)")
    help_text = "a value in place of the file's, such as config.num_generations=8; may be given several times"
    add("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help=help_text)
    add("--check", action="store_true", help="check settings, data and reward, and stop before a model is loaded")
    return found


def main(arguments: Sequence[str]) -> int:
    """Train; returns the status that the description lists."""
    given = parser().parse_args(list(arguments))
    try:
        prepared = read_run_settings(given.config, given.overrides).prepare()
        print(summary(prepared), flush=True)
        return 0 if given.check else _train(prepared)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; the same command continues", file=sys.stderr)
        return INTERRUPTED
    except REFUSED as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def summary(prepared: PreparedRun) -> str:
    """Return what a run will do, in one line."""
    config = prepared.settings.config
    steps = config.num_train_epochs * -(-prepared.problems // config.batch_size)
    held_out = f", {prepared.kept} held out for the gate" if config.gate is not None else ", no acceptance gate"
    return (
        f"{prepared.problems} problems to learn from{held_out}; {steps} steps of at most {config.batch_size} problems x "
        f"{config.num_generations} rollouts; results in {prepared.settings.output_dir}"
    )


def outcome(report: Report, output_dir: Path) -> str:
    """Return what a run has done, in a few lines."""
    rewards = " ".join(f"{reward:.4f}" for reward in report.rewards) or "none"
    accepted = sum(bool(step["accepted"]) for step in report.steps)
    lines = [f"{report.status}: {report.reason}" if report.reason else report.status]
    lines.append(f"mean reward by step: {rewards}")
    lines.append(f"{accepted} candidate libraries accepted; {len(report.lessons)} lessons in {output_dir}/library.db")
    return "\n".join([*lines, f"report: {output_dir}/report.md; to paste: {output_dir}/system_prompt.txt"])


def _train(prepared: PreparedRun) -> int:
    with prepared.learner() as learner:
        with shown_progress() as on_progress:
            settings = prepared.settings
            learner.train(prepared.rows, settings.reward, prepared.held_out, on_progress=on_progress)
        report = learner.report
    assert report is not None
    print(outcome(report, prepared.settings.output_dir))
    return STATUS[report.status]
