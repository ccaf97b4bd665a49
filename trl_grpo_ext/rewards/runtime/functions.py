"""How a reward function gets into a worker: by its name, by its file, or with its code."""

import hashlib
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

RewardFunction = Callable[..., Any]


@dataclass(frozen=True)
class Shipment:
    """A reward function on its way to a worker.

    Args:
        name: under which it is logged.
        spec: built-in name, `/absolute/file.py:function` or `module:function`; "" when the code itself travels.
        payload: the function as cloudpickle wrote it; b"" when `spec` says where to find it.
        version: hash of all of this and of the source file, so that two versions never share cached results.
        imports: modules that the worker imports before it loads the function.
    """

    name: str
    spec: str
    payload: bytes
    version: str
    imports: tuple[str, ...] = ()


def _source(path: str | None) -> bytes:
    return Path(path).read_bytes() if path and Path(path).is_file() else b""


def _version(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _refuse_isolated(func: RewardFunction) -> None:
    # Any class of that name: this module can't import it.
    if type(func).__name__ == "IsolatedReward":
        raise ValueError(
            f"IsolatedReward: {func.__name__!r} runs in worker processes already; use it as it is, without a wrapper."
        )


def _ship_spec(spec: str) -> Shipment:
    where, _, function = spec.rpartition(":")
    if not where:
        from trl_grpo_ext.rewards.registry import resolve_reward_funcs

        (builtin,) = resolve_reward_funcs(spec)
        _refuse_isolated(builtin)
        return Shipment(spec, spec, b"", _version(spec.encode(), _source(_file_of(builtin))))
    if where.endswith(".py"):
        file = Path(where).expanduser().resolve()
        if not file.is_file():
            raise ValueError(f"IsolatedReward: reward file {where!r} does not exist ({file}); correct the path.")
        spec = f"{file}:{function}"
        return Shipment(function, spec, b"", _version(spec.encode(), file.read_bytes()))
    found = importlib.util.find_spec(where)
    if found is None:
        raise ValueError(f"IsolatedReward: no module {where!r} (from {spec!r}); install it, or name a .py file.")
    return Shipment(function, spec, b"", _version(spec.encode(), _source(found.origin)))


def _file_of(func: RewardFunction) -> str | None:
    return getattr(sys.modules.get(_module_name(func)), "__file__", None)


def _module_name(func: RewardFunction) -> str:
    return getattr(func, "__module__", None) or type(func).__module__


def _must_travel(module: ModuleType | None) -> bool:
    """Return whether a worker could not import this module: one loaded from a file, under a name of its own."""
    if module is None or module.__name__ == "__main__":
        return False  # cloudpickle itself sends the code of __main__
    top = module.__name__.partition(".")[0]
    if top in sys.builtin_module_names:
        return False
    return importlib.machinery.PathFinder.find_spec(top) is None


def _pickle(func: RewardFunction) -> bytes:
    import cloudpickle

    modules = {sys.modules.get(_module_name(part)) for part in (func, type(func), getattr(func, "__wrapped__", func))}
    travelling = [module for module in modules if module is not None and _must_travel(module)]
    for module in travelling:
        cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps(func))
    finally:
        for module in travelling:
            cloudpickle.unregister_pickle_by_value(module)


def ship(func: RewardFunction | str, name: str | None = None) -> Shipment:
    """Prepare a reward function for the way to a worker.

    Args:
        func: a callable, or one of: the name of a built-in, `path/to/file.py:function` (from the working directory),
            `module:function`. Callables go by cloudpickle: those of notebooks, scripts (`__main__`), closures and
            modules loaded from a file with their code, others by module and name.
        name: name for the logs; by default the function's own.

    Raises:
        ValueError: an unknown name, file or module, or a callable without `__name__`.
        TypeError: a callable that can't be pickled; say `in_process=True`, or name it by its file.
        ImportError: cloudpickle is not installed and a callable is given.
    """
    if isinstance(func, str):
        shipment = _ship_spec(func)
        return Shipment(name or shipment.name, shipment.spec, b"", shipment.version)
    _refuse_isolated(func)
    name = name or getattr(func, "__name__", None)
    if not isinstance(name, str):
        raise ValueError(f"IsolatedReward: {func!r} has no __name__, under which it is logged; give name='...'.")
    try:
        payload = _pickle(func)
    except ImportError:
        raise
    except Exception as error:
        raise TypeError(
            f"IsolatedReward: reward {name!r} can't be sent to a worker process ({type(error).__name__}: {error}); "
            "name it by its file ('path.py:function'), or say in_process=True."
        ) from error
    return Shipment(name, "", payload, _version(payload, _source(_file_of(func))))


def unpack(spec: str, payload: bytes) -> RewardFunction:
    """Return the function of a shipment; runs in the worker.

    Raises:
        whatever the function's module raises at import; ValueError for a name that is not there.
    """
    if payload:
        import cloudpickle

        return cloudpickle.loads(payload)  # type: ignore[no-any-return]
    where, _, function = spec.rpartition(":")
    if where and not where.endswith(".py"):
        return getattr(importlib.import_module(where), function)  # type: ignore[no-any-return]
    from trl_grpo_ext.rewards.registry import resolve_reward_funcs

    return resolve_reward_funcs(spec)[0]
