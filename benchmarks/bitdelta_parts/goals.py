"""The goals of each part, what was measured, and files whose parts were measured at different times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# By part, then name: the bound, whether larger is better, and the key of the figure.
GOALS: dict[str, dict[str, tuple[float, bool, str]]] = {
    "speed": {
        "compress, share of bf16-add bandwidth": (0.25, True, "compress"),
        "compress with the whole ladder, share of bf16-add bandwidth": (0.25, True, "ladder"),
        "compress, times the published packing": (10, True, "packing"),
        "materialise, share of copy bandwidth": (0.15, True, "materialise"),
        "swap of 1-bit deltas, share of a cold full load": (0.25, False, "swap"),
        "swap of lossless deltas of density 0.05, share of a cold full load": (0.25, False, "sparse swap"),
        "lossless bits per weight at density 0.33": (2.4, False, "bits 0.33"),
        "lossless bits per weight at density 0.3": (1.3, False, "bits 0.3"),
        "lossless bits per weight at density 0.05": (0.6, False, "bits 0.05"),
    },
    "memory": {"peak memory above 2x the largest tensor, MB": (512, False, "memory")},
    "sft": {
        "SFT: bytes, share of BitDelta's": (1.05, False, "bytes"),
        "SFT: KL, share of BitDelta + distillation at equal bytes": (0.5, False, "kl"),
        "SFT: KL with distillation, share of BitDelta + distillation at equal bytes": (0.5, False, "distilled kl"),
    },
    "grpo": {
        "GRPO: bytes, share of BitDelta's": (1.05, False, "bytes"),
        "GRPO: KL, share of BitDelta + distillation at equal bytes": (0.5, False, "kl"),
        "GRPO: KL with distillation, share of BitDelta + distillation at equal bytes": (0.5, False, "distilled kl"),
        "GRPO: reward retained by the ladder": (0.99, True, "reward"),
        "GRPO at a small rate, density <= 0.3, every bit kept: bits per weight": (1.3, False, "sparse bits"),
        "GRPO: reward retained by the lossless code": (1.0, True, "exact reward"),
    },
}
PARTS = tuple(GOALS)


def judge(part: str, figures: Mapping[str, float]) -> list[dict[str, Any]]:
    """Compare the figures of a part with its goals; what was not measured is not met."""
    goals = []
    for name, (limit, larger, key) in GOALS[part].items():
        value = figures.get(key)
        met = value is not None and (value >= limit if larger else value <= limit)
        shown = None if value is None else round(value, 3)
        goals.append({"part": part, "name": name, "goal": f"{'>=' if larger else '<='} {limit}"})
        goals[-1] |= {"value": shown, "met": met}
    return goals


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with the parts of `new`, and those of `old` that were not measured again."""
    again = set(new["environment"])
    kept = {name: [item for item in old[name] if item["part"] not in again] for name in ("results", "goals")}
    rows = {name: sorted(kept[name] + new[name], key=lambda item: PARTS.index(item["part"])) for name in kept}
    environments = dict(old["environment"]) | dict(new["environment"])
    return {
        "name": new["name"],
        "environment": {part: environments[part] for part in PARTS if part in environments},
    } | rows


def line(goal: Mapping[str, Any]) -> str:
    """Return a goal as text."""
    verdict = "met" if goal["met"] else "UNMET" if goal["value"] is not None else "UNMET (not measured)"
    return f"{goal['name']}: {goal['value']} (goal {goal['goal']}): {verdict}"
