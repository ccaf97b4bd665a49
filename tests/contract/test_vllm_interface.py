"""The names of vLLM 0.10.2 that TRL 0.24 calls, in vLLM's own source; nothing of it is imported.

It reads the installed package, or the wheel that VLLM_WHEEL names:
`pip download --no-deps vllm==0.10.2`, then `VLLM_WHEEL=vllm-0.10.2-....whl pytest tests/contract/test_vllm_interface.py`.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import zipfile
from pathlib import Path

import pytest

from tests.contract.vllm_stand_in import ENGINE_OPTIONS, GENERATE_OPTIONS, SAMPLING_OPTIONS

pytestmark = pytest.mark.line_a


def source(name: str) -> str:
    """A file of vLLM."""
    if wheel := os.environ.get("VLLM_WHEEL"):
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(f"vllm/{name}").decode()
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM is not installed, and VLLM_WHEEL names no wheel of it")
    return (Path(spec.submodule_search_locations[0]) / name).read_text(encoding="utf-8")


def class_of(name: str, file: str) -> ast.ClassDef:
    return next(node for node in ast.parse(source(file)).body if isinstance(node, ast.ClassDef) and node.name == name)


def arguments(owner: ast.ClassDef, function: str) -> set[str]:
    found = [node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == function]
    # The last: overloads come before.
    return {item.arg for item in [*found[-1].args.args, *found[-1].args.kwonlyargs]}


def fields(owner: ast.ClassDef) -> set[str]:
    return {
        node.target.id for node in owner.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def test_the_engine_takes_what_trl_gives_it() -> None:
    engine = class_of("LLM", "entrypoints/llm.py")
    taken = arguments(engine, "__init__") | fields(class_of("EngineArgs", "engine/arg_utils.py"))
    assert taken >= ENGINE_OPTIONS
    assert arguments(engine, "generate") >= GENERATE_OPTIONS
    for name in ("reset_prefix_cache", "sleep", "wake_up", "get_tokenizer"):
        assert arguments(engine, name)


def test_sampling_takes_what_trl_gives_it() -> None:
    file = "sampling_params.py"
    assert fields(class_of("SamplingParams", file)) >= SAMPLING_OPTIONS
    assert "regex" in fields(class_of("GuidedDecodingParams", file))


def test_token_ids_are_a_prompt() -> None:
    assert "prompt_token_ids" in fields(class_of("TokensPrompt", "inputs/data.py"))


def test_weights_are_sent_as_trl_sends_them() -> None:
    assert "class PyNcclCommunicator" in source("distributed/device_communicators/pynccl.py")
    assert "class StatelessProcessGroup" in source("distributed/utils.py")


def test_it_needs_transformers_4() -> None:
    """Why `check_vllm` refuses it beside transformers 5."""
    assert "all_special_tokens_extended" in source("transformers_utils/tokenizer.py")
