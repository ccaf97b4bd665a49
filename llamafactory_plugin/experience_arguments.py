"""The arguments of stage grpo that put an experience library into the run."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from llamafactory_plugin.argument_values import parse_mapping, split_list
from llamafactory_plugin.checks import check_number
from llamafactory_plugin.errors import UsageError

MAPPINGS = ("experience_config", "experience_where")
FLAGS = ("experience_read_only", "experience_same_prompt")
PLACEHOLDER = "{experiences}"
# Type, least, most, and what else to write.
NUMBERS: dict[str, tuple[type, float, float, str]] = {
    "experience_token_budget": (int, 1, math.inf, "it counts tokens"),
    "experience_episodes": (int, 1, math.inf, "it counts worked examples"),
    "experience_dropout": (float, 0.0, 1.0, "it is a share of the groups"),
    "experience_rescue_visits": (int, 1, math.inf, "1 rescues at the first visit"),
    "experience_rescue_rerolls": (int, 1, math.inf, "it counts completions"),
    "experience_rescue_reward_at_most": (float, -math.inf, math.inf, "it is a reward"),
    "experience_rescue_anneal": (float, 0.001, 1.0, "it is a share of the training"),
}


@dataclass
class ExperienceArguments:
    r"""Experiences in the prompts of `stage: grpo`, its rollouts in the library, and the rescue of dead groups."""

    experience_library: str | None = field(
        default=None,
        metadata={"help": "File of the experience library, made if it is missing; without it nothing here is read."},
    )
    experience_config: dict | str | None = field(
        default=None,
        metadata={
            "help": "Settings of a new library (max_library_size, min_advantage_threshold, ...), as a YAML mapping or "
            "inline JSON without spaces; an existing file keeps its own."
        },
    )
    experience_inject: Literal["lessons", "episodes", "both", "none"] = field(
        default="lessons",
        metadata={"help": "What goes into the prompts: lessons, episodes as worked examples, both, or none."},
    )
    experience_position: Literal["system", "user", "prefix"] = field(
        default="system",
        metadata={
            "help": "Where it goes: the system message, before the last user message, or an exchange of its own."
        },
    )
    experience_template: str | None = field(
        default=None,
        metadata={"help": "Text around it, with {experiences} in its place; default: the text alone."},
    )
    experience_token_budget: int | None = field(
        default=None,
        metadata={"help": "Most tokens of it per prompt, beside cutoff_len; default: no limit."},
    )
    experience_episodes: int = field(
        default=2,
        metadata={"help": "Most episodes per prompt or hint."},
    )
    experience_dropout: float = field(
        default=0.0,
        metadata={
            "help": "Share of training groups that get nothing: what the usefulness of records is measured against."
        },
    )
    experience_read_only: bool = field(
        default=False,
        metadata={"help": "Do not store the rollouts of training in the library."},
    )
    experience_same_prompt: bool = field(
        default=False,
        metadata={
            "help": "In training, also episodes of the same and near-same prompts, which may give the answer away."
        },
    )
    experience_where: dict | str | None = field(
        default=None,
        metadata={"help": "Metadata filter of the records, as a YAML mapping or inline JSON without spaces."},
    )
    experience_metadata_columns: list[str] | None = field(
        default=None,
        metadata={"help": "Dataset columns that stored episodes keep as metadata, for experience_where and quotas."},
    )
    experience_rescue: Literal["none", "on_policy_hinted", "off_policy"] = field(
        default="none",
        metadata={
            "help": "Sample completions of dead groups again with hints, and learn them with the hint (on_policy_hinted) or "
            "without it (off_policy)."
        },
    )
    experience_rescue_inject: Literal["lessons", "episodes", "both"] = field(
        default="both",
        metadata={"help": "What a hint is made of; its position, template, budget and filter are those above."},
    )
    experience_rescue_visits: int = field(
        default=2,
        metadata={"help": "Least number of visits in a row at which a prompt's rewards were equal and low."},
    )
    experience_rescue_rerolls: int = field(
        default=2,
        metadata={"help": "Completions of the group that are sampled again; below grpo_group_size."},
    )
    experience_rescue_reward_at_most: float = field(
        default=0.0,
        metadata={"help": "Highest total reward that counts as low."},
    )
    experience_rescue_anneal: float | None = field(
        default=None,
        metadata={"help": "Share of the training after which no hints are given any more; default: never."},
    )

    def parse_experience_arguments(self) -> None:
        """Turn texts into mappings and lists, in every stage.

        Raises:
            UsageError: for a value that is none.
        """
        for name in MAPPINGS:
            setattr(self, name, parse_mapping(name, getattr(self, name)))
        self.experience_metadata_columns = split_list(self.experience_metadata_columns)


def check_experience_values(arguments: Any) -> None:
    """Check the values above.

    Raises:
        UsageError: naming the argument, its rule and the value given.
    """
    for name, (kind, least, most, way_out) in NUMBERS.items():
        check_number(name, getattr(arguments, name), kind, least, most, way_out)
    for name in FLAGS:
        if not isinstance(getattr(arguments, name), bool):
            raise UsageError(f"{name} must be true or false, not {getattr(arguments, name)!r}.")
    template = arguments.experience_template
    if template is not None and (not isinstance(template, str) or template.count(PLACEHOLDER) != 1):
        raise UsageError(
            f"experience_template must be a text with {PLACEHOLDER} in it once, where the experiences go, not "
            f"{template!r}."
        )
