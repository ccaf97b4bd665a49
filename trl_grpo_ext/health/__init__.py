"""Health of a GRPO run: rules with numbers over its metrics, and a callback that says what to change.

Importing this package imports neither torch nor TRL: what needs them is loaded when it is first used (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trl_grpo_ext.health.history import History, Point, has_risen
from trl_grpo_ext.health.rules import RULES, Finding, findings

if TYPE_CHECKING:
    from trl_grpo_ext.health.callback import HealthCallback

__all__ = [
    "RULES",
    "Finding",
    "HealthCallback",
    "History",
    "Point",
    "findings",
    "has_risen",
]


def __getattr__(name: str) -> Any:
    if name != "HealthCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("trl_grpo_ext.health.callback"), name)


def __dir__() -> list[str]:
    return __all__
