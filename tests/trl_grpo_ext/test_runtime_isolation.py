"""What a reward function can't do, and what is left behind when anything ends. Run as root too."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from trl_grpo_ext.rewards.runtime import (
    Capabilities,
    IsolatedReward,
    RewardRuntime,
    SandboxUnavailable,
    sandbox_capabilities,
)
from trl_grpo_ext.rewards.runtime import capabilities as capabilities_module
from trl_grpo_ext.rewards.runtime import reward as reward_module

cloudpickle = pytest.importorskip("cloudpickle")
linux = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
CAPABILITIES = sandbox_capabilities() if sys.platform == "linux" else None
isolated = pytest.mark.skipif(
    CAPABILITIES is None or not CAPABILITIES.sandbox,
    reason=f"no sandbox on this machine: {CAPABILITIES.reasons if CAPABILITIES else sys.platform}",
)
pytestmark = linux


def run_program(completions, **kwargs):
    """Execute the completion as Python, which is what a sandbox is for; 1.0 when it ends normally."""
    scope = {}
    exec(completions[0], scope)
    return [float(scope.get("result", 1.0))]


@pytest.fixture(scope="module")
def runtime():
    with RewardRuntime(workers=2, deadline=2.0, memory_limit=1 << 29, process_limit=8, file_limit=1 << 20) as shared:
        yield shared


@pytest.fixture
def program(runtime):
    """Run one program among two good rows; the good rows must not notice."""

    def run(code, sandbox=True):
        reward = IsolatedReward(
            run_program, name=uuid.uuid4().hex, runtime=runtime, sandbox=sandbox, allow_unsandboxed=True
        )
        first, result, last = reward(completions=["result = 2", code, "result = 3"])
        assert (first, last) == (2.0, 3.0)
        return result, reward.stats()

    return run


def alive(marker):
    """Processes whose command line holds the marker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in command:
                found.append(int(entry.name))
    return found


