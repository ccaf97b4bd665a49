"""`reward_model`: a real stage rm run, then stage grpo on what it saved, by LLaMA-Factory's own command and servers."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamafactory_plugin import workflow
from llamafactory_plugin.errors import UsageError
from tests.llamafactory_plugin import tiny
from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.prepared import prepare

PAIRS = {"ranking": True, "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}}
# LLaMA-Factory's template `qwen`, written out: what stage rm trains on.
PROMPT = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
)
ANSWER = "{answer}<|im_end|>\n"


def pairs(count: int) -> list[dict[str, str]]:
    """Short answers are chosen, long ones rejected."""
    rows = tiny.questions(count)
    return [{"instruction": row["instruction"], "chosen": "cat", "rejected": "dog " * 6} for row in rows]


def rm_arguments(workspace: Workspace, **overrides: Any) -> dict[str, Any]:
    tiny.write_dataset(workspace.data, "pairs", pairs(16), **PAIRS)
    own = {name for name in workspace.defaults if name.startswith("grpo_")}
    arguments = {name: value for name, value in workspace.defaults.items() if name not in own}
    arguments |= {"stage": "rm", "dataset": "pairs", "finetuning_type": "full", "learning_rate": 1e-2, "max_steps": 8}
    return arguments | overrides


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """What LLaMA-Factory's stage rm saved."""
    workspace = Workspace(tmp_path_factory.mktemp("rm"), model)
    workspace.defaults = rm_arguments(workspace)
    workspace.run()
    assert (workspace.output / "value_head.safetensors").exists()
    return workspace.output


def scores_by_hand(folder: Path, texts: list[list[str]]) -> list[float]:
    """The value at the last token, one text (in the pieces to encode) at a time, by transformers and the saved head."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    head = load_file(folder / "value_head.safetensors")
    scores = []
    for pieces in texts:
        encoded = [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in pieces]
        ids = torch.tensor([[token for part in encoded for token in part]])
        with torch.no_grad():
            last = model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        scores.append(float(last @ head["v_head.summary.weight"][0] + head["v_head.summary.bias"][0]))
    return scores


def pieces(row: dict[str, Any]) -> list[str]:
    """Prompt and answer of a row of completions.jsonl, which a Template encodes each by itself."""
    return [PROMPT.format(question=row["prompt"][-1]["content"]), ANSWER.format(answer=row["completion"])]


def rendered(row: dict[str, Any]) -> str:
    return "".join(pieces(row))


def test_a_reward_model_of_stage_rm_through_the_command_line(workspace: Workspace, reward_model: Path) -> None:
    full = {"reward_model": str(reward_model), "reward_model_type": "full"}
    result = workspace.cli(workspace.yaml(**full, reward_funcs="exact_match", reward_weights="0,2"))
    assert "rewards: exact_match, reward_model" in result.stdout
    rows = workspace.completions()
    given = [row["rewards"]["reward_model"] for row in rows]
    assert given == pytest.approx(scores_by_hand(reward_model, [pieces(row) for row in rows]), abs=1e-4)
    assert [row["reward"] for row in rows] == pytest.approx([2 * value for value in given], abs=1e-4)
    assert len({round(value, 4) for value in given}) > 4
    logged = [entry for entry in workspace.log() if "rewards/reward_model/mean" in entry]
    assert len(logged) == 2 and logged[0]["rewards/reward_model/errors"] == 0


def test_it_scores_the_text_that_stage_rm_was_trained_on(workspace: Workspace, reward_model: Path) -> None:
    """Token for token: the pairs as LLaMA-Factory's rm processor encodes them, and as the reward encodes them."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    arguments = rm_arguments(workspace)
    model_args, data_args, training_args, _, _ = get_train_args(arguments)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    trained = get_dataset(template, model_args, data_args, training_args, stage="rm", **module)["train_dataset"]

    full = {"reward_model": str(reward_model), "reward_model_type": "full"}
    (reward,) = prepare(workspace.arguments(**full)).rewards
    reward.load()
    encoded = [
        reward.renderer.encode_answer([{"role": "user", "content": row["instruction"]}], row["chosen"])
        for row in pairs(16)
    ]
    assert encoded == [list(ids) for ids in trained["chosen_input_ids"]]
    prompts = [[{"role": "user", "content": row["instruction"]}] for row in pairs(16)]
    better, worse = (
        reward(prompts, [[{"role": "assistant", "content": row[key]}] for row in pairs(16)])
        for key in ("chosen", "rejected")
    )
    assert all(good > bad for good, bad in zip(better, worse, strict=True)), "stage rm has not learned the pairs"


def test_the_policy_learns_what_the_reward_model_likes(workspace: Workspace, reward_model: Path) -> None:
    sizes = {"per_device_train_batch_size": 32, "grpo_group_size": 8, "max_steps": 30, "logging_steps": 30}
    sizes |= {"finetuning_type": "full", "learning_rate": 1e-2, "disable_gradient_checkpointing": True}
    workspace.run(reward_model=str(reward_model), reward_model_type="full", **sizes)
    rewards = [row["reward"] for row in workspace.completions()]
    first, last = sum(rewards[:160]) / 160, sum(rewards[-160:]) / 160
    spread = (sum((value - first) ** 2 for value in rewards[:160]) / 160) ** 0.5
    assert last - first > 4 * spread / 160**0.5, (first, last, spread)


