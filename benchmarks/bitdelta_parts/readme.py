"""The README's tables, made of the written file alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- benchmarks/bitdelta.py -->", "<!-- end of benchmarks/bitdelta.py -->"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _number(row: Mapping[str, Any] | None, key: str) -> str:
    value = None if row is None else row.get(key)
    return "" if value is None else f"{value:g}"


def quality_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a row per arm: bits of everything that the delta holds, KL divergence, and the reward."""
    found = {(row["part"], row["arm"].split(": ")[1]): row for row in rows if "KL" in row}
    header = ["kept of the fine-tuned model", "SFT: bits per weight", "KL", "GRPO: bits per weight", "KL", "reward"]
    lines = []
    for arm in dict.fromkeys(arm for _, arm in found):
        sft, grpo = found.get(("sft", arm)), found.get(("grpo", arm))
        cells = [_number(sft, "all_bits"), _number(sft, "KL"), _number(grpo, "all_bits"), _number(grpo, "KL")]
        lines.append([arm, *cells, _number(grpo, "reward")])
    return _table(header, lines)


def goal_table(goals: Sequence[Mapping[str, Any]]) -> str:
    """Return a row per goal."""
    lines = []
    for goal in goals:
        measured = "" if goal["value"] is None else f"{goal['value']:g}"
        verdict = "met" if goal["met"] else "**unmet**" if measured else "**not measured**"
        lines.append([goal["name"], goal["goal"], measured, verdict])
    return _table(["goal", "bound", "measured", ""], lines)


def _said(document: Mapping[str, Any]) -> str:
    parts = []
    for part, where in document["environment"].items():
        load = " to ".join(f"{value:g}" for value in where["load_before_and_after"])
        parts.append(f"{part}: torch {where['torch']}, transformers {where['transformers']}, load {load}")
    grpo = [row for row in document["results"] if row["part"] == "grpo"]
    density = "".join(f" The GRPO delta has density {row['density']:g}." for row in grpo if "lossless" in row["arm"])
    small = [row for row in grpo if "every_bit" in row]
    density += "".join(
        f" At the small rate it has density {row['density']:g}, and {row['all_bits']:g} bits per weight."
        for row in small
    )
    return (
        f"CPU, one thread, CPU seconds, wall-clock seconds of swaps and loads; {'; '.join(parts)}.{density} KL is that of the fine-tuned model from what is kept, "
        "in nats per token on held-out text; the reward is greedy accuracy on held-out problems. Embeddings are exact in "
        "every arm, and count in the bits."
    )


def tables(document: Mapping[str, Any]) -> str:
    """Return everything between the README's marks."""
    return "\n\n".join([quality_table(document["results"]), goal_table(document["goals"]), _said(document)])


def rewrite(path: Path, document: Mapping[str, Any]) -> None:
    """Replace what stands between the marks of a file.

    Raises:
        ValueError: it has no such marks.
    """
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path} has no lines {BEGIN} and {END}.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{tables(document)}\n{END}{after}", encoding="utf-8")
