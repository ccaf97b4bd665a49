"""Runs of LLaMA-Factory on a tiny model: in this process (`run`) and as a real command (`cli`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llamafactory", reason="needs LLaMA-Factory (line A)")

from tests.llamafactory_plugin import tiny

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "WANDB_DISABLED": "true",
}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session", autouse=True)
def quiet_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Offline, one thread, and a datasets cache of its own, so that no earlier run's rows are read."""
    import torch

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


class Workspace:
    """One folder with data, and the ways to run LLaMA-Factory in it."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.output = folder / "out"
        self.defaults: dict[str, Any] = {
            "stage": "grpo",
            "do_train": True,
            "model_name_or_path": str(model),
            "finetuning_type": "lora",
            "dataset": "words",
            "dataset_dir": str(self.data),
            "template": "qwen",
            "output_dir": str(self.output),
            "per_device_train_batch_size": 8,
            "grpo_group_size": 4,
            "grpo_max_completion_length": 8,
            "max_steps": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "report_to": "none",
            "overwrite_cache": True,
        }
        tiny.write_dataset(self.data, "words", tiny.questions(16))

    def arguments(self, **overrides: Any) -> dict[str, Any]:
        """The default run with `overrides`; None takes a key out."""
        merged = self.defaults | overrides
        if merged["stage"] == "grpo" and not merged.get("grpo_training_free"):
            # A second or two per run; tests/evaluation/test_llamafactory_keys.py is for it.
            merged = {"grpo_disable_report": True} | merged
        return {name: value for name, value in merged.items() if value is not None}

    def run(self, callbacks: list[Any] | None = None, **overrides: Any) -> None:
        """Run in this process, through LLaMA-Factory's own `run_exp`."""
        from llamafactory.train.tuner import run_exp

        run_exp(self.arguments(**overrides), callbacks=callbacks)

    def refused(self, error: type[BaseException] = ValueError, **overrides: Any) -> str:
        """The sentence a run is refused with; nothing may have been written."""
        with pytest.raises(error) as caught:
            self.run(**overrides)
        assert not self.output.exists(), "a refused run has written to the output folder"
        return str(caught.value)

    def yaml(self, **overrides: Any) -> Path:
        import yaml

        path = self.folder / "run.yaml"
        path.write_text(yaml.safe_dump(self.arguments(**overrides)), encoding="utf-8")
        return path

    def cli(self, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `llamafactory-cli train ...` as a user does."""
        command = [str(Path(sys.executable).parent / "llamafactory-cli"), "train", *map(str, arguments)]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        result = subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, "PATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
        if check:
            assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
        return result

    def completions(self, name: str = "completions.jsonl") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.output / name).read_text(encoding="utf-8").splitlines()]

    def log(self) -> list[dict[str, Any]]:
        state = json.loads((self.output / "trainer_state.json").read_text(encoding="utf-8"))
        return state["log_history"]


@pytest.fixture
def workspace(tmp_path: Path, model: Path) -> Workspace:
    return Workspace(tmp_path, model)


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the plugin logs on rank 0. LLaMA-Factory's handler does not propagate, so caplog sees nothing."""
    import logging

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("llamafactory.grpo")
    logger.addHandler(handler)
    monkeypatch.setattr(logger, "level", logging.INFO)
    return lines


Runner = Callable[..., None]
