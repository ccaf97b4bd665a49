"""`CompositeReward` out of plain data, as a YAML file holds it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trl_grpo_ext._suggest import did_you_mean
from trl_grpo_ext.rewards.composition.components import Gate
from trl_grpo_ext.rewards.composition.composite import CompositeReward
from trl_grpo_ext.rewards.composition.schedules import make_schedule

_KEYS = ("rewards", "gates", "total", "group_size", "name")
_REWARD_KEYS = ("reward", "name", "weight", "schedule", "normalisation", "missing")
_GATE_KEYS = ("component", "opens", "minimum", "otherwise")


def _check_keys(where: str, given: Any, known: tuple[str, ...], required: tuple[str, ...]) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} must be a mapping with the keys {', '.join(known)}, not {given!r}.")
    for key in given:
        if key not in known:
            raise ValueError(
                f"{where}: unknown key {key!r}{did_you_mean(str(key), known) or '.'} Keys: {', '.join(known)}."
            )
    for key in required:
        if key not in given:
            raise ValueError(f"{where}: the key {key!r} is missing; keys: {', '.join(known)}.")


def _check_list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} must be a list, not {value!r}.")
    return list(value)


def _resolve(spec: Any, known: Mapping[str, Callable[..., Any]], folder: str | Path | None) -> Callable[..., Any]:
    if isinstance(spec, str) and spec in known:
        return known[spec]
    # Not at the top: the registry may list rewards that are built from this package.
    from trl_grpo_ext.rewards.registry import REWARDS, resolve_reward_funcs

    near = did_you_mean(spec, known) if isinstance(spec, str) and known else ""
    if near and ":" not in spec and spec not in REWARDS:
        raise ValueError(f"Unknown reward {spec!r}{near} Known besides the built-in ones: {', '.join(sorted(known))}.")
    return resolve_reward_funcs([spec], () if folder is None else folder)[0]


def _gate(where: str, spec: Any) -> Gate:
    _check_keys(where, spec, _GATE_KEYS, ("component", "opens"))
    opens = spec["opens"]
    options = {key: float(spec[key]) for key in ("minimum", "otherwise") if key in spec}
    return Gate(spec["component"], (opens,) if isinstance(opens, str) else tuple(opens), **options)


def compose(
    config: Mapping[str, Any],
    known: Mapping[str, Callable[..., Any]] | None = None,
    search_directory: str | Path | None = None,
) -> CompositeReward:
    """Build a `CompositeReward` from a mapping such as a YAML file gives.

        rewards:
          - {reward: think_format, name: format, weight: 0.2, schedule: {kind: linear, start: 1.0, end: 0.0}}
          - {reward: gsm8k_number, name: correctness, normalisation: rank, missing: omit}
        gates:
          - {component: format, opens: correctness, minimum: 1.0, otherwise: 0.0}
        total: standardise

    Args:
        config: `rewards` (needed): a list of names, or of mappings with `reward` (a name of `known` or of the
            registry, `path/to/file.py:function`, or a callable), `name` (the reward's own by default), `weight`
            (1.0), `schedule` (`make_schedule`), `normalisation` ("none"), `missing` ("skip"). `gates`: a list of
            `Gate` fields, where `opens` is a name or a list. `total`, `group_size`, `name`: as in `CompositeReward`.
        known: names of your own, looked up before the registry.
        search_directory: the folder for relative paths of reward files; the working directory comes after it.

    Returns:
        The composite. Its defaults are those of `CompositeReward`.

    Raises:
        ValueError: an unknown, missing or misshapen key, an unknown reward, or what `CompositeReward` refuses; the
            message names the place and the nearest right name.
    """
    _check_keys("compose", config, _KEYS, ("rewards",))
    options: dict[str, dict[str, Any]] = {"weight": {}, "schedule": {}, "normalisation": {}, "missing": {}}
    rewards: dict[str, Callable[..., Any]] = {}
    for place, entry in enumerate(_check_list("rewards", config["rewards"])):
        item = entry if isinstance(entry, Mapping) else {"reward": entry}
        _check_keys(f"rewards[{place}]", item, _REWARD_KEYS, ("reward",))
        reward = _resolve(item["reward"], known or {}, search_directory)
        name = str(item.get("name", getattr(reward, "__name__", "")))
        if name in rewards:
            raise ValueError(f"rewards[{place}]: the name {name!r} is taken; give this one another `name`.")
        rewards[name] = reward
        for key, values in options.items():
            if key in item:
                values[name] = make_schedule(item[key]) if key == "schedule" else item[key]
    return CompositeReward(
        rewards,
        weights=options["weight"],
        schedules=options["schedule"],
        normalisation=options["normalisation"],
        missing=options["missing"],
        gates=[_gate(f"gates[{i}]", gate) for i, gate in enumerate(_check_list("gates", config.get("gates", [])))],
        **{key: config[key] for key in ("total", "group_size", "name") if key in config},
    )
