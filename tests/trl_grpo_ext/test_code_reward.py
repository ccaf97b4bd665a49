"""`code_tests` and `python_compiles` in the sandbox: real data, hostile programs, real training runs."""

import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from trl_grpo_ext.rewards import resolve_reward_funcs, sandbox_capabilities
from trl_grpo_ext.rewards.code import code_tests_reward, python_compiles_reward
from trl_grpo_ext.rewards.runtime import IsolatedReward, RewardError, RewardRuntime, SandboxUnavailable

cloudpickle = pytest.importorskip("cloudpickle")
CAPABILITIES = sandbox_capabilities() if sys.platform == "linux" else None
sandboxed = pytest.mark.skipif(
    CAPABILITIES is None or not CAPABILITIES.sandbox,
    reason=f"no sandbox on this machine: {CAPABILITIES.reasons if CAPABILITIES else sys.platform}",
)
ADD = "def add(a, b):\n    return a + b\n"
TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]


@pytest.fixture(scope="module")
def runtime():
    with RewardRuntime(workers=2, memory_limit=1 << 29, process_limit=8, file_limit=1 << 20) as shared:
        yield shared


@pytest.fixture(scope="module")
def reward(runtime):
    return code_tests_reward(runtime=runtime, deadline=4.0, seconds_per_test=1.0)


def humaneval(repository, step):
    path = repository.parent / "shared" / "data" / "humaneval" / "HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip("../shared/data/humaneval/HumanEval.jsonl.gz is not here")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    assert len(rows) == 164
    return rows[::step]


# 164 rows, each as a body, as a whole function in a fence, and wrong.
@sandboxed
@pytest.mark.parametrize("step", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_humaneval_canonical_and_wrong_solutions(repository, step):
    rows = humaneval(repository, step)
    columns = {name: [row[name] for row in rows] for name in ("test", "entry_point")}
    prompts = [row["prompt"] for row in rows]
    bodies = [row["canonical_solution"] for row in rows]
    fenced = [f"So:\n```python\n{row['prompt']}{row['canonical_solution']}```\n" for row in rows]
    reward = code_tests_reward()
    assert reward(prompts=prompts, completions=bodies, **columns) == [1.0] * len(rows)
    assert reward(prompts=prompts, completions=fenced, **columns) == [1.0] * len(rows)
    wrong = ["    return 'wrong'\n"] * len(rows)
    assert reward(prompts=prompts, completions=wrong, **columns) == [0.0] * len(rows)


# Each program must score 0 (None would spare it), and leave the machine and the rows beside it alone.
HOSTILE = {
    "endless loop": "while True: pass",
    "endless loop in a call": "def add(a, b):\n    while True: pass",
    "fork bomb": "import os\nwhile True: os.fork()",
    "slow fork bomb": "import os, time\nfor _ in range(12): os.fork()\ntime.sleep(30)",
    "thread bomb": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(30,)).start()",
    "100 GB": "def add(a, b):\n    return len(bytearray(100 << 30)) and a + b",
    "memory of many processes": "import os, time\nfor _ in range(3): os.fork()\nb = bytearray(300 << 20)\n"
    "for i in range(0, len(b), 4096): b[i] = 1\ntime.sleep(30)",
    "kills everything": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "kills its judge": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "stops its judge": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)",
    "fills the disk": "f = open('big', 'wb')\nwhile True: f.write(bytes(1 << 20))",
    "fills the log": "import sys, os\nfor fd in range(16):\n    try:\n        while True: os.write(fd, b'spam' * 10**5)\n"
    "    except OSError: pass",
    "deep source": "x = " + "(" * 100_000,
    "crash": "import ctypes\nctypes.string_at(0)",
}


