"""`isolate_reward_funcs`: what goes into a worker process, what stays, and what is kept of the function."""

import inspect
import os
import pickle
import time

import pytest

from trl_grpo_ext import check_reward_columns, exact_match
from trl_grpo_ext.rewards import IsolatedReward, RewardError, RewardIsolation, isolate_reward_funcs

FILE = '''
import os
import threading
import time

from trl_grpo_ext.rewards import HTTPReward, ScalarReward, TagFormat
from trl_grpo_ext.rewards.composition import CompositeReward

LOCK = threading.Lock()  # no pickle could carry it
CALLS = []

def place(completions, solution, **kwargs):
    """Where it runs."""
    CALLS.append(len(completions))
    return [float(os.getpid())] * len(completions)

def calls(completions, **kwargs):
    with LOCK:
        return [float(len(CALLS))] * len(completions)

def hangs(completions, **kwargs):
    time.sleep(60)

def breaks(completions, **kwargs):
    raise KeyError("here")

async def later(completions, **kwargs):
    return [2.0] * len(completions)

class Needs:
    __name__ = "needs"
    def __call__(self, completions, **kwargs):
        return [float(os.getpid())] * len(completions)

def scalar(response):
    return float(os.getpid())

needs = Needs()
adapted = ScalarReward(scalar)
service = HTTPReward("http://127.0.0.1:9")
composite = CompositeReward([place])
tags = TagFormat(name="tags")
'''
ROWS = {"prompts": ["a", "b", "c"], "completions": ["x", "y", "z"], "completion_ids": [[1]] * 3, "solution": ["x"] * 3}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(FILE)
    return path


def isolated(file, *names, **options):
    return isolate_reward_funcs([f"{file}:{name}" for name in names], isolation=RewardIsolation(**options))


def test_functions_of_a_file_share_one_worker_and_see_all_rows(file):
    place, calls = isolated(file, "place", "calls")
    assert isinstance(place, IsolatedReward)
    assert calls(**ROWS) == [0.0] * 3
    place(**ROWS)
    place(**ROWS)
    assert calls(**ROWS) == [2.0] * 3, "one call for all rows, in the process that has run the others"
    assert place.runtime is calls.runtime and len(place.runtime.pids()) == 1
    assert place.runtime.pids()[0] != os.getpid()


def test_name_signature_and_doc_stay(file):
    (place,) = isolated(file, "place")
    assert place.__name__ == "place" and place.__doc__ == "Where it runs."
    assert "solution" in inspect.signature(place).parameters
    with pytest.raises(ValueError, match="'place' needs the argument 'solution'"):
        check_reward_columns(place, ["prompt"])
    assert pickle.loads(pickle.dumps(place)).__name__ == "place"


def test_what_goes_and_what_stays(file):
    names = ("needs", "adapted", "service", "composite", "tags")
    needs, adapted, service, composite, tags = isolated(file, *names)
    assert isinstance(needs, IsolatedReward) and isinstance(adapted, IsolatedReward)
    for reward in (service, composite, tags):
        assert not isinstance(reward, IsolatedReward)
    assert isolate_reward_funcs(["exact_match", exact_match.__call__])[0] is exact_match
    assert adapted.__name__ == "scalar"


def test_an_async_function_is_awaited_in_its_worker(file):
    assert isolated(file, "later")[0](**ROWS) == [2.0] * 3


def test_a_hanging_function_is_killed(file):
    (hangs,) = isolated(file, "hangs", timeout=0.5, errors="skip")
    began = time.monotonic()
    assert hangs(**ROWS) == [None] * 3
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(("errors", "expected"), [("skip", [None] * 3), (-1.5, [-1.5] * 3)])
@pytest.mark.parametrize("in_process", [False, True])
def test_policies(file, errors, expected, in_process):
    assert isolated(file, "breaks", errors=errors, in_process=in_process)[0](**ROWS) == expected


def test_the_users_line_is_in_the_error(file):
    line = next(number for number, text in enumerate(FILE.splitlines(), 1) if 'KeyError("here")' in text)
    with pytest.raises(RewardError, match=f'File "{file}", line {line}, in breaks'):
        isolated(file, "breaks")[0](**ROWS)
    with pytest.raises(KeyError, match="here"):
        isolated(file, "breaks", in_process=True)[0](**ROWS)


def test_in_process_runs_here(file):
    (place,) = isolated(file, "place", in_process=True)
    assert place(**ROWS) == [float(os.getpid())] * 3
    with pytest.raises(ValueError, match="'later' is async"):
        isolated(file, "later", in_process=True)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_deadline_that_is_none(timeout):
    with pytest.raises(ValueError, match="timeout must be above 0 seconds"):
        RewardIsolation(timeout=timeout)


def test_relative_paths_and_repeated_names(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    assert isolate_reward_funcs("own.py:later", tmp_path)[0](**ROWS) == [2.0] * 3
    with pytest.raises(ValueError, match="Two reward functions have the name 'later'"):
        isolated(file, "later", "later")
