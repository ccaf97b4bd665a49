"""A run of the command in LessonWorld, whose models answer on a real HTTP server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.training_free.http_server import Answer, completion, serving
from tests.training_free.lesson_world import World
from tests.training_free.tiny_models import REPOSITORY
from trl_grpo_ext.training_free import ChatRequest

WORLD = World(seed=1)
REWARD = """
def solved(completions, code, **kwargs):
    return [float(text.rpartition("Answer: ")[2] == right) for text, right in zip(completions, code, strict=True)]
"""


@contextmanager
def world_served(world: World = WORLD, before=lambda count: None):
    """The world's policy and reflector as an endpoint; `before` is called with the number of each request."""

    def answer(body: dict[str, Any]) -> Answer:
        before(len(endpoint.requests))
        messages = tuple((message["role"], message["content"]) for message in body["messages"])
        request = ChatRequest(messages, body["temperature"], body["max_tokens"], body["seed"])
        script = world.policy if body["model"] == "policy" else world.reflector
        return Answer(body=completion(script(request, 0)))

    with serving(answer) as endpoint:
        yield endpoint


def write_run(folder: Path, url: str, world: World = WORLD, **sections: Any) -> Path:
    """A run's file with its data and its reward beside it: 2 steps of 6 problems, 24 held out."""
    for name, rows in (("rows.jsonl", world.rows(6)), ("held_out.jsonl", world.rows(24, 1000))):
        lines = [json.dumps({"task": row["prompt"], "code": row["answer"]}) for row in rows]
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    (folder / "my_reward.py").write_text(REWARD, encoding="utf-8")
    models = {
        name: {"base_url": url, "model": name, "label": name, "retry": {"attempts": 2, "base": 0.001}}
        for name in ("policy", "reflector")
    }
    run: dict[str, Any] = {
        **models,
        "dataset": {"path": "rows.jsonl", "columns": {"prompt": "task"}},
        "held_out": {"path": "held_out.jsonl", "columns": {"prompt": "task"}},
        "reward": "my_reward.py:solved",
        "config": {"num_train_epochs": 2, "batch_size": 6, "max_attempts": 2, "answer_columns": "code"},
        "gate": {"min_pairs": 20, "look_every": 20},
        "output_dir": str(folder / "out"),
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in (run | sections).items() if value != "-"}))
    return path


def command(name: str, *arguments: Any, folder: Path, **given: Any) -> subprocess.Popen[str]:
    """A command in a process of its own, by its module: the environment's entry points may be another checkout's."""
    module = {"train-free": "train_free", "infer": "infer"}[name]
    code = f"import sys; from trl_grpo_ext.cli.{module} import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests' own shell has put them into the background, Ctrl-C would be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **given,
    )
