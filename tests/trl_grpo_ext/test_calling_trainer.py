"""Groups and mode of the trainer that calls a reward: both are read from it, in training and in evaluation."""

import subprocess
import sys
from pathlib import Path

import pytest

from trl_grpo_ext.rewards.adapters import ScalarReward
from trl_grpo_ext.rewards.calling_trainer import calling_trainer, in_evaluation, rows_per_group
from trl_grpo_ext.rewards.composition import CompositeReward, RewardMetricsCallback, find_groups
from trl_grpo_ext.rewards.label_free import RankedReward, SelfConsistencyReward


class Watched:
    """Keeps, per call, the mode, the sizes of the groups and the rows."""

    def __init__(self):
        self.__name__, self.calls = "watched", []

    def __call__(self, prompts, completions, **kwargs):
        sizes = {len(group) for group in find_groups(prompts)}
        self.calls.append((in_evaluation(), sizes, len(completions)))
        return [float(len(completion)) for completion in completions]


def with_evaluation(**settings):
    return {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8, **settings}


def test_a_call_by_hand_has_no_trainer():
    assert calling_trainer() is None
    assert rows_per_group() is None
    assert not in_evaluation()


def test_repeated_prompts_are_told_apart_and_evaluation_is_known(make_tiny_trainer):
    """One prompt in every row: the prompts alone would make one group of 16."""
    watched = Watched()
    rows = [{"prompt": "say "}] * 32
    trainer = make_tiny_trainer([watched], rows, 2, eval_rows=rows[:3], **with_evaluation())
    trainer.train()
    # Three evaluation rows are 12 completions: a last batch of 4.
    assert set(map(str, watched.calls)) == {
        str((False, {4}, 16)),
        str((True, {4}, 8)),
        str((True, {4}, 4)),
    }


@pytest.mark.line_b
def test_evaluation_may_have_groups_of_its_own(make_tiny_trainer):
    watched = Watched()
    rows = [{"prompt": "say "}] * 32
    trainer = make_tiny_trainer([watched], rows, 1, eval_rows=rows[:4], **with_evaluation(num_generations_eval=2))
    trainer.train()
    assert {(mode, *sizes) for mode, sizes, _ in watched.calls} == {(False, 4), (True, 2)}
    ranked = RankedReward(lambda completions, **kwargs: [len(c) for c in completions], group_size=4, name="r")
    make_tiny_trainer([ranked], rows, 1, eval_rows=rows[:4], **with_evaluation(num_generations_eval=2)).train()


def test_another_group_size_than_the_trainers_is_refused(make_tiny_trainer):
    ranked = RankedReward(lambda completions, **kwargs: [len(c) for c in completions], group_size=8, name="r")
    with pytest.raises(ValueError, match=r"group_size must be the trainer's num_generations \(4\), not 8"):
        make_tiny_trainer([ranked], [{"prompt": "say "}] * 32, 1).train()


def test_evaluation_leaves_the_mode_window_as_it_is(make_tiny_trainer):
    vote = SelfConsistencyReward(extract=lambda text: "7", min_mode_prompts=1)
    rows, others = [{"prompt": "say "}] * 32, [{"prompt": f"1 {'#' * i}"} for i in range(4)]
    make_tiny_trainer([vote], rows, 2, eval_rows=others, **with_evaluation()).train()
    assert list(vote._window._winners) == ["'say '"]


SPLIT_GROUP = """
import sys
from pathlib import Path
from adapter_runs import make_model, make_tokenizer, make_trainer
from trl_grpo_ext.rewards.label_free import SelfConsistencyReward
tokenizer, rows = make_tokenizer(), [{"prompt": "say "}] * 32
rewards = [SelfConsistencyReward()]
make_trainer(make_model(tokenizer), tokenizer, Path(sys.argv[1]), rewards, rows, 1, per_device_train_batch_size=2).train()
"""


@pytest.mark.slow
def test_a_group_that_lies_on_two_ranks_is_refused(subprocess_environment, tmp_path):
    script = tmp_path / "split.py"
    folder = Path(__file__).parent
    script.write_text(SPLIT_GROUP)
    environment = subprocess_environment | {"PYTHONPATH": f"{subprocess_environment['PYTHONPATH']}:{folder}"}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), str(tmp_path)]
    done = subprocess.run([sys.executable, *launch], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "group_size must divide the rows of a reward call (2), not be 4" in done.stderr


@pytest.mark.parametrize("evaluate", [False, True])
def test_logged_figures_are_those_of_training(make_tiny_trainer, evaluate):
    """On every TRL: errors and skips of adapters, and what a composite skipped, as means over the logging interval.

    With evaluation after each step, every second of which trains on the generation of the step before.
    """

    def length(response):
        if response[:1] in ("1", "7"):
            raise ValueError("no verdict")
        return float(len(response))

    reward = CompositeReward([ScalarReward(length, on_error="skip")], missing="omit", name="sum")
    failed = []

    def count(completions, **kwargs):
        if not in_evaluation():
            failed.append(sum(text[:1] in ("1", "7") for text in completions))
        return [0.0] * len(completions)

    settings = with_evaluation(steps_per_generation=2) if evaluate else {"per_device_train_batch_size": 32}
    rows, others = [{"prompt": "say "}] * 32, [{"prompt": "# "}] * 2
    callbacks = [RewardMetricsCallback(reward)]
    trainer = make_tiny_trainer(
        [reward, count], rows, 4, callbacks=callbacks, eval_rows=others, logging_steps=2, **settings
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    means = failed if evaluate else [(failed[0] + failed[1]) / 2, (failed[2] + failed[3]) / 2]
    assert len(set(failed)) > 1
    assert [entry["rewards/length/errors"] for entry in logs] == pytest.approx(means)
    assert [entry["rewards/length/skips"] for entry in logs] == pytest.approx(means)
    assert [entry["sum/length/skipped"] for entry in logs] == pytest.approx([mean / 32 for mean in means])
