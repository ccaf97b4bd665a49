"""`grpo-ext check cfg.yaml`: everything about a run that can be known without loading its model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from llamafactory_plugin.errors import UsageError
from trl_grpo_ext.rewards import ProbeError, probe_reward, probe_table

DEFAULT_ROWS = 32


def main(arguments: Sequence[str]) -> int:
    """Check a YAML file and its `key=value` overrides; 0: nothing is wrong, 1: refused, or a reward is flagged."""
    parser = argparse.ArgumentParser(prog="grpo-ext check", description=__doc__)
    parser.add_argument("config", help="the YAML file of `llamafactory-cli train`")
    parser.add_argument("overrides", nargs="*", help="key=value, as behind the file in `llamafactory-cli train`")
    parser.add_argument(
        "--rows", type=int, default=DEFAULT_ROWS, help="rows whose gold answers the rewards are run on"
    )
    given = parser.parse_args(list(arguments))
    if given.rows < 2:
        parser.error(f"--rows must be at least 2, not {given.rows}")
    sys.argv = ["llamafactory-cli", given.config, *given.overrides]
    try:
        return check(given.rows)
    except (UsageError, ProbeError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1


def check(rows: int) -> int:
    """Print the batch, the data and what every reward gives to known answers; 1 when a reward is flagged."""
    from llamafactory.hparams import read_args
    from llamafactory.train import tuner

    from llamafactory_plugin.dispatch import parse_run
    from llamafactory_plugin.workflow import prepare_run

    run = parse_run(tuner, read_args())
    if run.finetuning_args.stage != "grpo":
        raise UsageError(f"stage: `grpo-ext check` reads runs of stage grpo, not {run.finetuning_args.stage!r}.")
    prepared = prepare_run(run)
    plan, data = prepared.plan, prepared.data
    print(f"\nbatch: {plan.prompts} prompts x {plan.group_size} completions = {plan.completions} completions per step")
    for name, dataset in data.each():
        print(f"{name}: {len(dataset)} prompts, columns {', '.join(dataset.column_names)}")
    print(f"longest prompt: {data.longest_prompt} tokens; completions: {prepared.config.max_completion_length} tokens")
    for note in prepared.notes:
        print(f"default: {note}")
    sample = _sample(next(dataset for _, dataset in data.each()), rows)
    golds = [str(gold) for gold in sample.pop("solution", [])]
    if not golds:
        print("\nThe data has no ground truth: the rewards cannot be run on a gold answer.")
        return 0
    prompts = sample.pop("prompt")
    columns = {**sample, "solution": golds, "trainer_state": None}
    reports = [probe_reward(reward, prompts, golds, columns) for reward in prepared.rewards]
    print(f"\nmean reward on {len(golds)} rows:\n{probe_table(reports)}")
    return int(any(report.is_flagged for report in reports))


def _sample(dataset: Any, rows: int) -> dict[str, list[Any]]:
    chosen = dataset.select(range(min(rows, len(dataset))))
    if "solution" in chosen.column_names:
        chosen = chosen.filter(lambda row: row["solution"] is not None)
    return {name: list(chosen[name]) for name in chosen.column_names}
