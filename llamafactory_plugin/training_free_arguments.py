"""The arguments of stage grpo that learn lessons instead of weights."""

from dataclasses import dataclass, field
from typing import Any

from llamafactory_plugin.argument_values import parse_mapping
from llamafactory_plugin.errors import UsageError


@dataclass
class TrainingFreeArguments:
    r"""Training-Free GRPO (arXiv 2510.08191) in `stage: grpo`."""

    grpo_training_free: bool = field(
        default=False,
        metadata={"help": "Learn a library of lessons for the prompt instead of weights; nothing is trained."},
    )
    grpo_training_free_config: dict | str | None = field(
        default=None,
        metadata={
            "help": "Its settings that are no key of their own (batch_size, lesson_dropout, ..., gate, budget, reflector), "
            "as a YAML mapping or inline JSON without spaces."
        },
    )

    def parse_training_free_arguments(self) -> None:
        """Turn a text into a mapping, in every stage.

        Raises:
            UsageError: for a value that is none.
        """
        name = "grpo_training_free_config"
        setattr(self, name, parse_mapping(name, getattr(self, name)))


def check_training_free_values(arguments: Any) -> None:
    """Check the values above.

    Raises:
        UsageError: naming the argument.
    """
    if not isinstance(arguments.grpo_training_free, bool):
        raise UsageError(f"grpo_training_free must be true or false, not {arguments.grpo_training_free!r}.")
    if arguments.grpo_training_free_config and not arguments.grpo_training_free:
        raise UsageError(
            "grpo_training_free_config: it is read only with grpo_training_free; set that to true, or remove it."
        )
