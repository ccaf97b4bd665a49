"""What a run does and did: the live view in the terminal, and the report in one HTML file.

Importing this package imports neither torch nor TRL: what needs them is loaded when it is first used (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trl_grpo_ext.report.html import write_report
from trl_grpo_ext.report.lines import Completion
from trl_grpo_ext.report.pictures import write_pictures
from trl_grpo_ext.report.run_files import RunError

if TYPE_CHECKING:
    from trl_grpo_ext.report.callback import ReportCallback, try_report
    from trl_grpo_ext.report.live import LiveCallback

_HOME = {
    "LiveCallback": "trl_grpo_ext.report.live",
    "ReportCallback": "trl_grpo_ext.report.callback",
    "try_report": "trl_grpo_ext.report.callback",
}

__all__ = ["Completion", "LiveCallback", "ReportCallback", "RunError", "try_report", "write_pictures", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
