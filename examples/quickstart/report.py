"""The quickstart's promise, its table and its picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

START_RANGE = (0.20, 0.45)
LEAST_END = 0.55
LEAST_GAIN = 2.0

Accuracy = Mapping[str, float]


def verdict(before: Accuracy, after: Accuracy, is_control: bool = False) -> str | None:
    """What of the promise did not hold, in one sentence, or None. All figures are held-out greedy accuracies."""
    start, end = before["greedy"], after["greedy"]
    low, high = START_RANGE
    if not low <= start <= high:
        return f"SFT left held-out greedy accuracy at {start:.3f}, outside of {low} to {high}."
    if is_control:
        return (
            f"Shuffled rewards raised held-out greedy accuracy from {start:.3f} to {end:.3f}." if end > start else None
        )
    if end < LEAST_END or end < LEAST_GAIN * start:
        least = max(LEAST_END, LEAST_GAIN * start)
        return (
            f"GRPO took held-out greedy accuracy from {start:.3f} to {end:.3f} only; at least {least:.3f} is promised."
        )
    return None


def table(report: Mapping[str, Any]) -> str:
    """Accuracies, steps and seconds as text."""
    before, after, steps = report["before"], report["after"], report["steps"]
    lines = [f"{'on 1,000 held-out problems':<28}{'before GRPO':>12}{'after':>8}"]
    lines += [f"{mode + ' accuracy':<28}{before[mode]:>12.3f}{after[mode]:>8.3f}" for mode in before]
    lines += ["", f"{'phase':<28}{'steps':>12}{'seconds':>8}"]
    lines += [f"{name:<28}{steps.get(name, ''):>12}{taken:>8.0f}" for name, taken in report["seconds"].items()]
    lines += [f"{'total':<40}{sum(report['seconds'].values()):>8.0f}"]
    return "\n".join(lines)


def plot(path: Path, rewards: Sequence[tuple[int, float]], report: Mapping[str, Any]) -> None:
    """Mean reward over the steps, and held-out accuracy before and after, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=[3, 2])
    left.plot([step for step, _ in rewards], [reward for _, reward in rewards])
    left.set(xlabel="GRPO step", ylabel="mean reward of the rollouts", title=report["title"], ylim=(0, None))
    modes = list(report["before"])
    for offset, when in ((-0.2, "before"), (0.2, "after")):
        bars = right.bar([i + offset for i in range(len(modes))], [report[when][m] for m in modes], 0.4, label=when)
        right.bar_label(bars, fmt="%.2f")
    right.set(xticks=range(len(modes)), xticklabels=modes, ylim=(0, 1), title="accuracy, 1,000 held-out problems")
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
