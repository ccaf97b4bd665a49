"""`grpo-ext check cfg.yaml`: everything about a run that can be known without loading its model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from llamafactory_plugin.errors import UsageError
from trl_grpo_ext._terminal import visible
from trl_grpo_ext.rewards import ProbeError, ProbeReport, probe_reward, probe_table, total_report

DEFAULT_ROWS = 32
SHOWN_CHARACTERS = 60
LABEL_FREE = "trl_grpo_ext.rewards.label_free"


def main(arguments: Sequence[str]) -> int:
    """Check a YAML file and its `key=value` overrides; 0: nothing is wrong, 1: refused, or a reward is flagged."""
    parser = argparse.ArgumentParser(prog="grpo-ext check", description=__doc__)
    parser.add_argument("config", help="the YAML file of `llamafactory-cli train`")
    parser.add_argument("overrides", nargs="*", help="key=value, as behind the file in `llamafactory-cli train`")
    parser.add_argument(
        "--rows", type=int, default=DEFAULT_ROWS, help="rows whose gold answers the rewards are run on"
    )
    parser.add_argument(
        "--reward-model",
        action="store_true",
        help="load reward_model of type full and run it too; it is left out else",
    )
    given = parser.parse_args(list(arguments))
    if given.rows < 2:
        parser.error(f"--rows must be at least 2, not {given.rows}")
    sys.argv = ["llamafactory-cli", given.config, *given.overrides]
    try:
        return check(given.rows, load_reward_model=given.reward_model)
    except (UsageError, ProbeError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1


def check(rows: int, load_reward_model: bool = False) -> int:
    """Print the batch, the data and what every reward gives to known answers; 1 when a reward is flagged."""
    from llamafactory.hparams import read_args
    from llamafactory.train import tuner

    from llamafactory_plugin.dispatch import parse_run
    from llamafactory_plugin.workflow import prepare_run

    run = parse_run(tuner, read_args())
    if run.finetuning_args.stage != "grpo":
        raise UsageError(f"stage: `grpo-ext check` reads runs of stage grpo, not {run.finetuning_args.stage!r}.")
    if run.finetuning_args.grpo_training_free:
        from llamafactory_plugin.training_free import prepare_training_free

        found = prepare_training_free(run)
        print("\n" + "\n".join(found.lines))
        return _probe(found, found.config.num_generations, rows, load_reward_model)
    prepared = prepare_run(run)
    print_run(prepared)
    return _probe(prepared, prepared.plan.group_size, rows, load_reward_model)


def _probe(prepared: Any, group_size: int, rows: int, load_reward_model: bool) -> int:
    """Print what every reward gives to known answers; 1 when a reward is flagged."""
    sample = _sample(next(dataset for _, dataset in prepared.data.each()), rows)
    golds = [str(gold) for gold in sample.pop("solution", [])]
    if not golds:
        print("\nThe data has no ground truth: the rewards cannot be run on a gold answer.")
        return 0
    prompts = sample.pop("prompt")
    columns = {**sample, "solution": golds, "trainer_state": None}
    reports, weights = [], []
    for reward, weight in _probed(prepared, load_reward_model):
        judged = not _is_label_free(reward)
        reports.append(probe_reward(reward, prompts, golds, columns, group_size, judged))
        weights.append(weight)
    return print_reports(reports, weights, len(golds))


def print_run(prepared: Any) -> None:
    """Print the arithmetic of a run: its batch, its data, its longest prompts, the defaults that were chosen."""
    from llamafactory_plugin.bitdelta import bitdelta_line
    from llamafactory_plugin.experience import experience_line
    from llamafactory_plugin.summary import loss_line

    plan, data, config = prepared.plan, prepared.data, prepared.config
    print(f"\nbatch: {plan.prompts} prompts x {plan.group_size} completions = {plan.completions} completions per step")
    for name, dataset in data.each():
        print(f"{name}: {len(dataset)} prompts, columns {', '.join(dataset.column_names)}")
    print(f"longest prompt: {data.longest_prompt} tokens; completions: {config.max_completion_length} tokens")
    for tokens, text in data.longest:
        print(f"  {tokens} tokens: {_shortened(text)}")
    print(loss_line(config, prepared.run.finetuning_args.grpo_preset))
    for line in (experience_line(prepared.run.finetuning_args), bitdelta_line(prepared.run.finetuning_args)):
        if line is not None:
            print(line)
    for note in prepared.notes:
        print(f"default: {note}")


def print_reports(reports: Sequence[ProbeReport], weights: Sequence[float], rows: int) -> int:
    """Print the table; 1 when the weighted sum is flagged, or a reward that names a column of the data among its arguments.

    A reward of the form alone (tags, length) does not separate a gold answer from a corrupted one, and need not, as long
    as the sum does.
    """
    judged = [report for report in reports if report.judged]
    summed = [(report, weight) for report, weight in zip(reports, weights, strict=True) if report.judged and weight]
    totals = [total_report(*zip(*summed, strict=True))] if len(summed) > 1 else []
    if reports:
        print(f"\nmean reward on {rows} rows:\n{probe_table([*reports, *totals])}")
    decisive = [report for report in judged if report.reads] + (totals or judged)
    return int(any(report.is_flagged for report in decisive))


def _probed(prepared: Any, load_reward_model: bool) -> list[tuple[Any, float]]:
    """The rewards to run with their weights: what a guard guards and its truth in its place, no reward model unasked."""
    from llamafactory_plugin.reward_model import ValueHeadReward, parts_of
    from trl_grpo_ext import SelfCertainty
    from trl_grpo_ext.rewards.label_free import CollapseGuard

    weights = prepared.run.finetuning_args.reward_weights or [1.0] * len(prepared.rewards)
    pairs: list[tuple[Any, float]] = []
    for reward, weight in zip(prepared.rewards, weights, strict=True):
        guarded = isinstance(reward, CollapseGuard)
        pairs += [(reward.reward, weight), (reward.truth, 0.0)] if guarded else [(reward, weight)]
    for reward, _ in [pair for pair in pairs if isinstance(pair[0], SelfCertainty)]:
        print(f"\n{reward.__name__} is not run: the trainer computes it from the model's own distributions.")
    pairs = [pair for pair in pairs if not isinstance(pair[0], SelfCertainty)]
    if load_reward_model:
        return pairs
    left_out = [reward for reward, _ in pairs if any(isinstance(part, ValueHeadReward) for part in parts_of(reward))]
    for reward in left_out:
        print(f"\n{reward.__name__} is not run: it would load reward_model; ask for that by --reward-model.")
    return [(reward, weight) for reward, weight in pairs if reward not in left_out]


def _is_label_free(reward: Any) -> bool:
    from llamafactory_plugin.reward_model import parts_of

    return any(type(part).__module__.startswith(LABEL_FREE) for part in parts_of(reward))


def _shortened(text: str) -> str:
    words = visible(" ".join(text.split()))
    return words if len(words) <= SHOWN_CHARACTERS else f"{words[:SHOWN_CHARACTERS]}..."


def _sample(dataset: Any, rows: int) -> dict[str, list[Any]]:
    chosen = dataset
    if "solution" in dataset.column_names:
        wanted = [row for row, gold in enumerate(dataset["solution"]) if gold is not None]
        chosen = dataset.select(wanted)
    chosen = chosen.select(range(min(rows, len(chosen))))
    return {name: list(chosen[name]) for name in chosen.column_names}