@sandboxed
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_scores_nothing_and_harms_nobody(reward, name, capfd):
    started = time.monotonic()
    completions = [ADD + f"# {uuid.uuid4()}", HOSTILE[name], ADD + f"# {uuid.uuid4()}"]
    assert reward(prompts=["p"] * 3, completions=completions, tests=[TESTS] * 3) == [1.0, 0.0, 1.0]
    assert time.monotonic() - started < 9
    assert "spam" not in "".join(capfd.readouterr())


@sandboxed
def test_network_and_files_outside_are_out_of_reach(reward, tmp_path):
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.05)
    target = tmp_path / "outside"
    programs = [
        f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)\n" + ADD,
        f"open({str(target)!r}, 'w').write('x')\n" + ADD,
        f"import os\nos.system('touch {target}')\ndef add(a, b): return os.path.exists({str(target)!r}) or a + b",
        "import os\nopen('/proc/sys/kernel/hostname', 'w').write('owned')\n" + ADD,
        "open('inside', 'w').write('x')\nassert open('inside').read() == 'x'\n" + ADD,
    ]
    rewards = reward(prompts=["p"] * 5, completions=programs, tests=[TESTS] * 5)
    assert rewards == [0.0, 0.0, 1.0, 0.0, 1.0]
    assert not target.exists()
    with pytest.raises(TimeoutError):
        server.accept()
    server.close()


@sandboxed
def test_a_row_leaves_nothing_for_the_next():
    deep = "import os\nfor _ in range(300):\n    os.mkdir('d')\n    open('f', 'w').write('x')\n    os.chdir('d')\n"
    leaves = deep + "os.chmod('.', 0)\nopen('/dev/shm/mark', 'w') if os.path.isdir('/dev/shm') else None\n" + ADD
    looks = "import os\nfound = os.listdir('.') + os.listdir(os.environ['TMPDIR'])\ndef add(a, b): return len(found) or a + b"
    # Its own source is on standard input's side of the house only: the scratch folder is empty.
    with RewardRuntime(workers=1) as single:
        reward = code_tests_reward(runtime=single)
        assert reward(prompts=["p"] * 2, completions=[leaves, looks], tests=[TESTS] * 2)[1] == 1.0


@sandboxed
def test_namespaces_within_the_sandbox_can_not_be_had(reward):
    """They would give a program mounts, and memory in them, that no limit counts."""
    if not CAPABILITIES.user:
        pytest.skip("without a user namespace of its own, a worker has no limit of its own to set")
    program = "import ctypes\nresult = ctypes.CDLL(None).unshare(0x10000000)\ndef add(a, b): return result"
    assert reward(prompts=["p"], completions=[program], tests=[["assert add(1, 2) == -1"]]) == [1.0]


def test_rows_that_can_not_be_scored_stop_the_run(runtime):
    reward = code_tests_reward(runtime=runtime, allow_unsandboxed=True)
    with pytest.raises(RewardError, match=r"'code_tests' failed on row 1 (.|\n)*exactly one of tests"):
        reward(prompts=["p"] * 2, completions=[ADD] * 2, tests=[TESTS, None])
    for wrong in ({"deadline": 0}, {"seconds_per_test": float("nan")}):
        with pytest.raises(ValueError, match=f"code_tests: {next(iter(wrong))} must be"):
            code_tests_reward(**wrong)


def test_without_namespaces_code_is_refused_unless_allowed():
    with RewardRuntime(workers=1, namespaces=False) as bare:
        with pytest.raises(SandboxUnavailable, match=r"'code_tests' runs untrusted programs .*allow_unsandboxed=True"):
            code_tests_reward(runtime=bare)
        allowed = code_tests_reward(runtime=bare, allow_unsandboxed=True, deadline=2.0, seconds_per_test=1.0)
        rows = {"prompts": ["p"] * 3, "completions": [ADD, "while True: pass", "x"], "tests": [TESTS] * 3}
        assert allowed(**rows) == [1.0, 0.0, 0.0]


