"""Abort reaches the reward workers too: LLaMA Board sends its signal to every process of the run."""

from __future__ import annotations

import os
import threading
import time

import pytest

from tests.board.chrome import until
from trl_grpo_ext.rewards import IsolatedReward

pytestmark = pytest.mark.line_a


def slow(completions, **kwargs):
    time.sleep(2)
    return [1.0] * len(completions)


def test_a_call_that_is_under_way_gives_its_rewards() -> None:
    from llamafactory.webui.common import abort_process
    from psutil import Process

    reward, given = IsolatedReward(slow, deadline=30), []
    assert reward(prompts=["p"], completions=["warm"]) == [1.0]
    call = threading.Thread(target=lambda: given.append(reward(prompts=["p"], completions=["text"])))
    call.start()
    time.sleep(0.5)
    children = until(lambda: Process(os.getpid()).children(), "the worker", 10)
    for child in children:
        abort_process(child.pid)
    call.join(timeout=30)
    assert given == [[1.0]]
