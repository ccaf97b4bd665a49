"""The arguments of `grpo-ext bitdelta`."""

from __future__ import annotations

import argparse
from inspect import signature

from trl_grpo_ext.bitdelta import BitDeltaConfig, distill

PROMPTS = "a text per line, or .jsonl with a key prompt"
DTYPES = ("float32", "bfloat16", "float16")


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    top = argparse.ArgumentParser(
        prog="grpo-ext bitdelta", description="A full fine-tune as a small delta of its base."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _compress(commands)
    _distill(commands)
    apply = commands.add_parser("apply", help="base and delta to a plain checkpoint")
    _paths(apply, base="checkpoint folder or hub id", delta="folder of the delta", out="new folder")
    export = commands.add_parser("export", help="a delta to a plain checkpoint, or to a LoRA adapter")
    _paths(export, delta="folder of the delta", out="new folder")
    export.add_argument("--base", help="where the base is, if not where it was")
    export.add_argument("--format", choices=("checkpoint", "lora"), default="checkpoint")
    export.add_argument("--dtype", choices=DTYPES, help="dtype of the weights (default: the fine-tuned ones')")
    inspect = commands.add_parser("inspect", help="sizes and codecs of a delta")
    _paths(inspect, delta="folder of the delta")
    inspect.add_argument("--tensors", action="store_true", help="also a line per tensor, with the reason")
    inspect.add_argument("--json", action="store_true", help="as JSON")
    verify = commands.add_parser("verify", help="check every byte of a delta and of its base")
    _paths(verify, delta="folder of the delta")
    verify.add_argument("--base", help="where the base is, if not where it was")
    for command in (apply, export):
        command.add_argument("--overwrite", action="store_true", help="replace what stands in OUT")
    return top


def _paths(command: argparse.ArgumentParser, **names: str) -> None:
    for name, text in names.items():
        command.add_argument(name, metavar=name.upper(), help=text)


def _compress(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("compress", help="a fine-tuned checkpoint to a delta")
    _paths(
        command, base="what the run started from: folder or hub id", finetuned="what it ended with", out="new folder"
    )
    default = BitDeltaConfig()
    command.add_argument("--bits", type=int, default=default.bits, help="sign masks, 1 to 4 (default %(default)s)")
    command.add_argument(
        "--group-size", type=int, help="weights of a row that share a scale, e.g. 128 (default: a row)"
    )
    command.add_argument("--scale", default=default.scale, help="matrix, row or group (default %(default)s)")
    command.add_argument("--fit", default=default.fit, help="auto, mean or activation (default %(default)s)")
    text = "least share of the energy that signs must explain (default %(default)s)"
    command.add_argument("--safety-threshold", type=float, default=default.safety_threshold, help=text)
    command.add_argument("--codec", default=default.codec, help="auto, sign or lossless (default %(default)s)")
    text = "rank of what signs leave that is kept (default %(default)s)"
    command.add_argument("--residual-rank", type=int, default=default.residual_rank, help=text)
    command.add_argument("--prompts", metavar="FILE", help=f"file of prompts that scales are fitted to: {PROMPTS}")
    command.add_argument("--base-revision", help="commit of the base on the hub")
    command.add_argument("--overwrite", action="store_true", help="replace what stands in OUT")
    command.add_argument("--json", action="store_true", help="print the summary as JSON")


def _distill(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("distill", help="a delta's scales trained on the fine-tuned model's logits")
    _paths(command, delta="folder of the delta", finetuned="what it was made of: folder or hub id", out="new folder")
    command.add_argument("--prompts", metavar="FILE", required=True, help=f"file of texts to train on: {PROMPTS}")
    command.add_argument("--base", help="where the base is, if not where it was")
    defaults = {name: given.default for name, given in signature(distill).parameters.items()}
    text = "optimizer steps, a batch each (default %(default)s)"
    command.add_argument("--steps", type=int, default=defaults["steps"], help=text)
    text = "learning rate of the scales' logarithms (default %(default)s)"
    command.add_argument("--rate", type=float, default=defaults["rate"], help=text)
    command.add_argument("--overwrite", action="store_true", help="replace what stands in OUT")
    command.add_argument("--json", action="store_true", help="print the summary as JSON")