@pytest.mark.slow
def test_a_lora_reward_model_and_two_ranks(workspace: Workspace, model: Path, tmp_path: Path) -> None:
    trained = Workspace(tmp_path / "rm", model)
    trained.folder.mkdir(exist_ok=True)
    trained.defaults = rm_arguments(trained, finetuning_type="lora", max_steps=2)
    trained.run()
    assert (trained.output / "adapter_model.safetensors").exists()
    path = workspace.yaml(
        reward_model=str(model), reward_model_adapters=str(trained.output), reward_model_type="full", max_steps=1
    )
    workspace.cli(path, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    rows = workspace.completions()
    assert len(rows) == 16 and len({row["rewards"]["reward_model"] for row in rows}) > 4


class ScoreServer(http.server.BaseHTTPRequestHandler):
    """LLaMA-Factory's protocol: the score of a text is the share of vowels in its last 40 characters."""

    requests: list[dict[str, Any]]
    fails: int = 0

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(payload)
        if self.fails:
            type(self).fails -= 1
            self.send_error(503)
            return
        body = json.dumps({"scores": [score(text) for text in payload["messages"]]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def score(text: str) -> float:
    return sum(letter in "aeiou" for letter in text[-40:]) / 40


@pytest.fixture
def server() -> Iterator[tuple[str, type[ScoreServer]]]:
    handler = type("Handler", (ScoreServer,), {"requests": [], "fails": 0})
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1/score/evaluation", handler
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def test_a_score_server(workspace: Workspace, server: Any) -> None:
    url, handler = server
    handler.fails = 1  # a busy server is asked again
    workspace.run(reward_model=url, reward_model_type="api", per_device_train_batch_size=4)
    rows = workspace.completions()
    assert len(rows) == 8
    for row in rows:
        assert row["rewards"]["reward_model"] == pytest.approx(score(rendered(row)))
    assert all(request["model"] == "model" and len(request["messages"]) <= 4 for request in handler.requests)
    assert {rendered(row) for row in rows} == {text for request in handler.requests for text in request["messages"]}


def test_a_server_that_is_away_follows_the_error_policy(workspace: Workspace) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    away = {"reward_model": url, "reward_model_type": "api", "max_steps": 1}
    workspace.run(**away, grpo_reward_errors="skip", reward_funcs="exact_match")
    assert {row["rewards"]["reward_model"] for row in workspace.completions()} == {None}
    entry = next(entry for entry in workspace.log() if "rewards/reward_model/errors" in entry)
    assert entry["rewards/reward_model/errors"] == entry["rewards/reward_model/skips"] == 8
    with pytest.raises(RuntimeError, match="'reward_model' failed in all 8 rows"):
        workspace.run(**away, overwrite_output_dir=True)


@pytest.mark.slow
def test_llamafactorys_own_score_server_agrees_with_type_full(workspace: Workspace, reward_model: Path) -> None:
    """`llamafactory-cli api` with stage rm, as its PPO uses it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "llamafactory-cli"), "api", "--stage", "rm", "--template", "qwen"]
    command += ["--model_name_or_path", str(reward_model)]
    environment = os.environ | {"API_PORT": str(port), "API_HOST": "127.0.0.1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=1).read()
                break
            except OSError:
                assert process.poll() is None, "the server has ended"
                time.sleep(0.5)
        workspace.run(reward_model=f"http://127.0.0.1:{port}/v1/score/evaluation", reward_model_type="api")
    finally:
        process.terminate()
        process.wait(30)
    rows = workspace.completions()
    by_hand = scores_by_hand(reward_model, [[rendered(row)] for row in rows])  # the server encodes it whole
    assert [row["rewards"]["reward_model"] for row in rows] == pytest.approx(by_hand, abs=1e-4)


class TestRefused:
    @pytest.fixture(autouse=True)
    def no_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workflow, "load_model", lambda *_: pytest.fail("the model was loaded"))

    def test_a_folder_without_a_value_head(self, workspace: Workspace, model: Path) -> None:
        sentence = workspace.refused(error=UsageError, reward_model=str(model), reward_model_type="full")
        assert "has no value_head.safetensors" in sentence and "reward_model_adapters" in sentence

    def test_no_url(self, workspace: Workspace) -> None:
        sentence = workspace.refused(error=UsageError, reward_model="localhost:8000", reward_model_type="api")
        assert sentence.startswith("reward_model: with reward_model_type: api, url must be http://")

    def test_weights_count_it(self, workspace: Workspace, server: Any) -> None:
        api = {"reward_model": server[0], "reward_model_type": "api", "reward_funcs": "exact_match"}
        sentence = workspace.refused(error=UsageError, **api, reward_weights="1")
        assert "1 weights for 2 reward functions" in sentence

    def test_a_function_of_the_same_name(self, workspace: Workspace, server: Any) -> None:
        (workspace.folder / "rewards.py").write_text("def reward_model(completions, **kwargs):\n    return []\n")
        path = f"{workspace.folder / 'rewards.py'}:reward_model"
        sentence = workspace.refused(
            error=UsageError, reward_model=server[0], reward_model_type="api", reward_funcs=path
        )
        assert "two rewards of this run have the name 'reward_model'" in sentence
