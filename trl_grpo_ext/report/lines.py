"""What a step says in one line, and one group of completions as text. Pure functions, standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FIRST_STEP = (
    "A loss near 0 is normal: advantages of a group sum to 0, and at the first update the policy is the one that sampled. "
    "Watch the reward."
)


@dataclass(frozen=True)
class Completion:
    """One completion of a group.

    Args:
        text: of the completion.
        rewards: by reward function; None where one gave none.
        advantage: as trained on.
    """

    text: str
    rewards: Mapping[str, float | None]
    advantage: float


def reward_parts(logs: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean of each reward function."""
    return {
        name.split("/", 1)[1].removesuffix("/mean"): float(value)
        for name, value in logs.items()
        if name.startswith("rewards/") and name.endswith("/mean")
    }


def duration(seconds: float) -> str:
    """Return a duration as `1:02:03` or `2:03`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def figures(logs: Mapping[str, Any], tokens_per_second: float | None, seconds_left: float | None) -> dict[str, str]:
    """Return what is shown of a log entry, name -> text, in the order in which it is read; what is not there is left out."""
    found: dict[str, str] = {}

    def show(name: str, key: str, form: str) -> None:
        value = logs.get(key)
        if isinstance(value, int | float) and not math.isnan(value):
            found[name] = format(value, form)

    show("reward", "reward", ".3f")
    parts = reward_parts(logs)
    if len(parts) > 1:
        found |= {name: f"{value:.3f}" for name, value in parts.items()}
    show("dead groups", "frac_reward_zero_std", ".0%")
    show("length", "completions/mean_length", ".0f")
    show("cut off", "completions/clipped_ratio", ".0%")
    show("kl", "kl", ".4f")
    show("entropy", "entropy", ".3f")
    show("loss", "loss", ".4f")
    if tokens_per_second is not None:
        found["tokens/s"] = f"{tokens_per_second:,.0f}"
    if seconds_left is not None:
        found["left"] = duration(seconds_left)
    return found


def status_line(step: int, steps: int, shown: Mapping[str, str]) -> str:
    """Return one plain line, such as `step 3/100 | reward 0.250 | dead groups 25% | left 1:10`."""
    return " | ".join([f"step {step}/{steps}", *(f"{name} {text}" for name, text in shown.items())])


def sorted_group(completions: Sequence[Completion]) -> list[Completion]:
    """Return the completions of a group, the largest advantage first."""
    return sorted(completions, key=lambda item: -item.advantage)


def one_line(text: str, width: int) -> str:
    """Return a text on one line of at most `width` characters, without control characters."""
    line = "".join(character if character.isprintable() else " " for character in " ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"


def group_lines(step: int, prompt: str, group: Sequence[Completion], width: int = 100) -> list[str]:
    """Return one group as plain lines: the prompt, and each completion with its advantage and rewards."""
    lines = [f"step {step}, one group: {one_line(prompt, width)}"]
    for item in sorted_group(group):
        rewards = " ".join(f"{name} {number(value)}" for name, value in item.rewards.items())
        lines.append(f"  {item.advantage:+.2f}  {rewards}  {one_line(item.text, width)}")
    return lines


def number(value: float | None) -> str:
    """Return a reward as text; `none` where there is none."""
    return "none" if value is None or math.isnan(value) else f"{value:.3g}"
