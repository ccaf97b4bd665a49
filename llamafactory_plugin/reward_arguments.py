"""The arguments of stage grpo that say what is rewarded, and how reward functions are run."""

from dataclasses import dataclass, field
from typing import Any, Literal

from llamafactory_plugin.argument_values import parse_error_policy, parse_mapping, parse_numbers, split_list
from llamafactory_plugin.checks import check_number
from llamafactory_plugin.errors import UsageError

MAPPINGS = ("grpo_reward_composition", "grpo_collapse_guard")
FLAGS = ("grpo_reward_in_process", "grpo_reward_network")


@dataclass
class RewardArguments:
    r"""What is rewarded in `stage: grpo`; LLaMA-Factory's own `reward_model` is read too."""

    reward_funcs: list[str] | None = field(
        default=None,
        metadata={"help": "Built-in names or path/to/file.py:function, separated by commas or as a YAML list."},
    )
    reward_weights: list[str] | None = field(
        default=None,
        metadata={
            "help": "One weight per reward, separated by commas or as a YAML list: reward_funcs, then the composition, "
            "then reward_model; default: all 1."
        },
    )
    grpo_extra_columns: list[str] | None = field(
        default=None,
        metadata={"help": "Dataset columns that are handed to the reward functions, beside the response."},
    )
    grpo_reward_composition: dict | str | None = field(
        default=None,
        metadata={
            "help": "Several rewards as one, as a YAML mapping (rewards with weight, schedule, normalisation, missing; "
            "gates; total; name) or inline JSON without spaces."
        },
    )
    grpo_collapse_guard: dict | str | None = field(
        default=None,
        metadata={
            "help": "Labelled canary rows that watch a label-free reward, as a YAML mapping (truth, canary_dataset or "
            "canary_column, policy, fallback, window, ...) or inline JSON without spaces."
        },
    )
    grpo_reward_timeout: float = field(
        default=60.0,
        metadata={
            "help": "Seconds for one call of a reward function of a file or package; its worker is killed then."
        },
    )
    grpo_reward_errors: str = field(
        default="raise",
        metadata={
            "help": "What a reward that fails gives: raise stops the run, skip gives these rows no reward, a number is "
            "given instead. For functions of files and packages, and for reward_model."
        },
    )
    grpo_reward_in_process: bool = field(
        default=False,
        metadata={"help": "Run such functions in the trainer: for the GPU or the trainer's state; no deadline then."},
    )
    grpo_reward_network: bool = field(
        default=False,
        metadata={"help": "Let the worker processes of such functions reach the network; without it they have none."},
    )
    grpo_reward_control: Literal["none", "random", "shuffled"] = field(
        default="none",
        metadata={
            "help": "Control experiment: each reward drawn at random from the true ones of its step, or these shuffled."
        },
    )

    def parse_reward_arguments(self) -> None:
        """Turn texts into lists, mappings and numbers, in every stage.

        Raises:
            UsageError: for a value that is none of these.
        """
        self.reward_funcs = split_list(self.reward_funcs)
        self.reward_weights = parse_numbers("reward_weights", split_list(self.reward_weights))  # type: ignore[assignment]
        self.grpo_extra_columns = split_list(self.grpo_extra_columns)
        for name in MAPPINGS:
            setattr(self, name, parse_mapping(name, getattr(self, name)))
        policy: Any = parse_error_policy("grpo_reward_errors", self.grpo_reward_errors)
        self.grpo_reward_errors = policy


def check_reward_values(arguments: Any) -> None:
    """Check the values above.

    Raises:
        UsageError: naming the argument, its rule and the value given.
    """
    check_number("grpo_reward_timeout", arguments.grpo_reward_timeout, float, 0.001, way_out="it counts seconds")
    for name in FLAGS:
        if not isinstance(getattr(arguments, name), bool):
            raise UsageError(f"{name} must be true or false, not {getattr(arguments, name)!r}.")
