"""The `grpo_*`, `reward_*`, `experience_*` and `bitdelta*` arguments: one dataclass, mixed into LLaMA-Factory's `FinetuningArguments`."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from llamafactory_plugin.argument_values import parse_mapping
from llamafactory_plugin.bitdelta_arguments import BitDeltaArguments
from llamafactory_plugin.checks import check_choice, check_number
from llamafactory_plugin.errors import UsageError
from llamafactory_plugin.evaluation_arguments import EvaluationArguments, check_evaluation_values
from llamafactory_plugin.experience_arguments import ExperienceArguments, check_experience_values
from llamafactory_plugin.presets import needs_reference
from llamafactory_plugin.reward_arguments import RewardArguments, check_reward_values
from llamafactory_plugin.training_free_arguments import TrainingFreeArguments, check_training_free_values
from trl_grpo_ext.presets import PRESETS

OWN_PREFIXES = ("grpo_", "experience_")
OWN_NAMES = ("reward_funcs", "reward_weights")


def is_own_name(name: str) -> bool:
    """Whether a key belongs to stage grpo and to no other stage."""
    return name.startswith(OWN_PREFIXES) or name in OWN_NAMES


@dataclass
class GRPOArguments(
    RewardArguments, ExperienceArguments, TrainingFreeArguments, EvaluationArguments, BitDeltaArguments
):
    r"""Arguments of `stage: grpo` (Group Relative Policy Optimization, arXiv 2402.03300)."""

    grpo_group_size: int = field(
        default=8,
        metadata={"help": "Completions sampled per prompt, G in the paper; at least 2 (TRL: num_generations)."},
    )
    grpo_beta: float = field(
        default=0.0,
        metadata={"help": "Coefficient of the KL penalty against the reference model; 0 loads none (TRL: beta)."},
    )
    grpo_clip_range: float = field(
        default=0.2,
        metadata={"help": "Clip range of the probability ratio: [1 - range, 1 + range] (TRL: epsilon)."},
    )
    grpo_clip_range_high: float | None = field(
        default=None,
        metadata={"help": "Upper clip range when it differs from the lower one (TRL: epsilon_high)."},
    )
    grpo_scale_rewards: Literal["group", "batch", "none"] = field(
        default="group",
        metadata={"help": "Divide advantages by the std of their group, of the batch, or by nothing."},
    )
    grpo_normalize_advantages: bool | None = field(
        default=None,
        metadata={"help": "Alias: true is grpo_scale_rewards group, false is grpo_scale_rewards none."},
    )
    grpo_preset: Literal[tuple(PRESETS)] | None = field(  # type: ignore[valid-type]
        default=None,
        metadata={"help": "Loss settings of a paper by name (docs/losses.md); a key that is set beside it wins."},
    )
    grpo_loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "token_mean"] = field(
        default="dapo",
        metadata={"help": "How token losses are averaged (TRL: loss_type; token_mean: over all tokens of a step)."},
    )
    grpo_num_iterations: int = field(
        default=1,
        metadata={"help": "Optimizer passes over each generation batch, mu in the paper (TRL: num_iterations)."},
    )
    grpo_max_completion_length: int = field(
        default=512,
        metadata={"help": "Longest completion in tokens; prompts longer than cutoff_len are dropped, never cut."},
    )
    grpo_temperature: float | None = field(
        default=None,
        metadata={"help": "Temperature of training rollouts; default: temperature if set, else 1.0."},
    )
    grpo_eval_temperature: float | None = field(
        default=None,
        metadata={"help": "Temperature of evaluation rollouts, 0 is greedy; default: that of training."},
    )
    grpo_use_vllm: bool = field(
        default=False,
        metadata={"help": "Generate with vLLM through TRL (TRL: use_vllm; its other vllm_* keys in grpo_config)."},
    )
    grpo_config: dict | str | None = field(
        default=None,
        metadata={
            "help": "Further options of ExtendedGRPOConfig (docs/losses.md) and of TRL's GRPOConfig, as a YAML mapping or "
            "inline JSON without spaces."
        },
    )

    def __post_init__(self) -> None:
        check_choice("stage", self.stage, stage_choices(type(self)))  # type: ignore[attr-defined]
        self.parse_reward_arguments()
        self.parse_experience_arguments()
        self.parse_evaluation_arguments()
        self.parse_training_free_arguments()
        self.check_bitdelta_values()
        self.grpo_config = parse_mapping("grpo_config", self.grpo_config)
        super().__post_init__()  # type: ignore[misc]
        if self.stage == "grpo":  # type: ignore[attr-defined]
            check_values(self)
            self.use_ref_model = needs_reference(self)


def extend(base: type) -> type:
    """A `FinetuningArguments` that also has the arguments above and the stage `grpo`.

    It carries the module and name of `base`, so that instances pickle by reference once it stands in its place.
    """
    stage_field = next(item for item in dataclasses.fields(base) if item.name == "stage")
    stage_type = Literal[(*get_args(get_type_hints(base)["stage"]), "grpo")]  # type: ignore[valid-type]
    stage = ("stage", stage_type, field(default=stage_field.default, metadata=dict(stage_field.metadata)))
    extended = dataclasses.make_dataclass(base.__name__, [stage], bases=(GRPOArguments, base))
    extended.__doc__, extended.__module__, extended.__qualname__ = base.__doc__, base.__module__, base.__qualname__
    return extended


def stage_choices(arguments_class: type) -> tuple[str, ...]:
    """The stages the argument class accepts."""
    return get_args(get_type_hints(arguments_class)["stage"])


def check_values(arguments: Any) -> None:
    """Check every value of a run of stage grpo.

    Raises:
        UsageError: naming the argument, its rule and the value given.
    """
    for item in dataclasses.fields(GRPOArguments):
        choices = _choices(item.type)
        value = getattr(arguments, item.name)
        if value is None and item.default is not None:
            raise UsageError(
                f"{item.name} has no value; write one, or remove the key for its default, {item.default}."
            )
        if choices and value is not None:
            check_choice(item.name, value, choices)
    check_number(
        "grpo_group_size",
        arguments.grpo_group_size,
        int,
        2,
        way_out="a group needs at least 2 completions to be compared",
    )
    check_number(
        "grpo_beta",
        arguments.grpo_beta,
        float,
        0.0,
        way_out="a negative KL coefficient would push away from the reference",
    )
    check_number(
        "grpo_clip_range",
        arguments.grpo_clip_range,
        float,
        0.0,
        way_out="the ratio is clipped to [1 - range, 1 + range]",
    )
    check_number(
        "grpo_clip_range_high", arguments.grpo_clip_range_high, float, 0.0, way_out="the ratio is clipped at 1 + range"
    )
    check_number(
        "grpo_num_iterations", arguments.grpo_num_iterations, int, 1, way_out="1 trains on each completion once"
    )
    check_number(
        "grpo_max_completion_length", arguments.grpo_max_completion_length, int, 1, way_out="it counts tokens"
    )
    check_number(
        "grpo_temperature", arguments.grpo_temperature, float, 0.0, way_out="1.0 samples from the policy itself"
    )
    check_number("grpo_eval_temperature", arguments.grpo_eval_temperature, float, 0.0, way_out="0 is greedy")
    if arguments.grpo_temperature == 0:
        raise UsageError("grpo_temperature must be above 0: greedy rollouts are all equal; 1.0 is the default.")
    check_reward_values(arguments)
    check_experience_values(arguments)
    check_evaluation_values(arguments)
    check_training_free_values(arguments)
    for name in ("grpo_use_vllm", "grpo_normalize_advantages"):
        if not isinstance(getattr(arguments, name), (bool, type(None))):
            raise UsageError(f"{name} must be true or false, not {getattr(arguments, name)!r}.")


def _choices(annotation: Any) -> tuple[Any, ...]:
    options = [annotation, *get_args(annotation)]
    return next((get_args(option) for option in options if getattr(option, "__origin__", None) is Literal), ())
