"""The arguments of stage grpo that say what is measured, watched and reported beside the reward."""

from dataclasses import dataclass, field

from llamafactory_plugin.argument_values import split_list
from llamafactory_plugin.checks import check_number
from llamafactory_plugin.errors import UsageError

FLAGS = ("grpo_disable_health", "grpo_disable_live", "grpo_disable_report")


@dataclass
class EvaluationArguments:
    r"""Metrics of held-out rows that are not the reward, and what a run of `stage: grpo` tells about itself."""

    grpo_eval_metrics: list[str] | None = field(
        default=None,
        metadata={
            "help": "Scorers of the held-out rows, independent of the reward: strict_match, flexible_match, a built-in "
            "reward, or path/to/file.py:function, separated by commas or as a YAML list. Measured at every evaluation, "
            "and by do_predict; the best checkpoint is picked by the first."
        },
    )
    grpo_eval_samples: int | None = field(
        default=None,
        metadata={
            "help": "Completions per held-out row that grpo_eval_metrics are measured on, n of avg@n and pass@k; default: "
            "grpo_group_size, and 1 with grpo_eval_temperature 0."
        },
    )
    grpo_disable_health: bool = field(
        default=False,
        metadata={"help": "Do not check the rules of health (docs/report.md) while the run trains."},
    )
    grpo_disable_live: bool = field(
        default=False,
        metadata={"help": "Keep the progress bar of transformers in place of the live view."},
    )
    grpo_disable_report: bool = field(
        default=False,
        metadata={"help": "Do not write report.html at the end of the training (it needs plotly)."},
    )

    def parse_evaluation_arguments(self) -> None:
        """Turn a text into a list, in every stage."""
        self.grpo_eval_metrics = split_list(self.grpo_eval_metrics)


def samples_per_row(arguments: EvaluationArguments, temperature: float, group_size: int) -> int:
    """How many completions per held-out row `grpo_eval_metrics` are measured on: as many as in a group, one if greedy."""
    return arguments.grpo_eval_samples or (group_size if temperature else 1)


def best_metric(arguments: EvaluationArguments, temperature: float, group_size: int) -> str | None:
    """The name under which the first of `grpo_eval_metrics` is logged; None without metrics."""
    if not arguments.grpo_eval_metrics:
        return None
    name = arguments.grpo_eval_metrics[0].rsplit(":", 1)[-1]
    return f"eval_{name}/avg@{samples_per_row(arguments, temperature, group_size)}"


def check_evaluation_values(arguments: EvaluationArguments) -> None:
    """Check the values above.

    Raises:
        UsageError: naming the argument, its rule and the value given.
    """
    check_number("grpo_eval_samples", arguments.grpo_eval_samples, int, 1, way_out="it counts completions per row")
    for name in FLAGS:
        if not isinstance(getattr(arguments, name), bool):
            raise UsageError(f"{name} must be true or false, not {getattr(arguments, name)!r}.")
