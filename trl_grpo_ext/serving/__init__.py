"""An OpenAI-compatible proxy that adds a library's lessons to each chat request.

    app = create_app(ServeSettings("http://127.0.0.1:8000/v1"), Libraries("lessons/library.db"))

Importing this package imports neither FastAPI nor httpx: `create_app` loads them when it is first used (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trl_grpo_ext.serving.lessons import Libraries
from trl_grpo_ext.serving.settings import ServeSettings

if TYPE_CHECKING:
    from trl_grpo_ext.serving.app import create_app

__all__ = ["Libraries", "ServeSettings", "create_app"]


def __getattr__(name: str) -> Any:
    if name != "create_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module("trl_grpo_ext.serving.app"), name)
    except ImportError as error:
        raise ImportError(
            f"serving needs {error.name}: pip install 'trl-grpo-ext[serve]'.", name=error.name
        ) from error


def __dir__() -> list[str]:
    return __all__
