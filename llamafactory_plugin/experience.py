"""`experience_*`: what is refused before the model is loaded, and the callbacks that bring the library into the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from llamafactory_plugin.config_mapping import in_yaml_words
from llamafactory_plugin.errors import UsageError
from llamafactory_plugin.experience_arguments import ExperienceArguments
from llamafactory_plugin.experience_library import check_library
from trl_grpo_ext.experience import ExperienceLibrary

OWN_KEYS = tuple(item.name for item in dataclasses.fields(ExperienceArguments))
RESCUE_KEYS = tuple(name for name in OWN_KEYS if name.startswith("experience_rescue_"))
# Keys that say which episodes are taken, or how many.
EPISODE_KEYS = ("experience_episodes", "experience_same_prompt")
# Keys that say what is written into a prompt, and how.
TEXT_KEYS = ("experience_position", "experience_template", "experience_token_budget", "experience_where")


def _takes_episodes(arguments: Any) -> bool:
    rescued = arguments.experience_rescue != "none" and arguments.experience_rescue_inject != "lessons"
    return arguments.experience_inject in ("episodes", "both") or rescued


def _writes_text(arguments: Any) -> bool:
    return arguments.experience_inject != "none" or arguments.experience_rescue != "none"


# Keys, the condition under which they are read, and what makes them so.
READ_WHEN: list[tuple[tuple[str, ...], Callable[[Any], bool], str]] = [
    (
        EPISODE_KEYS,
        _takes_episodes,
        "no episodes are injected; set experience_inject to episodes or both, or remove it",
    ),
    (TEXT_KEYS, _writes_text, "nothing is injected; set experience_inject or experience_rescue, or remove it"),
    (
        ("experience_dropout",),
        lambda arguments: arguments.experience_inject != "none",
        "nothing is injected that could be left out; set experience_inject, or remove it",
    ),
    (
        ("experience_metadata_columns",),
        lambda arguments: not arguments.experience_read_only,
        "with experience_read_only no episode is stored; remove one of them",
    ),
    (RESCUE_KEYS, lambda arguments: arguments.experience_rescue != "none", "set experience_rescue, or remove it"),
]


def check_experience(run: Any, config: Any) -> None:
    """Refuse what can't work, without a trace: no file is made, and none is changed.

    Args:
        run: the run.
        config: its `ExtendedGRPOConfig`.

    Raises:
        UsageError: a key that would not be read, a combination that does not work, a file or folder that can't be used,
            settings that are not those of the file.
    """
    arguments = run.finetuning_args
    learns_plain = config.loss_context == "plain" or arguments.experience_rescue == "off_policy"
    if config.off_policy_correction != "clip" and not learns_plain:
        raise UsageError(
            "grpo_config.off_policy_correction: every completion is learned with the prompt it was sampled from; set "
            "grpo_config.loss_context: plain or experience_rescue: off_policy, or remove it."
        )
    if arguments.experience_library is None:
        _refuse_without_library(run, config)
        return
    for keys, is_read, way_out in READ_WHEN:
        unread = [] if is_read(arguments) else _changed(run, keys)
        if unread:
            raise UsageError(f"{unread[0]}: {way_out}.")
    if not _writes_text(arguments) and arguments.experience_read_only:
        raise UsageError("experience_read_only: nothing is injected either; remove it, or experience_library.")
    if "self_certainty" in (arguments.reward_funcs or []) and not arguments.experience_read_only:
        raise UsageError(
            "experience_library with self_certainty: the trainer computes that reward after the episodes are stored; set "
            "experience_read_only: true, or remove one of them."
        )
    _check_plain_loss(config, arguments)
    check_library(run)
    for callback in experience_callbacks(run, ExperienceLibrary()):
        _check_rescue(callback, config)


def _changed(run: Any, names: tuple[str, ...]) -> list[str]:
    """Those of the keys that the user has set to something."""
    given = [name for name in names if name in run.explicit and not run.is_default(name)]
    return [name for name in given if getattr(run.finetuning_args, name) not in (None, {})]


def _refuse_without_library(run: Any, config: Any) -> None:
    unread = _changed(run, OWN_KEYS)
    if unread:
        raise UsageError(f"{unread[0]}: it is read only with experience_library; set that to a file, or remove it.")
    if config.loss_context == "plain":
        raise UsageError(
            "grpo_config.loss_context plain: without experience_library nothing is injected into the prompts; set that, or "
            "remove it."
        )


def _check_plain_loss(config: Any, arguments: Any) -> None:
    if config.loss_context == "plain" and not _writes_text(arguments):
        raise UsageError(
            "grpo_config.loss_context plain: experience_inject is none; set it, or experience_rescue, or remove this."
        )


def _check_rescue(callback: Any, config: Any) -> None:
    """What the callback itself refuses when it meets the trainer, said before the model is loaded."""
    if not hasattr(callback, "rerolls"):
        return
    try:
        callback.check(SimpleNamespace(args=config, rescuer=None))
    except ValueError as error:
        sentence = str(error).replace("mode=", "experience_rescue=").replace("rerolls", "experience_rescue_rerolls")
        raise UsageError(in_yaml_words(sentence, type(config), ())) from error


def experience_callbacks(run: Any, library: ExperienceLibrary | str | None) -> list[Any]:
    """The callbacks that bring a library into the run.

    Raises:
        UsageError: an argument that they refuse.
    """
    if library is None:
        return []
    from trl_grpo_ext.experience import ExperienceCallback, RescueCallback

    arguments, callbacks = run.finetuning_args, []
    common = {
        "position": arguments.experience_position,
        "template": arguments.experience_template,
        "token_budget": arguments.experience_token_budget,
        "episodes": arguments.experience_episodes,
        "same_prompt": arguments.experience_same_prompt,
        "where": arguments.experience_where or None,
        "seed": run.training_args.seed,
    }
    try:
        if arguments.experience_inject != "none" or not arguments.experience_read_only:
            own = {"inject": arguments.experience_inject, "dropout": arguments.experience_dropout}
            own["record"] = not arguments.experience_read_only
            own["metadata_columns"] = arguments.experience_metadata_columns or ()
            callbacks.append(ExperienceCallback(library, **own, **common))
        if arguments.experience_rescue != "none":
            callbacks.append(RescueCallback(library, **_rescue_values(arguments), **common))
    except (TypeError, ValueError) as error:
        raise UsageError(f"experience_*: {error}") from error
    return callbacks


def attach_again(callbacks: Sequence[Any], trainer: Any) -> None:
    """Let an evaluation after training have experiences as those during it had: the callback leaves at its end."""
    from trl_grpo_ext.experience import ExperienceCallback

    for callback in callbacks:
        if isinstance(callback, ExperienceCallback):
            callback.attach(trainer)


def _rescue_values(arguments: Any) -> dict[str, Any]:
    named = {name.removeprefix("experience_rescue_"): getattr(arguments, name) for name in RESCUE_KEYS}
    return {"mode": arguments.experience_rescue, **named}


def experience_line(arguments: Any) -> str | None:
    """What a run does with its library, for the log; None without one."""
    if arguments.experience_library is None:
        return None
    budget, dropout = arguments.experience_token_budget, arguments.experience_dropout
    parts = [f"{arguments.experience_inject} injected"]
    parts += [f"position {arguments.experience_position}"] if _writes_text(arguments) else []
    parts += [f"at most {budget} tokens"] if budget is not None else []
    parts += [f"dropout {dropout}"] if dropout else []
    parts += ["read only"] if arguments.experience_read_only else []
    parts += [f"rescue {arguments.experience_rescue}"] if arguments.experience_rescue != "none" else []
    return f"experience library {arguments.experience_library}: {', '.join(parts)}"