@sandboxed
def test_they_are_registered_and_run_in_no_second_sandbox():
    tests, compiles = resolve_reward_funcs(["code_tests", "python_compiles"])
    assert tests(prompts=["p"], completions=[ADD], test_list=[TESTS]) == [1.0]
    assert compiles(prompts=["p"] * 3, completions=[ADD, "def f(:", ""]) == [1.0, 0.0, 0.0]
    for again in ("code_tests", tests):
        with pytest.raises(ValueError, match="'code_tests' runs in worker processes already"):
            IsolatedReward(again)


def test_source_that_exhausts_the_compiler_scores_nothing(runtime):
    reward = python_compiles_reward(runtime=runtime, deadline=2.0)
    bombs = ["x = " + "-" * 500_000 + "1", "(" * 10_000, "1" * 100_000, "lambda: " * 60_000 + "0", ADD]
    rewards = reward(prompts=["p"] * 5, completions=bombs)
    assert rewards[:4] == [0.0] * 4
    assert rewards[4] == 1.0


@sandboxed
def test_training_goes_on_past_hostile_programs(make_tiny_trainer, runtime, tmp_path):
    """Each step has hostile programs among good ones; the model can't write programs yet, so the rows bring them."""
    programs = [
        ADD,
        "def add(a, b):\n    return 3\n",
        *(HOSTILE[name] for name in ("endless loop", "fork bomb", "100 GB")),
    ]
    programs += [
        f"open({str(tmp_path / 'outside')!r}, 'w')\n" + ADD,
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')",
    ]
    scored = []
    reward = code_tests_reward(runtime=runtime, deadline=1.5, seconds_per_test=0.5)

    def written(prompts, completions, number, **kwargs):
        rewards = reward(prompts=prompts, completions=[programs[n] for n in number], **kwargs)
        scored.extend(zip(number, rewards, strict=True))
        return rewards

    rows = [{"prompt": "say ", "number": n % len(programs), "tests": TESTS} for n in range(28)]
    trainer = make_tiny_trainer([written], rows)
    trainer.train()
    assert trainer.state.global_step == 3
    assert [value for _, value in scored] == [{0: 1.0, 1: 0.5}.get(n, 0.0) for n, _ in scored]
    assert len({n for n, _ in scored}) >= 4
    assert not (tmp_path / "outside").exists()


ORDINARY = """
import os
from trl_grpo_ext.rewards import code_tests_reward, sandbox_capabilities
from trl_grpo_ext.rewards.runtime import RewardRuntime
assert os.getuid() != 0
print(sandbox_capabilities().sandbox, flush=True)
hostile = ["while True: pass", "import os\\nwhile True: os.fork()", "x = bytearray(100 << 30)",
           "import os, signal\\nos.kill(os.getppid(), signal.SIGKILL)", "open('/var/tmp/outside', 'w')",
           "import socket\\nsocket.create_connection(('127.0.0.1', 9), 1)"]
good = "def add(a, b): return a + b"
programs = [text for program in hostile for text in (program, good + "#" * len(program))]
with RewardRuntime(workers=2, memory_limit=1 << 29, process_limit=8) as runtime:
    reward = code_tests_reward(runtime=runtime, deadline=3.0, seconds_per_test=1.0)
    tests = [["assert add(1, 2) == 3"]] * len(programs)
    print(reward(prompts=["p"] * len(programs), completions=programs, tests=tests))
"""


@sandboxed
@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="the whole suite runs as an ordinary user")
def test_as_an_ordinary_user_too(subprocess_environment):
    """Limits on the number of processes bind an ordinary user, and privileges are missing from the start."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", ORDINARY]
    environment = subprocess_environment | {"HOME": "/tmp"}
    run = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=60)
    if "Permission denied" in run.stderr or "No module named" in run.stderr:
        pytest.skip(f"an ordinary user can't read the installation: {run.stderr[-200:]}")
    assert run.stdout.splitlines() == ["True", str([0.0, 1.0] * 6)], run.stderr
    assert not Path("/var/tmp/outside").exists()
