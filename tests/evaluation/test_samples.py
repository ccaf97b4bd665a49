"""Files of samples: every row comes back, and a process that is killed while it writes leaves whole lines."""

import json
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.evaluation import SampleLog, SamplesError, read_rows, rows_of_step

TEXTS = st.text(st.characters(), max_size=40)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.fixed_dictionaries({"prompt": TEXTS, "completion": TEXTS, "step": st.integers(0, 9)}), max_size=5))
def test_rows_come_back_as_they_were(tmp_path_factory, rows):
    log = SampleLog(tmp_path_factory.mktemp("log") / "new" / "samples.jsonl")
    log.write(rows[:2])
    log.write(rows[2:])
    assert log.rows() == rows
    assert log.path.read_bytes().count(b"\n") == len(rows)
    text = log.path.read_text(encoding="utf-8", errors="surrogatepass")
    assert len(text.splitlines()) == len(rows) or any(c in text for c in "\x0b\x0c\x1c\x1d\x1e\r")


def test_a_torn_line_is_left_out_and_cut_off(tmp_path):
    log = SampleLog(tmp_path / "samples.jsonl")
    log.write([{"completion": "one"}])
    with open(log.path, "a") as file:
        file.write('{"completion": "tw')
    assert log.rows() == [{"completion": "one"}]
    log.write([{"completion": "three"}])
    assert log.rows() == [{"completion": "one"}, {"completion": "three"}]
    log.path.write_text('{"completion": "never finished"')
    log.write([{"completion": "new"}])
    assert log.rows() == [{"completion": "new"}]


def test_the_last_evaluation_of_a_step_counts():
    """Of a run whose best model was evaluated once more at its last step, and that was resumed at step 4."""
    places = [(2, 1), (4, 2), (6, 3), (6, 4), (6, 4)]
    rows = [{"step": step, "evaluation": number, "place": place} for place, (step, number) in enumerate(places)]
    assert rows_of_step(rows) == (rows[3:], 6)
    assert rows_of_step(rows, 4) == (rows[1:2], 4)
    # Files of other writers have no such number, and keep all rows of the step.
    plain = [{"step": 6}, {"step": 6}, {"step": 5}]
    assert rows_of_step(plain) == (plain[:2], 6)


def test_a_resumed_run_keeps_what_was_written_up_to_its_step(tmp_path):
    log = SampleLog(tmp_path / "samples.jsonl")
    log.keep_up_to(3)
    assert not log.path.exists()
    log.write([{"step": step} for step in (1, 2, 3, 4)])
    log.keep_up_to(3)
    assert [row["step"] for row in log.rows()] == [1, 2, 3]
    log.keep_up_to(0)
    assert log.rows() == []


WRITER = """
import sys
from trl_grpo_ext.evaluation import SampleLog
log = SampleLog(sys.argv[1])
number = 0
while True:
    log.write([{"number": number + i, "completion": "x" * 3000} for i in range(20)])
    number += 20
    print(number, flush=True)
"""


def test_what_was_written_is_there_after_a_kill(tmp_path):
    path = tmp_path / "samples.jsonl"
    for round_number in range(3):
        before = len(SampleLog(path).rows())
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        promised = [int(process.stdout.readline()) for _ in range(3 + round_number)][-1]
        time.sleep(0.003 * round_number)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        rows = SampleLog(path).rows()[before:]
        assert len(rows) >= promised
        assert [row["number"] for row in rows] == list(range(len(rows)))


def test_a_resumed_run_keeps_what_was_before_it(tmp_path):
    log = SampleLog(tmp_path / "samples.jsonl")
    log.keep_up_to(3)
    log.write([{"step": step} for step in (0, 2, 4, 6)])
    log.keep_up_to(4)
    assert [row["step"] for row in log.rows()] == [0, 2, 4]
    log.keep_up_to(0)
    assert log.rows() == []


def test_steps(tmp_path):
    rows = [{"step": 2, "n": 1}, {"step": 4, "n": 2}]
    assert rows_of_step(rows) == (rows[1:], 4)
    assert rows_of_step(rows, 2) == (rows[:1], 2)
    assert rows_of_step([{"n": 1}]) == ([{"n": 1}], None)
    with pytest.raises(SamplesError, match="there are the steps 2, 4"):
        rows_of_step(rows, 3)


@pytest.mark.parametrize(("text", "message"), [("[1]\n", "no JSON object"), ("{]\n{}\n", "line 1 is no JSON")])
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "samples.jsonl"
    path.write_text(text)
    with pytest.raises(SamplesError, match=message):
        read_rows(path)


def test_numbers_of_tensors_and_the_like_are_written_as_text(tmp_path):
    log = SampleLog(tmp_path / "samples.jsonl")
    log.write([{"path": tmp_path}])
    assert json.loads(log.path.read_text())["path"] == str(tmp_path)
