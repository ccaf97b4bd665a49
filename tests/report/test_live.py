"""LiveCallback in a pipe and in a real terminal (a pseudo-terminal), on both trainers."""

import io
import os
import pty
import re
import threading

import pytest

from tests.conformance.runs import assert_same, build_model, extended, parameters, stock, trained, wordy
from trl_grpo_ext.report import Completion, LiveCallback
from trl_grpo_ext.report.lines import FIRST_STEP, duration, figures, group_lines, number, one_line, status_line

MAKE = {"stock": stock, "extended": extended}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("model"))


def sevens(completions, **kwargs):
    return [float(text.count("7")) for text in completions]


@pytest.mark.parametrize("make", MAKE)
def test_plain_lines(make, model, tmp_path, capsys):
    stream = io.StringIO()
    callback = LiveCallback(group_every=2, stream=stream)
    settings = {"reward": [wordy, sevens], "beta": 0.1, "eval_strategy": "steps", "eval_steps": 2}
    trainer = MAKE[make](model, tmp_path, callbacks=[callback], per_device_eval_batch_size=8, **settings)
    trainer.train()
    lines = stream.getvalue().splitlines()
    steps = [line for line in lines if re.match(r"step \d/3 \| ", line)]
    assert len(steps) == 3 and lines.count(FIRST_STEP) == 1 and lines[1] == FIRST_STEP
    for line, entry in zip(steps, (item for item in trainer.state.log_history if "loss" in item), strict=True):
        shown = dict(part.rsplit(" ", 1) for part in line.split(" | "))
        assert shown["reward"] == f"{entry['reward']:.3f}" and shown["sevens"] == f"{entry['rewards/sevens/mean']:.3f}"
        assert shown["kl"] == f"{entry['kl']:.4f}" and shown["dead groups"] == f"{entry['frac_reward_zero_std']:.0%}"
    assert "tokens/s" in steps[2] and steps[2].endswith("left 0:00")
    groups = [place for place, line in enumerate(lines) if "one group:" in line]
    assert len(groups) == 2
    for place in groups:
        advantages = [float(line.split()[0]) for line in lines[place + 1 : place + 5]]
        assert advantages == sorted(advantages, reverse=True) and advantages[0] > 0
        for line in lines[place + 1 : place + 5]:
            text = line.split("  ", 3)[-1].split("  ")[-1]
            assert f"sevens {text.count('7')}" in line
    assert any(line.startswith("step 2, evaluation | reward ") for line in lines)
    assert "{'loss'" not in capsys.readouterr().out


def test_a_terminal_shows_a_bar_and_training_is_the_same(model, tmp_path):
    ours, theirs = pty.openpty()
    os.environ.pop("NO_COLOR", None)
    seen = []

    def read():
        try:
            while data := os.read(ours, 4096):
                seen.append(data)
        except OSError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with open(theirs, "w") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        patch.setenv("COLUMNS", "140")
        shown = trained(stock(model, tmp_path / "one", callbacks=[LiveCallback(stream=stream)], reward=brackets))
    reader.join(timeout=10)
    os.close(ours)
    text = b"".join(seen).decode()
    assert "\x1b[" in text and "3/3" in text and "A loss near 0 is normal" in text and "reward" in text
    # Rewards' text is shown as it is, also where rich would take it for markup.
    assert "one group:" in text and "\x1b[?25h" in text
    assert_same(parameters(shown), parameters(trained(stock(model, tmp_path / "two", reward=brackets))), tolerance=0.0)


def brackets(completions, **kwargs):
    return wordy(completions)


def test_the_bar_of_transformers_is_silent(model, tmp_path, capfd):
    trained(stock(model, tmp_path, callbacks=[LiveCallback(0)], disable_tqdm=False))
    error = capfd.readouterr().err
    assert (
        "it/s]" not in error.split("step 1/3")[1]
        and "one group" not in error
        and len(re.findall(r"step \d/3 \| ", error)) == 3
    )


def test_lines_by_hand():
    logs = {"loss": 0.0, "reward": 0.5, "rewards/a/mean": 1.0, "rewards/a/std": 3.0, "rewards/b/mean": 0.0}
    logs |= {"frac_reward_zero_std": 0.25, "kl": float("nan"), "completions/mean_length": 12.4}
    shown = figures(logs, 1234.5, 70)
    assert status_line(3, 9, shown) == (
        "step 3/9 | reward 0.500 | a 1.000 | b 0.000 | dead groups 25% | length 12 | loss 0.0000 | tokens/s 1,234 | left 1:10"
    )
    assert duration(3723.4) == "1:02:03" and duration(-1) == "0:00"
    assert one_line("a\n b\x1b[31m" + "c" * 20, 10) == "a b [31mc…"
    group = [Completion("bad", {"r": 0.0}, -1.0), Completion("good", {"r": None}, 1.0)]
    assert group_lines(1, "p", group) == ["step 1, one group: p", "  +1.00  r none  good", "  -1.00  r 0  bad"]
    assert number(float("nan")) == "none"


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="group_every"):
        LiveCallback(-1)
    with pytest.raises(TypeError, match="needs a GRPOTrainer"):
        LiveCallback().on_train_begin(None, None, None)
