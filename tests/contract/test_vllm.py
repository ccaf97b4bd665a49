"""Rollouts by vLLM through TRL 0.24: colocated against a stand-in engine, and by a server over HTTP on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("llamafactory", reason="needs LLaMA-Factory (line A)")

import torch
from transformers import PreTrainedTokenizerBase

from llamafactory_plugin import settings, vllm_checks
from llamafactory_plugin.errors import UsageError
from llamafactory_plugin.rendered_rollouts import without_added_bos
from tests.contract.vllm_stand_in import Engine, SamplingParams, Weights, sample
from tests.llamafactory_plugin.conftest import (  # noqa: F401
    Workspace,
    model,
    quiet_environment,
    workspace,
)
from trl_grpo_ext import import_trl

RATIO = "sampling/importance_sampling_ratio/mean"


def part(name: str) -> ModuleType:
    """A module of TRL, which imports on transformers 5 by our shim only."""
    import_trl()
    return import_module(f"trl.{name}")


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL with the names that it imports from vLLM where that is installed; our own check has a test below."""
    monkeypatch.setattr(settings, "check_vllm", lambda run: None)
    trainer = part("trainer.grpo_trainer")
    for module in (trainer, part("extras.vllm_client")):
        monkeypatch.setattr(module, "is_vllm_available", lambda: True)
    monkeypatch.setattr(trainer, "LLM", Engine, raising=False)
    monkeypatch.setattr(trainer, "SamplingParams", SamplingParams, raising=False)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        # Set once, so that what TRL's colocated mode leaves of them goes away with the test.
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)


def rendered(workspace: Workspace, texts: Any) -> list[int]:  # noqa: F811
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(workspace.defaults["model_name_or_path"])
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template="qwen"))
    return template.encode_oneturn(tokenizer, [*texts, {"role": "assistant", "content": ""}])[0]


def letters(workspace: Workspace) -> str:  # noqa: F811
    """A reward that differs within groups, so that something is learned."""
    path = workspace.folder / "letters.py"
    path.write_text(
        "def letters(completions, **columns):\n    return [len(turns[0]['content']) / 9 for turns in completions]\n"
    )
    return f"{path}:letters"


def test_colocated(allowed: None, workspace: Workspace) -> None:  # noqa: F811
    """Prompts are LLaMA-Factory's token ids, its stop words end completions, and each step's weights arrive."""
    Engine.made.clear()
    rewards = {"reward_funcs": letters(workspace), "grpo_reward_in_process": True}
    workspace.run(grpo_use_vllm=True, grpo_config={"vllm_mode": "colocate"}, learning_rate=1e-2, **rewards)
    (engine,) = Engine.made
    stops = {params.stop_token_ids[0] for params in engine.sampling}
    rows = workspace.completions()
    assert len(rows) == len(engine.prompts) == 16
    assert engine.prompts[0]["prompt_token_ids"] == rendered(workspace, rows[0]["prompt"])
    assert stops and all(params.max_tokens == 8 for params in engine.sampling)
    # LoRA is merged into what is sent, once per step; B is 0 before the first step and no longer before the second.
    assert len(engine.weights.loads) == engine.resets == 2
    first, second = engine.weights.loads
    name = next(name for name in first if name.endswith("q_proj.weight"))
    assert first.keys() == {name for name, _ in engine.weights.model.named_parameters()}
    assert not torch.equal(first[name], second[name])
    # The probability of each sampled token, by the engine and by the trainer: one policy, so one.
    ratios = [entry[RATIO] for entry in workspace.log() if RATIO in entry]
    assert len(ratios) == 2 and ratios == pytest.approx([1.0, 1.0], abs=1e-3)