def is_running(pid):
    """Not gone, and not a zombie that its adoptive parent has yet to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(marker, seconds=3.0):
    end = time.monotonic() + seconds
    while alive(marker) and time.monotonic() < end:
        time.sleep(0.02)
    return alive(marker)


def new_marker():
    return f"9876.{uuid.uuid4().int % 10**12}"


@pytest.mark.parametrize("sandbox", [True, False])
def test_a_huge_allocation(program, sandbox):
    result, stats = program("b = bytearray(100 << 30)", sandbox)
    assert result is None
    assert stats["errors"] == 1


def test_a_creeping_allocation():
    code = "b = []\nwhile True: b.append(bytearray(20 << 20))"
    with RewardRuntime(workers=1, deadline=60.0, memory_limit=1 << 28) as small:
        reward = IsolatedReward(run_program, runtime=small, sandbox=True, allow_unsandboxed=True)
        assert reward(completions=[code, "result = 2"]) == [None, 2.0]
        assert (reward.stats()["errors"], reward.stats()["timeouts"]) == (1, 0)


MANY = """
import os, time
for _ in range(2): os.fork()
block = bytearray(330 << 20)
for page in range(0, len(block), 4096): block[page] = 1
time.sleep(30)
"""


def test_memory_of_many_processes(program):
    """Each stays below its limit, all four together are far above."""
    result, stats = program(MANY)
    assert result is None
    assert (stats["kills"], stats["timeouts"]) == (1, 0)


@pytest.mark.parametrize("sandbox", [True, False])
def test_a_sandboxed_row_can_not_reach_the_trainers_log(capfd, sandbox):
    code = "import os\nfor fd in range(3):\n    try: os.write(fd, b'spam')\n    except OSError: pass"
    # A worker has the standard error that the trainer had when it was started.
    with RewardRuntime(workers=1) as fresh:
        reward = IsolatedReward(run_program, runtime=fresh, sandbox=sandbox, allow_unsandboxed=True)
        assert reward(completions=[code]) == [1.0]
    assert ("spam" in capfd.readouterr().err) is not sandbox


def test_an_endless_loop(program):
    result, stats = program("while True: pass")
    assert result is None
    assert stats["timeouts"] == 1


FORK_BOMB = "import os, time\nfor _ in range(9): os.fork()\ntime.sleep(30)"


@pytest.mark.parametrize("sandbox", [True, False])
def test_a_fork_bomb(program, runtime, sandbox):
    before = len(os.listdir("/proc"))
    result, stats = program(FORK_BOMB, sandbox)
    assert result is None
    # Root's processes are counted and killed; others' forks fail, and the row with them.
    assert stats["kills"] == 1 or os.getuid() != 0
    assert stats["timeouts"] == 0
    assert len(os.listdir("/proc")) < before + 60


def test_cpu_time_is_limited():
    with RewardRuntime(workers=1, deadline=60.0, cpu_limit=0.1) as short:
        reward = IsolatedReward(run_program, runtime=short)
        assert reward(completions=["while True: pass", "result = 4"]) == [None, 4.0]
        assert (reward.stats()["kills"], reward.stats()["timeouts"]) == (1, 0)
    # In a fork the limit is the fork's, and what the fork started ends with it.
    burn = "import os\nos.fork()\nwhile True: pass"
    with RewardRuntime(workers=1, deadline=60.0, cpu_limit=0.1) as short:
        forked = IsolatedReward(run_program, name="forked", runtime=short, sandbox=True, allow_unsandboxed=True)
        assert forked(completions=[burn, "result = 5"]) == [None, 5.0]
        assert (forked.stats()["kills"], forked.stats()["timeouts"]) == (1, 0)


@isolated
def test_the_network_is_cut(program):
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.05)
    code = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)"
    assert program(code)[0] is None
    assert program(code, sandbox=False)[0] is None
    with pytest.raises(TimeoutError):
        server.accept()
    with RewardRuntime(workers=1, network=True) as online:
        assert IsolatedReward(run_program, runtime=online)(completions=[code]) == [1.0]
    server.close()


@isolated
def test_secrets_of_the_environment_stay_out_without_network(runtime, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "x")
    code = "import os\nresult = len(os.environ.get('SOME_API_KEY', ''))"
    for network in (False, True):
        with RewardRuntime(workers=1, network=network) as fresh:
            assert IsolatedReward(run_program, runtime=fresh)(completions=[code]) == [float(network)]


@isolated
@pytest.mark.parametrize("sandbox", [True, False])
def test_files_outside_the_scratch_folder_can_not_be_written(program, tmp_path, sandbox):
    target = tmp_path / "outside"
    assert program(f"open({str(target)!r}, 'w')", sandbox)[0] is None
    assert program(f"import os\nos.system('echo x > {target}')\nos.unlink({str(tmp_path)!r})", sandbox)[0] is None
    assert not target.exists()
    assert program("open('inside', 'w').write('x' * 1000)\nresult = len(open('inside').read())", sandbox)[0] == 1000.0
    assert program("open('big', 'wb').write(bytes(2 << 20))", sandbox)[0] is None


@isolated
def test_devices_and_kernel_settings_can_not_be_written(program):
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/domainname"):
        assert program(f"open({path!r}, 'w')")[0] is None
    disks = [str(path) for path in Path("/dev").iterdir() if path.is_block_device()][:3]
    for disk in disks:
        assert program(f"open({disk!r}, 'rb')")[0] is None
    assert program("import os\nopen('/dev/null', 'w').write('x')\nresult = len(os.urandom(4))")[0] == 4.0


@isolated
def test_nothing_outside_can_be_signalled_or_seen(program, runtime):
    assert program(f"import os, signal\nos.kill({os.getpid()}, 0)")[0] is None
    assert program(f"open('/proc/{os.getpid()}/environ')")[0] is None
    remount = "import ctypes\nif ctypes.CDLL(None).mount(None, b'/', None, 32 | 4096, None): raise OSError('no')"
    assert program(remount)[0] is None


@isolated
def test_a_row_in_a_sandbox_does_not_touch_later_rows(runtime):
    with RewardRuntime(workers=1) as single:
        reward = IsolatedReward(run_program, runtime=single, sandbox=True)
        cheat = "import builtins\nbuiltins.float = lambda x: 99\nresult = 1"
        spoof = "import os\nfor fd in range(3, 50):\n    try: os.write(fd, b'x' * 100)\n    except OSError: pass\nos._exit(0)"
        marker = new_marker()
        stray = f"import subprocess\nsubprocess.Popen(['sleep', '{marker}'], start_new_session=True)\nresult = 5"
        rewards = reward(completions=[cheat, "result = 2", spoof, "result = 3", stray])
        assert rewards[1:] == [2.0, None, 3.0, 5.0]
        assert wait_until_gone(marker) == []
        assert (reward.stats()["kills"], reward.stats()["errors"]) == (1, 0)


@pytest.mark.parametrize("namespaces", [True, False])
def test_the_deadline_kills_what_the_row_started(namespaces):
    marker = new_marker()
    code = (
        "import subprocess, time\n"
        f"subprocess.Popen(['sleep', '{marker}'], start_new_session=True)\n"
        f"subprocess.Popen(['sh', '-c', 'setsid sleep {marker} & sleep {marker}'], stdout=-3)\n"
        "time.sleep(50)"
    )
    with RewardRuntime(workers=1, deadline=0.7, namespaces=namespaces) as short:
        reward = IsolatedReward(run_program, runtime=short)
        assert reward(completions=[code, "result = 6"]) == [None, 6.0]
        assert reward.stats()["timeouts"] == 1
        assert wait_until_gone(marker, 0.5) == []


@pytest.mark.parametrize("namespaces", [True, False])
def test_a_worker_that_ends_leaves_nothing(namespaces):
    marker = new_marker()
    code = f"import os, subprocess\nsubprocess.Popen(['setsid', 'sleep', '{marker}'])\nos._exit(3)"
    with RewardRuntime(workers=1, namespaces=namespaces) as single:
        assert IsolatedReward(run_program, runtime=single)(completions=[code, "result = 6"]) == [None, 6.0]
        assert wait_until_gone(marker, 1.0) == []


TRAINER = """
import json, sys, threading, time
from trl_grpo_ext.rewards.runtime import IsolatedReward, RewardRuntime
def hold(completions, **kwargs):
    import subprocess, time
    subprocess.Popen(["sleep", completions[0]], start_new_session=True)
    if kwargs["mode"][0] == "gil":
        7 ** (9 ** 9 ** 2)
    time.sleep(0.2 if kwargs["mode"][0] in ("end", "crash") else 100)
    return [1.0]
