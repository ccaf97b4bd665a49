"""The arguments of `grpo-ext evaluate`."""

from __future__ import annotations

import argparse

EPILOG = """\
examples:
  grpo-ext evaluate saves/grpo/eval_completions.jsonl --scorer math_equal
  grpo-ext evaluate saves/grpo --baseline saves/sft --data test.jsonl --scorer strict_match,flexible_match --samples 8
  grpo-ext evaluate saves/plain --two-by-two saves/with --experiences experiences.db --data test.jsonl --scorer gsm8k_number
"""


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _level(text: str) -> float:
    level = float(text)
    if not 0 < level < 1:
        raise ValueError(text)
    return level


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    root = argparse.ArgumentParser(
        prog="grpo-ext evaluate",
        description="pass@k, pass^k, avg@k and maj@k with intervals, of files of samples or of models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument(
        "target", help="a JSON Lines file with 'prompt' and 'completion', or a folder of a model or adapter"
    )
    root.add_argument("--baseline", metavar="TARGET", help="what the target is compared with, problem by problem")
    root.add_argument(
        "--two-by-two",
        nargs="+",
        metavar="TARGET",
        help="the table trained x answered with/without experiences. TARGET is then trained without. Give the model that "
        "was trained with, and --experiences; or three files: trained without and answered with, trained with and "
        "answered without, both with",
    )
    figures = root.add_argument_group("figures")
    figures.add_argument(
        "--scorer",
        default="",
        help="names of scorers or rewards, or file.py:function, by commas; by default the scores in the file",
    )
    figures.add_argument(
        "--k", type=_numbers, help="k of pass@k, pass^k and maj@k, by commas; 1, 2, 4, ... by default"
    )
    figures.add_argument("--correct-from", type=float, default=1.0, help="least score of a right sample (1.0)")
    figures.add_argument("--level", type=_level, default=0.95, help="confidence of the intervals (0.95)")
    figures.add_argument("--step", type=int, help="of files with several steps; the last by default")
    figures.add_argument("--json", metavar="PATH", help="write the figures there too")
    _add_model_arguments(root.add_argument_group("models only"))
    return root


def _add_model_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--data", help="problems: JSON Lines, or a JSON list of rows")
    group.add_argument("--prompt-column", default="prompt")
    group.add_argument("--solution-column", default="solution")
    group.add_argument("--limit", type=int, help="only the first problems")
    group.add_argument(
        "--output",
        default="evaluation",
        metavar="FOLDER",
        help="where the samples go (evaluation); a killed run goes on from there",
    )
    group.add_argument("--prompt-format", choices=("auto", "chat", "text"), default="auto")
    group.add_argument("--samples", type=int, default=1, help="per problem (1)")
    group.add_argument("--temperature", type=float, help="0 for one sample, 1.0 for several")
    group.add_argument("--top-p", type=float, default=1.0)
    group.add_argument("--top-k", type=int, default=0)
    group.add_argument("--max-new-tokens", type=int, default=512)
    group.add_argument("--batch-size", type=int, default=32)
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--experiences", metavar="LIBRARY", help="put experiences of this library into the prompts")
    group.add_argument("--inject", choices=("lessons", "episodes", "both"), default="both", help="which (both)")
    group.add_argument("--position", choices=("system", "user", "prefix"), default="system", help="where (system)")
