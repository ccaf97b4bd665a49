"""The arguments of `grpo-ext experiences`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any


class Metadata(argparse.Action):
    """`key=value` pairs as a dictionary. A value that is JSON (a number, true, a list) is taken as such."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Collect the pairs; one without a key ends the program."""
        found = dict(getattr(namespace, self.dest) or {})
        for pair in [values] if isinstance(values, str) else values or []:
            key, sign, text = str(pair).partition("=")
            if not key or not sign:
                parser.error(f"{option_string or self.dest}: key=value expected, not {pair!r}")
            found[key] = _value(text)
        setattr(namespace, self.dest, found)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    root = argparse.ArgumentParser(prog="grpo-ext experiences", description="Look at an experience library.")
    commands = root.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, about: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=about, description=about)
        one.add_argument("library", help="the library file, such as output/experiences.db")
        return one

    _looking(command)
    _changing(command)
    _exchanging(command)
    return root


def _looking(command: Any) -> None:
    stats = command("stats", "size, storage efficiency, retention, advantages")
    coverage = command("coverage", "prompts that need rollouts: few episodes first, then the widest reward spread")
    coverage.add_argument("--minimum", type=_count, default=5, help="episodes that a prompt should have")
    listing = command("list", "records, the oldest first")
    listing.add_argument("--kind", choices=["episode", "lesson"])
    search = command("search", "lessons by their text and episodes by their prompt, the best match first")
    search.add_argument("query")
    for one in (listing, search):
        one.add_argument("--where", nargs="+", action=Metadata, metavar="KEY=VALUE", help="metadata filter")
    for one in (stats, coverage, listing, search):
        one.add_argument("--json", action="store_true", help="one JSON object a line")
    history = command("history", "transactions, the newest first")
    for one, limit in ((coverage, 20), (listing, 50), (search, 8), (history, 20)):
        one.add_argument("--limit", type=_count, default=limit, help="most lines (default: %(default)s)")
    diff = command("diff", "what changed between two versions")
    diff.add_argument("earlier", type=int)
    diff.add_argument("later", type=int, nargs="?", help="the current version by default")


def _changing(command: Any) -> None:
    add = command("add", "add a lesson, or an episode")
    add.add_argument("--lesson", metavar="TEXT")
    add.add_argument("--prompt", metavar="TEXT")
    add.add_argument("--response", metavar="TEXT")
    add.add_argument("--advantage", type=float)
    add.add_argument("--metadata", nargs="+", action=Metadata, metavar="KEY=VALUE")
    add.set_defaults(check=_check_add, parser=add)
    tag = command("tag", "set metadata of records; KEY=null takes a key away")
    tag.add_argument("metadata", nargs="+", action=Metadata, metavar="KEY=VALUE")
    tag.add_argument("--ids", nargs="+", required=True, metavar="ID")
    prune = command("prune", "retire stale episodes, and the worst beyond a size; a rollback brings them back")
    prune.add_argument("--max-age", type=float, metavar="SECONDS", help="the library's own by default")
    prune.add_argument("--max-size", type=int, metavar="EPISODES", help="the library's own by default")
    rollback = command("rollback", "make the library what it was at a version, as a new version")
    rollback.add_argument("version", type=int)


def _check_add(given: argparse.Namespace) -> str | None:
    episode = [given.prompt, given.response, given.advantage]
    if given.lesson is not None:
        return (
            "--lesson goes without --prompt, --response and --advantage"
            if any(x is not None for x in episode)
            else None
        )
    return "give --lesson, or all of --prompt, --response and --advantage" if None in episode else None


def _exchanging(command: Any) -> None:
    export = command("export", "write the records to a file")
    export.add_argument("output")
    formats = ["episodes", "lessons", "library", "snapshot"]
    about = "episodes and lessons: JSON for other programs; library: all records; snapshot: with the history"
    export.add_argument("--format", choices=formats, default="library", help=about)
    _distilling(command)
    reading = command("import", "add the records of a JSON file in any of the three formats")
    reading.add_argument("input")
    merge = command("merge", "add the records, uses and counts of another library file")
    merge.add_argument("other")


def _distilling(command: Any) -> None:
    distill = command("distill", "write rows of prompt and lessons for context distillation, one JSON object a line")
    distill.add_argument(
        "output", help="a .jsonl file with the columns of TRL's SDFTTrainer: prompt, privileged_context"
    )
    distill.add_argument(
        "--prompts", metavar="FILE", help="JSON Lines or a JSON list; the episodes' prompts by default"
    )
    distill.add_argument("--column", help="column of FILE with the prompts, texts or messages (default: prompt)")
    distill.add_argument("--where", nargs="+", action=Metadata, metavar="KEY=VALUE", help="metadata filter")
    distill.add_argument("--messages", action="store_true", help="write texts as a message of the user")
    distill.add_argument(
        "--token-budget", type=_count, metavar="TOKENS", help="most tokens of the lessons of a prompt"
    )
    distill.add_argument("--tokenizer", metavar="NAME", help="name or folder of the tokenizer that counts them")
    distill.set_defaults(check=_check_distill, parser=distill)


def _check_distill(given: argparse.Namespace) -> str | None:
    if (given.token_budget is None) != (given.tokenizer is None):
        return "--token-budget and --tokenizer go together"
    return "--column goes with --prompts" if given.column and not given.prompts else None