class Server(ThreadingHTTPServer):
    """`trl vllm-serve`'s protocol, but for the weights, which go by NCCL."""

    daemon_threads = True

    def __init__(self, folder: str) -> None:
        from transformers import AutoTokenizer

        super().__init__(("127.0.0.1", 0), Handler)
        self.weights, self.asked = Weights(folder), []
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def generate(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(asked)
        prompts = [self.tokenizer(text).input_ids for text in asked["prompts"]]
        stops = asked["generation_kwargs"]["stop_token_ids"]
        found = [
            sample(self.weights.model, ids, asked["max_tokens"], stops) for ids in prompts for _ in range(asked["n"])
        ]
        return {
            "prompt_ids": prompts,
            "completion_ids": [ids for ids, _ in found],
            "logprobs": [logps for _, logps in found],
        }


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        return None

    def _answer(self, found: dict[str, Any]) -> None:
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._answer({"status": "ok"} if self.path == "/health/" else {"world_size": 1})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        self._answer(self.server.generate(asked) if self.path == "/generate/" else {"message": "ok"})


@pytest.fixture
def server(workspace: Workspace) -> Iterator[Server]:  # noqa: F811
    made = Server(workspace.defaults["model_name_or_path"])
    yield made
    made.shutdown()
    made.server_close()


@pytest.mark.slow
def test_server(
    allowed: None,
    workspace: Workspace,  # noqa: F811
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over real HTTP; in the place of NCCL the weights are handed over in this process."""
    client = part("extras.vllm_client").VLLMClient
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(client, "init_communicator", lambda self, device: None)
    monkeypatch.setattr(
        client, "update_named_param", lambda self, name, tensor: server.weights.load_weights([(name, tensor)])
    )
    address = f"http://127.0.0.1:{server.server_address[1]}"
    options = {"vllm_mode": "server", "vllm_server_base_url": address}
    workspace.run(grpo_use_vllm=True, grpo_config=options, learning_rate=1e-2, finetuning_type="full", max_steps=2)
    rows = workspace.completions()
    assert [asked["n"] for asked in server.asked] == [4, 4]
    assert server.tokenizer(server.asked[0]["prompts"][0]).input_ids == rendered(workspace, rows[0]["prompt"])
    assert len(server.weights.loads) == 2
    ratios = [entry[RATIO] for entry in workspace.log() if RATIO in entry]
    assert len(ratios) == 2 and ratios == pytest.approx([1.0, 1.0], abs=1e-3)


def test_no_server(allowed: None, workspace: Workspace) -> None:  # noqa: F811
    options = {"vllm_mode": "server", "vllm_server_base_url": "http://127.0.0.1:9", "vllm_server_timeout": 0.1}
    with pytest.raises(OSError, match="trl vllm-serve"):
        workspace.run(grpo_use_vllm=True, grpo_config=options)


def run_with(device: str = "cuda", bits: int | None = None, resize: bool = False) -> Any:
    """As much of a run as the check reads."""
    return SimpleNamespace(
        finetuning_args=SimpleNamespace(grpo_use_vllm=True),
        training_args=SimpleNamespace(device=SimpleNamespace(type=device)),
        model_args=SimpleNamespace(quantization_bit=bits, resize_vocab=resize),
    )


REFUSED = {
    "CPU": (run_with("cpu"), "0.10.2", True, "needs an accelerator"),
    "QLoRA": (run_with(bits=4), "0.10.2", True, "packed weights do not fit"),
    "vocabulary": (run_with(resize=True), "0.10.2", True, "save the resized model first"),
    "another vLLM": (run_with(), "0.22.0", True, "vllm 0.22.0 is installed, and TRL 0.24 calls 0.10.2's"),
    "transformers 5": (run_with(), "0.10.2", False, "does not work with transformers 5"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, version, transformers_4, sentence = REFUSED[case]
    monkeypatch.setattr(part("import_utils"), "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_checks.metadata, "version", lambda name: version)
    name = "all_special_tokens_extended"
    if transformers_4:
        monkeypatch.setattr(PreTrainedTokenizerBase, name, [], raising=False)
    else:
        for owner in PreTrainedTokenizerBase.__mro__:
            if name in vars(owner):
                monkeypatch.delattr(owner, name)
    with pytest.raises(UsageError, match=sentence):
        vllm_checks.check_vllm(run)


def test_a_gpu_and_a_plain_model_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part("import_utils"), "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_checks.metadata, "version", lambda name: "0.10.2")
    monkeypatch.setattr(PreTrainedTokenizerBase, "all_special_tokens_extended", [], raising=False)
    vllm_checks.check_vllm(run_with())


@pytest.mark.parametrize(("added", "given", "left"), [([1], [1, 5], [5]), ([], [1, 5], [1, 5]), ([2], [1, 5], [1, 5])])
def test_a_server_gets_no_second_bos(added: list[int], given: list[int], left: list[int]) -> None:
    def tokenizer(text: str) -> Any:
        return SimpleNamespace(input_ids=added)

    assert without_added_bos(tokenizer, given) == left
