"""The curves of a run, by plotly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trl_grpo_ext.report.groups import spaced

Series = tuple[list[int], list[float]]

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
MOST_POINTS, MOST_SERIES = 1500, 8

# Title -> names, or beginnings of names that end with "*".
PANELS: dict[str, tuple[str, ...]] = {
    "Reward": ("reward", "rewards/*/mean", "eval_reward"),
    "Spread of the reward": ("reward_std", "rewards/*/std"),
    "Groups without spread": ("frac_reward_zero_std", "groups/dead_share", "groups/filtered_share"),
    "Length in tokens": ("completions/mean_length", "completions/max_length", "completions/mean_terminated_length"),
    "Share of completions cut off": ("completions/clipped_ratio",),
    "KL divergence": ("kl",),
    "Entropy": ("entropy",),
    "Share of tokens clipped": ("clip_ratio/region_mean", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio"),
    "Loss": ("loss",),
    "Gradient norm": ("grad_norm",),
    "Learning rate": ("learning_rate",),
    "Speed: seconds a step": ("step_time", "health/reward_seconds"),
    "Experience: reward with and without": ("experience/reward_with", "experience/reward_without"),
    "Experience: share of prompts with it": ("experience/injected_share",),
    "Experience: records": ("experience/size",),
}


def series(history: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Return steps and values by name; what is no finite number is left out."""
    found: dict[str, Series] = {}
    for entry in history:
        for name, value in entry.items():
            if (
                name == "step"
                or isinstance(value, bool)
                or not isinstance(value, int | float)
                or not math.isfinite(value)
            ):
                continue
            steps, values = found.setdefault(name, ([], []))
            steps.append(int(entry["step"]))
            values.append(float(value))
    return found


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that a panel shows, in the order of its patterns; `*` stands for any text."""
    found: list[str] = []
    for pattern in patterns:
        start, star, end = pattern.partition("*")
        fits = [n for n in names if (n.startswith(start) and n.endswith(end) and len(n) > len(start + end)) if star]
        found += [n for n in (fits if star else [pattern] * (pattern in names)) if n not in found]
    return found[:MOST_SERIES]


def intervals(names: Sequence[str]) -> list[str]:
    """Return the metrics that come with an interval."""
    return [name for name in names if {f"{name}_low", f"{name}_high"} <= set(names)]


def shown_figures(names: Sequence[str]) -> list[str]:
    """Return which figures of one scorer are drawn: its mean, and of pass@k and maj@k those of the largest k.

    With their intervals more of them could not be told apart.
    """
    found = [name for name in names if name.rsplit("/", 1)[-1].startswith("avg")]
    for kind in ("/pass@", "/maj@"):
        of_kind = [name for name in names if kind in name and name.rsplit("@", 1)[-1].isdigit()]
        found += [max(of_kind, key=lambda name: int(name.rsplit("@", 1)[-1]))] if of_kind else []
    return found or list(names)[:MOST_SERIES]


def _thinned(item: Series) -> Series:
    places = spaced(range(len(item[0])), MOST_POINTS)
    return [item[0][place] for place in places], [item[1][place] for place in places]


def _line(name: str, item: Series, colour: str, control: bool) -> Any:
    from plotly import graph_objects

    steps, values = _thinned(item)
    label = f"{name} (control)" if control else name
    style = {"color": colour, "width": 1.5, "dash": "dot" if control else "solid"}
    mode = "lines+markers" if len(steps) < 20 else "lines"
    return graph_objects.Scatter(x=steps, y=values, name=label, mode=mode, line=style)


def _band(name: str, found: Mapping[str, Series], colour: str) -> Any:
    """The interval of a metric, as the area between its ends."""
    from plotly import graph_objects

    (steps, low), (_, high) = found[f"{name}_low"], found[f"{name}_high"]
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return graph_objects.Scatter(
        x=[*steps, *reversed(steps)],
        y=[*high, *reversed(low)],
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.15)",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def figure(
    names: Sequence[str], run: Mapping[str, Series], control: Mapping[str, Series], with_bands: bool = False
) -> Any:
    """Return one panel: a line per name, dotted the control run's, and the intervals as areas."""
    from plotly import graph_objects

    drawn = graph_objects.Figure()
    for name, colour in zip(names, COLOURS, strict=False):
        if with_bands:
            drawn.add_trace(_band(name, run, colour))
        drawn.add_trace(_line(name, run[name], colour, control=False))
        if name in control:
            drawn.add_trace(_line(name, control[name], colour, control=True))
    drawn.update_layout(
        template="plotly_white",
        height=300,
        margin={"l": 48, "r": 8, "t": 8, "b": 36},
        legend={"orientation": "h", "y": -0.2, "font": {"size": 11}},
        hovermode="x unified",
        xaxis={"title": {"text": "step", "standoff": 4}},
    )
    return drawn


def panel_names(run: Mapping[str, Series]) -> dict[str, list[str]]:
    """Return title -> metrics of every panel that a run has something for: the reward, what is independent of it, the rest."""
    names, found = list(run), {}
    metrics = intervals(names)
    for scorer in dict.fromkeys(name.split("/")[0] for name in metrics):
        own = shown_figures([name for name in metrics if name.split("/")[0] == scorer])
        found[f"Independent metric: {scorer.removeprefix('eval_')}, with 95 % interval"] = own
    found |= {title: matching(names, patterns) for title, patterns in PANELS.items()}
    return {title: found[title] for title in sorted(found, key=lambda title: title != "Reward") if found[title]}


def panels(history: Sequence[Mapping[str, Any]], control: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return title -> figure of everything that the run has logged.

    Args:
        history: log entries of the run.
        control: of the control run that is drawn beside it; none by default.
    """
    run, other = series(history), series(control)
    with_bands = set(intervals(list(run)))
    return {
        title: figure(names, run, other, with_bands=set(names) <= with_bands)
        for title, names in panel_names(run).items()
    }


def script() -> str:
    """Return plotly's own JavaScript, to stand in the page."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def drawing(drawn: Any, name: str) -> str:
    """Return a figure as HTML that needs `script()` in its page."""
    config = {"displaylogo": False, "responsive": True, "displayModeBar": False}
    return str(drawn.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=config))
