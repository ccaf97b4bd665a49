"""`grpo-ext bitdelta compress|distill|apply|export|inspect|verify`: full fine-tunes as deltas."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from trl_grpo_ext.bitdelta import (
    BitDeltaConfig,
    BitDeltaError,
    DeltaReport,
    apply,
    compress,
    distill,
    export,
    inspect,
    prompt_batches,
    verify,
)
from trl_grpo_ext.cli.bitdelta_arguments import parser


def main(arguments: Sequence[str]) -> int:
    """Run one command; 0: done, 1: refused, with the reason on the error output."""
    given = parser().parse_args(list(arguments))
    try:
        COMMANDS[given.command](given)
    except (BitDeltaError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def read_prompts(path: str) -> list[str]:
    """Return the prompts of a file: a text per line, or the key `prompt` of JSON lines.

    Raises:
        ValueError: a line without that key, or no prompts.
    """
    lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if path.endswith(".jsonl"):
        lines = [_prompt(path, number, line) for number, line in enumerate(lines, 1)]
    if not lines:
        raise ValueError(f"--prompts: {path} holds no prompts.")
    return lines


def _prompt(path: str, number: int, line: str) -> str:
    try:
        found = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, str):
        raise ValueError(f"--prompts: line {number} of {path} has no text under the key prompt.")
    return found


def _print(report: DeltaReport, given: argparse.Namespace) -> None:
    print(json.dumps(report.summary()) if given.json else report.text())


def _compress(given: argparse.Namespace) -> None:
    names = {field.name for field in fields(BitDeltaConfig)}
    config = BitDeltaConfig(**{name: value for name, value in vars(given).items() if name in names})
    prompts = read_prompts(given.prompts) if given.prompts else None
    options = {"prompts": prompts, "overwrite": given.overwrite, "base_revision": given.base_revision}
    _print(compress(given.base, given.finetuned, given.out, config, **options), given)


def _distill(given: argparse.Namespace) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompts = read_prompts(given.prompts)
    model = AutoModelForCausalLM.from_pretrained(given.finetuned).float()
    batches = prompt_batches(AutoTokenizer.from_pretrained(given.finetuned), prompts)
    options = {"base": given.base, "steps": given.steps, "rate": given.rate, "overwrite": given.overwrite}
    _print(distill(given.delta, model, batches, given.out, **options), given)


def _apply(given: argparse.Namespace) -> None:
    print(apply(given.base, given.delta, given.out, overwrite=given.overwrite))


def _export(given: argparse.Namespace) -> None:
    import torch

    dtype = getattr(torch, given.dtype) if given.dtype else None
    options = {"format": given.format, "dtype": dtype, "overwrite": given.overwrite}
    print(export(given.delta, given.out, given.base, **options))


def _inspect(given: argparse.Namespace) -> None:
    report = inspect(given.delta)
    if given.json:
        tensors = {name: vars(entry) for name, entry in report.tensors.items()} if given.tensors else None
        print(json.dumps(report.summary() | ({"tensors": tensors} if tensors is not None else {})))
        return
    print(report.text())
    if given.tensors:
        print("\n".join(report.lines()))


def _verify(given: argparse.Namespace) -> None:
    print(f"{verify(given.delta, given.base)} tensors are whole, and their base is the right one")


COMMANDS = {
    "compress": _compress,
    "distill": _distill,
    "apply": _apply,
    "export": _export,
    "inspect": _inspect,
    "verify": _verify,
}
