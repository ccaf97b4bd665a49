"""What is shown while a run is at work: a table on a real terminal, lines elsewhere."""

import io
import os
import pty
from contextlib import suppress

import pytest

from trl_grpo_ext.training_free import Progress, Spending, shown_progress
from trl_grpo_ext.training_free.live import PlainLines, progress_figures

SPENT = Spending(calls=1234, failures=5, prompt_tokens=60000, completion_tokens=700, cost=0.125)


def at(step, rewards=()):
    return Progress(step, 4, SPENT, 7, tuple(rewards))


def test_everything_that_is_asked_for_is_shown():
    figures = progress_figures(at(1, [0.25]), 3723.9)
    assert figures == {
        "step": "2/4",
        "calls": "1,234 (5 failed)",
        "tokens": "60,000 + 700",
        "cost": "0.1250",
        "lessons": "7",
        "reward by step": "0.250",
        "time": "1:02:03",
    }
    assert progress_figures(at(0), 0)["reward by step"] == "-"
    assert progress_figures(at(9, [0.1 * n for n in range(10)]), 0)["reward by step"].startswith("... 0.200 ")


def test_lines_come_with_steps_and_with_time():
    now, file = [0.0], io.StringIO()
    show = PlainLines(file, every=30, clock=lambda: now[0])
    for seconds, rewards in ((1, ()), (2, ()), (31, ()), (40, ()), (41, (0.5,)), (42, (0.5,)), (71, (0.5,))):
        now[0] = seconds
        show(at(len(rewards), rewards))
    lines = file.getvalue().splitlines()
    assert [line.rpartition("time ")[2] for line in lines] == ["0:00:31", "0:00:41", "0:01:11"]
    assert lines[1].startswith("step 2/4, calls 1,234 (5 failed)")


def shown_on_a_terminal():
    leader, follower = pty.openpty()
    with open(follower, "w", encoding="utf-8") as file, shown_progress(file, every=0) as show:
        show(at(2, [0.25, 0.5]))
    # What was written is kept until it is read; then a terminal without another end is an error.
    parts = []
    with suppress(OSError):
        while part := os.read(leader, 100_000):
            parts.append(part)
    os.close(leader)
    return b"".join(parts).decode()


def test_a_terminal_has_a_table():
    pytest.importorskip("rich")
    text = shown_on_a_terminal()
    assert "Training-Free GRPO" in text and "0.250 0.500" in text and "1,234 (5 failed)" in text and "\x1b[" in text


def test_without_rich_a_terminal_has_lines(monkeypatch):
    monkeypatch.setattr("trl_grpo_ext.training_free.live._rich", lambda: None)
    text = shown_on_a_terminal()
    assert text.startswith("step 3/4, calls 1,234 (5 failed)") and "\x1b[" not in text


def test_a_pipe_has_lines():
    file = io.StringIO()
    with shown_progress(file, every=0) as show:
        show(at(0))
    assert file.getvalue().startswith("step 1/4")