runtime = RewardRuntime(workers=2, deadline=100.0, namespaces=sys.argv[3] == "True")
reward = IsolatedReward(hold, runtime=runtime)
runtime.start()
if sys.argv[2] == "held":
    import ctypes, os
    # A fork that Python does not see keeps the trainer's end of every pipe open.
    if ctypes.PyDLL(None).fork() == 0:
        os.closerange(0, 3)
        time.sleep(15)
        os._exit(0)
print(json.dumps(runtime.pids()), flush=True)
mode = sys.argv[2]
reward(completions=[sys.argv[1]], mode=[mode])
if mode == "crash":
    import os
    os.abort()
"""


@pytest.mark.parametrize("namespaces", [True, False])
@pytest.mark.parametrize("mode", ["end", "crash", "sleep", "gil", "held"])
def test_nothing_is_left_after_the_trainer(tmp_path, subprocess_environment, mode, namespaces):
    marker = new_marker()
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    command = [sys.executable, str(script), marker, mode, str(namespaces)]
    trainer = subprocess.Popen(command, env=subprocess_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    supervisors = json.loads(trainer.stdout.readline())
    if mode in ("sleep", "gil", "held"):
        end = time.monotonic() + 10
        while not any(Path(f"/proc/{pid}/comm").read_text().strip() == "sleep" for pid in alive(marker)):
            assert time.monotonic() < end
            time.sleep(0.02)
        os.kill(trainer.pid, signal.SIGKILL)
    # Standard error is open as long as a supervisor is: the wait for its end is part of the measurement.
    ended = time.monotonic()
    trainer.communicate(timeout=20)
    assert mode in ("end", "crash") or time.monotonic() - ended < 6
    assert len(supervisors) == 2
    assert wait_until_gone(f"sleep\0{marker}") == []
    end = time.monotonic() + 3
    while any(map(is_running, supervisors)) and time.monotonic() < end:
        time.sleep(0.02)
    assert [pid for pid in supervisors if is_running(pid)] == []


def kill_when(marker, runtime):
    """Kill the first supervisor once the row has started its program."""

    def kill():
        while not alive(marker):
            time.sleep(0.02)
        os.kill(runtime.pids()[0], signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()


def test_a_supervisor_that_is_killed_takes_the_worker_along():
    marker = new_marker()
    code = f"import subprocess\nsubprocess.Popen(['sleep', '{marker}'])\nimport time\ntime.sleep(20)"
    with RewardRuntime(workers=1, deadline=15.0) as single:
        if not single.start()[0].processes:
            pytest.skip("without a process namespace only the worker itself ends with its supervisor")
        kill_when(marker, single)
        reward = IsolatedReward(run_program, runtime=single)
        assert reward(completions=[code, "result = 8"]) == [None, 8.0]
        assert wait_until_gone(marker) == []


def test_a_worker_that_ended_between_calls_costs_no_row():
    with RewardRuntime(workers=1) as single:
        reward = IsolatedReward(run_program, runtime=single)
        assert reward(completions=["result = 1"]) == [1.0]
        os.kill(single.pids()[0], signal.SIGKILL)
        time.sleep(0.1)
        assert reward(completions=["result = 2"]) == [2.0]
        assert reward.stats()["kills"] == 0


def test_a_sandbox_that_can_not_be_had_is_refused(monkeypatch, caplog):
    for wrong in ({"namespaces": False}, {"network": True}, {"read_only": False}):
        with pytest.raises(SandboxUnavailable, match="'run_program' runs untrusted"):
            IsolatedReward(run_program, runtime=RewardRuntime(workers=1, **wrong), sandbox=True)
    capabilities_module.warn_downgrade.cache_clear()
    with RewardRuntime(workers=1, namespaces=False) as bare:
        reward = IsolatedReward(run_program, runtime=bare, sandbox=True, allow_unsandboxed=True)
        assert reward(completions=["result = 2"]) == [2.0]
        assert reward(completions=["result = 3"]) == [3.0]
        assert caplog.text.count("less isolation than asked for: namespaces: switched off") == 1
        # The check of the constructor is made again on the worker that really runs the program.
        yes = Capabilities(True, True, True, True, ())
        monkeypatch.setattr(reward_module, "sandbox_capabilities", lambda settings: yes)
        with pytest.raises(SandboxUnavailable):
            IsolatedReward(run_program, runtime=bare, sandbox=True)(completions=["result = 4"])


WITHOUT_PRIVILEGES = """
from trl_grpo_ext.rewards.runtime import IsolatedReward, SandboxUnavailable, sandbox_capabilities
def one(completions, **kwargs):
    return [1.0]
print(sandbox_capabilities().sandbox)
print(IsolatedReward(one)(completions=["a"]))
try:
    IsolatedReward(one, sandbox=True)
except SandboxUnavailable:
    print("refused")
"""


@isolated
def test_a_kernel_that_grants_no_namespace(subprocess_environment):
    """A real refusal: no further user namespaces, and no capability to make the others."""
    setup = 'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all "$@"'
    command = ["unshare", "-U", "-r", "sh", "-c", setup, "sh", sys.executable, "-c", WITHOUT_PRIVILEGES]
    run = subprocess.run(command, env=subprocess_environment, capture_output=True, text=True, timeout=60)
    if run.stderr.startswith(("setpriv:", "unshare:", "sh:")):
        pytest.skip(f"this machine can't set up the refusal: {run.stderr[:200]}")
    assert run.stdout == "False\n[1.0]\nrefused\n", run.stderr
    assert run.stderr.count("less isolation than asked for") == 1
