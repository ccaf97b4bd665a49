"""What a run shows of itself: the live view, the rules of health, the report, and the pictures of `plot_loss`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamafactory.extras.ploting import plot_loss

from llamafactory_plugin.board import live_stream
from trl_grpo_ext.cli.report import experience_tables
from trl_grpo_ext.report import try_report

PLOTTED = (
    "loss",
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "kl",
    "completions/mean_length",
    "completions/clipped_ratio",
    "entropy",
    "clip_ratio/region_mean",
    "eval_reward",
)
SECRET = ("token", "_key", "secret", "password", "authorization")
FIGURES = ("/avg@", "/pass@", "/maj@")


def watching_callbacks(run: Any) -> list[Any]:
    """The callbacks that show and check a run while it trains, and keep its settings for the report."""
    from trl_grpo_ext.health import HealthCallback
    from trl_grpo_ext.report import LiveCallback, ReportCallback

    arguments = run.finetuning_args
    found: list[Any] = [] if arguments.grpo_disable_live else [LiveCallback(stream=live_stream())]
    found += [] if arguments.grpo_disable_health else [HealthCallback()]
    if arguments.grpo_disable_report:
        return found
    return [*found, ReportCallback(at_end=False, settings={"LLaMA-Factory's keys": given_keys(run.explicit)})]


def given_keys(explicit: Mapping[str, Any]) -> dict[str, Any]:
    """What the user has written for a run, without what is secret at any depth."""
    return {name: "***" if str(name).lower().endswith(SECRET) else _given(value) for name, value in explicit.items()}


def _given(value: Any) -> Any:
    if isinstance(value, Mapping):
        return given_keys(value)
    return [_given(item) for item in value] if isinstance(value, list) else value


def is_plotted_too(name: str) -> bool:
    """Whether a metric beside `PLOTTED` is drawn: of each reward function, each evaluation set, independent ones."""
    if name.startswith("eval_"):
        is_reward = name.endswith("_reward") and name != "eval_reward"
        return is_reward or (any(kind in name for kind in FIGURES) and not name.endswith(("_low", "_high")))
    return name.startswith("rewards/") and name.endswith("/mean")


def draw_pictures(trainer: Any) -> None:
    """Write a PNG of each of these metrics that the run has logged, by LLaMA-Factory's `plot_loss`."""
    logged = {name for entry in trainer.state.log_history for name in entry}
    if len(trainer.reward_func_names) == 1:
        logged -= {f"rewards/{trainer.reward_func_names[0]}/mean"}  # it is the reward
    own = [name for name in PLOTTED if name in logged]
    plot_loss(trainer.args.output_dir, keys=[*own, *sorted(name for name in logged if is_plotted_too(name))])


def report_of(trainer: Any, run: Any) -> None:
    """Write the report of a run that has trained, on the main process, unless it is switched off."""
    if run.finetuning_args.grpo_disable_report or not trainer.is_world_process_zero():
        return
    library = run.finetuning_args.experience_library
    try_report(trainer.args.output_dir, tables=(lambda: experience_tables(library)) if library else None)
