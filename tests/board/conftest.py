"""LLaMA Board's own page code, in this process: what it makes of its fields."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.llamafactory_plugin.conftest import Workspace, log_lines, model, quiet_environment, workspace

pytest.importorskip("gradio", reason="needs gradio, which LLaMA-Factory brings")

__all__ = ["log_lines", "model", "quiet_environment", "workspace"]

PageArguments = Callable[..., dict[str, Any]]


@pytest.fixture
def page_arguments(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> PageArguments:
    """The mapping that a press on Start writes to the YAML file, for the page's defaults and some fields."""
    monkeypatch.chdir(workspace.folder)
    import gradio
    from llamafactory.webui.common import _clean_cmd
    from llamafactory.webui.components import create_top, create_train_tab
    from llamafactory.webui.engine import Engine

    engine = Engine()
    with gradio.Blocks():
        engine.manager.add_elems("top", create_top())
        engine.manager.add_elems("train", create_train_tab(engine))

    def arguments(extra: dict[str, Any], **fields: Any) -> dict[str, Any]:
        filled = {
            "top.model_name": "Custom",
            "top.model_path": workspace.defaults["model_name_or_path"],
            "top.template": "qwen",
            "train.training_stage": "GRPO",
            "train.dataset_dir": str(workspace.data),
            "train.dataset": ["words"],
            "train.compute_type": "fp32",
            "train.output_dir": str(workspace.output),
            "train.extra_args": json.dumps(extra),
        } | fields
        values = {elem: elem.value for elem in engine.manager.get_elem_list() if hasattr(elem, "value")}
        values |= {engine.manager.get_elem_by_id(name): value for name, value in filled.items()}
        assert engine.runner._initialize(values, do_train=True, from_preview=True) == ""
        return dict(_clean_cmd(engine.runner._parse_train_args(values)))

    return arguments
