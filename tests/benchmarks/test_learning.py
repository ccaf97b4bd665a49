"""`benchmarks/learning.py` through real training: the clock, the arms, the controls, the whole script."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import learning
import learning_tasks.run
import pytest
from learning_tasks import addition, stories
from learning_tasks.arms import (
    BASELINE,
    DEFAULT_ARMS,
    FlippedReward,
    controlled,
    group_size,
    make_config,
    parse_arm,
    trainer_class,
)
from learning_tasks.run import CpuBudget, Job, load, run, train
from learning_tasks.tasks import NAMES, get_task

from trl_grpo_ext.presets import PRESETS, preset

from .conftest import REPOSITORY


@pytest.fixture
def untrained(tmp_path, monkeypatch):
    """A cache that holds an untrained model as the start of seeds 0 and 1, and few held-out problems, and few prompts in a step."""
    tokenizer = addition.quickstart.make_tokenizer()
    for seed in (0, 1):
        folder = addition.start_folder(seed, tmp_path / "cache")
        tokenizer.save_pretrained(folder)
        addition.quickstart.make_model(tokenizer, seed).save_pretrained(folder)
    monkeypatch.setattr(addition, "HELD_OUT", addition.HELD_OUT[:20])
    monkeypatch.setattr(addition, "TASK", replace(addition.TASK, prompts=4))
    return tmp_path / "cache"


def job(cache, arm="trl", cpu_seconds=0.5, control="none"):
    return Job("addition", arm, control, 0, cpu_seconds, cache)


def test_a_run_ends_with_the_step_that_uses_up_the_budget_and_evaluation_is_free(untrained, monkeypatch):
    task, arm = get_task("addition"), parse_arm("trl")
    model, tokenizer = load(addition.start(0, untrained))
    clock, measured = SimpleNamespace(now=100.0), []
    monkeypatch.setattr(learning_tasks.run, "time", SimpleNamespace(process_time=lambda: clock.now))

    def reward(completions, **kwargs):
        clock.now += 0.4
        return [0.0] * len(completions)

    def evaluate():
        clock.now += 5.0
        measured.append(round(clock.now, 6))
        return 0.25

    budget = CpuBudget(1.0, evaluate, shares=(0.3, 0.35, 0.75))
    assert train(replace(task, reward=reward), arm, job(untrained), model, tokenizer, budget) == 3
    assert budget.used == pytest.approx(1.2)
    # Shares that fall into one step have one measurement.
    assert [share for share, _ in budget.curve] == [0.3, 0.35, 0.75]
    assert measured == [105.4, 110.8]


def test_the_learning_rate_warms_up_and_falls_to_zero_with_the_clock(monkeypatch):
    budget = CpuBudget(10.0, lambda: 0.0)
    assert [budget.factor(step) for step in (0, 1, 4, 50)] == pytest.approx([0.2, 0.4, 1.0, 1.0])
    for spent, expected in ((2.5, 0.75), (10.0, 0.0), (12.0, 0.0)):
        monkeypatch.setattr(budget, "spent", lambda spent=spent: spent)
        assert budget.factor(50) == pytest.approx(expected)


def test_measuring_leaves_the_training_as_it_was(untrained):
    import torch

    model, tokenizer = load(addition.start(0, untrained))
    model.train()
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, second = (addition.evaluate(model, tokenizer) for _ in range(2))
    assert first == second
    assert model.training and torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", DEFAULT_ARMS)
def test_every_arm_trains(untrained, name):
    task, arm = get_task("addition"), parse_arm(name)
    model, tokenizer = load(addition.start(0, untrained))
    before = model.state_dict()["model.norm.weight"].clone()
    # An untrained model gets no sum right: a reward that every group disagrees about.
    task = replace(task, reward=lambda completions, **_: [float(len(set(c))) for c in completions])
    assert train(task, arm, job(untrained, name), model, tokenizer, CpuBudget(1e-9, lambda: 0.0, shares=())) == 1
    assert not before.equal(model.state_dict()["model.norm.weight"])


@pytest.mark.parametrize("name", PRESETS)
def test_configurations_hold_the_preset_and_nothing_else_of_the_loss(name, tmp_path):
    arm, task = parse_arm(f"{name}@2"), get_task("addition")
    config = make_config(arm, task, seed=7, output_dir=str(tmp_path))
    assert (config.num_iterations, config.seed) == (2, 7)
    for option, value in preset(name).items():
        assert getattr(config, option) == value, option
    defaults = make_config(parse_arm(BASELINE), task, seed=7, output_dir=str(tmp_path))
    for option in ("beta", "temperature", "delta", "mask_truncated_completions"):
        assert getattr(config, option) == getattr(defaults, option), option
    assert config.per_device_train_batch_size == task.prompts * group_size(arm, task)
    assert group_size(arm, task) == (9 if name == "mc_grpo" else 8)


def test_the_baseline_is_stock_trl():
    import trl

    assert trainer_class(parse_arm("trl")) is trainer_class(parse_arm("trl@2")) is trl.GRPOTrainer
    assert trainer_class(parse_arm("grpo")).__name__ == "ExtendedGRPOTrainer"


def test_controls():
    rewards = list(map(float, range(64)))

    def reward(completions, **kwargs):
        return rewards

    assert controlled(reward, "none", 0) is reward
    assert controlled(reward, "flipped", 0)(completions=[]) == [-value for value in rewards]
    assert isinstance(controlled(reward, "flipped", 0), FlippedReward)
    shuffled = controlled(reward, "shuffled", 0)(completions=[])
    assert shuffled != rewards and sorted(shuffled) == rewards


@pytest.mark.parametrize("name", NAMES)
def test_held_out_prompts_are_not_trained_on(name):
    trained = {row["prompt"] for row in get_task(name).rows}
    held_out = {row["prompt"] for row in addition.HELD_OUT} if name == "addition" else set(stories.HELD_OUT)
    assert trained and held_out and not trained & held_out


def test_the_rule_of_the_stories():
    repeated = "one two three four one two three four"
    texts = ["a Dog ran", repeated, f"the cat said {repeated}", "no one came"]
    assert stories.animal_story(completions=texts) == [1.5, 0.0, 1.0, 0.5]


def test_supervised_rows_have_labels_on_the_answer_only():
    tokenizer = addition.quickstart.make_tokenizer()
    rows = [{"prompt": "1+2=", "solution": "3"}, {"prompt": "47+85=", "solution": "231"}]
    batch = addition.sft_batch(tokenizer, rows)
    assert [tokenizer.decode(label[label >= 0]) for label in batch["labels"]] == ["3<eos>", "231<eos>"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--presets", "grop"], "preset must be one of"),
        (["--presets", "grpo@0"], "num_iterations, a whole number from 1 on"),
        (["--presets", "grpo@x"], "num_iterations, a whole number from 1 on"),
        (["--tasks", "sums"], "--tasks must be of addition, stories, not 'sums'"),
        (["--seeds", "0"], "--seeds must be 1 to 10, not 0"),
        (["--seeds", "11"], "--seeds must be 1 to 10, not 11"),
        (["--cpu-seconds", "nan"], "--cpu-seconds must be above 0"),
        (["--processes", "0"], "--processes must be 1 or more"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(arguments, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        learning.parse(arguments)
    assert said in capsys.readouterr().err


def test_the_default_run_fits_its_half_hour_and_the_baseline_is_always_there(monkeypatch):
    options = learning.parse(["--presets", "grpo"])
    assert options.presets == ["trl", "grpo"]
    full = learning.parse([])
    # Two cores, a tenth on top for set-up and evaluation, two minutes for imports and the warm starts.
    assert sum(job.cpu_seconds for job in learning.jobs(full)) * 1.1 / 2 + 120 < 30 * 60


def test_the_script_writes_what_it_prints(untrained, tmp_path, capsys):
    arguments = ["--tasks", "addition", "--seeds", "1", "--presets", "trl", "--cpu-seconds", "0.2", "--processes", "1"]
    status = learning.main([*arguments, "--cache", str(untrained), "--output", str(tmp_path / "out")])
    document = json.loads((tmp_path / "out" / "learning.json").read_text())
    assert set(document) == {"name", "environment", "results", "goals"}
    runs = [row for row in document["results"] if row["kind"] == "run"]
    assert [row["control"] for row in runs] == ["none", "shuffled", "flipped"]
    assert all(row["steps"] >= 1 and row["cpu_seconds"] >= 0.2 for row in runs)
    assert [len(row["curve"]) for row in runs] == [4, 4, 4]
    # An untrained model adds nothing up: the goal is missed, and said to be.
    assert not document["goals"][0]["met"] and status == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"learning.json", "learning.csv", "learning.png"}
    printed = capsys.readouterr().out
    assert "UNMET" in printed and "one seed" in printed
    assert learning.main(["--table", str(tmp_path / "out" / "learning.json")]) == 0
    assert "| `trl`, flipped rewards |" in capsys.readouterr().out


def test_one_failed_run_does_not_lose_the_others(untrained, tmp_path, monkeypatch, capsys):
    def sometimes(job):
        if job.control == "shuffled":
            raise RuntimeError("out of luck")
        return run(job)

    monkeypatch.setattr(learning, "run", sometimes)
    arguments = ["--tasks", "addition", "--seeds", "1", "--presets", "trl", "--cpu-seconds", "0.1", "--processes", "1"]
    assert learning.main([*arguments, "--cache", str(untrained), "--output", str(tmp_path / "out")]) == 1
    document = json.loads((tmp_path / "out" / "learning.json").read_text())
    assert [row["control"] for row in document["results"] if row["kind"] == "run"] == ["none", "flipped"]
    assert "FAILED addition trl shuffled seed 0: RuntimeError('out of luck')" in capsys.readouterr().err


def test_a_task_whose_model_is_not_there_is_left_out_with_a_word(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(stories, "TASK", replace(stories.TASK, missing="no such model"))
    assert learning.main(["--tasks", "stories", "--output", str(tmp_path)]) == 1
    assert "stories is left out: no such model" in capsys.readouterr().out


@pytest.mark.slow
def test_the_quick_setting_learns_within_its_two_minutes(tmp_path):
    command = [sys.executable, "benchmarks/learning.py", "--quick", "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--cache", str(tmp_path / "cache")], cwd=REPOSITORY, capture_output=True, text=True
    )
    document = json.loads((tmp_path / "out" / "learning.json").read_text())
    assert (done.returncode == 0) == all(goal["met"] for goal in document["goals"]), done.stderr
    tasks = document["environment"]["tasks"]
    assert len([row for row in document["results"] if row["kind"] == "run"]) == 4 * len(tasks)
    # Shuffled and flipped rewards unlearn addition within seconds, whatever the machine's load.
    gains = {r["control"]: r["greedy_end"] - r["greedy_start"] for r in document["results"] if "greedy_start" in r}
    assert gains["flipped"] < -0.05
