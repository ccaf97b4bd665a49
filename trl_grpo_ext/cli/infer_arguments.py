"""The arguments of `grpo-ext infer`."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """Answer with the lessons of a library in the prompt, as in training.

Questions are the argument, or the rows of --input, or else the text of the standard input. Model and settings come
from the file of the training run (--config), or from --model and --base-url.
Status: 0 answered; 1 refused, or a call failed; 130 Ctrl-C."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    found = argparse.ArgumentParser(
        prog="grpo-ext infer", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("query", nargs="?", help="the question")
    add("--config", type=Path, metavar="FILE", help="file of a train-free run: its policy, settings and library")
    help_text = "a value in place of the file's or the flags', such as config.eval_temperature=0; several times"
    add("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help=help_text)
    _models(found)
    _rows(found)
    return found


def _models(found: argparse.ArgumentParser) -> None:
    add = found.add_argument
    add("--library", type=Path, metavar="PATH", help="result folder of train-free, or a library's file")
    add("--no-lessons", action="store_true", help="leave the lessons out, to compare")
    add("--model", help="folder of a model, or the endpoint's name of it")
    add("--base-url", metavar="URL", help="OpenAI-compatible endpoint, like http://127.0.0.1:8000/v1")
    add("--api-key-env", metavar="NAME", help="environment variable with the endpoint's key")


def _rows(found: argparse.ArgumentParser) -> None:
    add = found.add_argument
    add("--input", metavar="FILE", help="JSON Lines or a JSON list of rows; - for the standard input")
    add("--column", help="column of the questions (default: prompt, question, query or problem)")
    add(
        "--output",
        type=Path,
        metavar="FILE",
        help="where the rows go, as JSON Lines with `response` (default: printed)",
    )


def check(given: argparse.Namespace) -> str | None:
    """Return what is wrong with the arguments, in one sentence."""
    if given.query is not None and given.input:
        return "give a query or --input, not both"
    if (given.output or given.column) and not given.input:
        return "--output and --column go with --input"
    if given.config and (given.model or given.base_url or given.api_key_env):
        return "--model, --base-url and --api-key-env are without --config; with it, use --set policy.model=..."
    if not given.config and not given.model:
        return "give --config, or --model (and --base-url for an endpoint)"
    if not given.library and not given.config and not given.no_lessons:
        return "give --library, or --no-lessons"
    return "--no-lessons and --library exclude one another" if given.library and given.no_lessons else None
