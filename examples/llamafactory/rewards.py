"""Reward functions of your own for `reward_funcs: rewards.py:<name>`, in three conventions.

Each runs in a worker process with `grpo_reward_timeout` seconds per call, without network, and may write to its
scratch folder only; read further files beside this one by `Path(__file__).parent`.
"""

from trl_grpo_ext.rewards import ScalarReward, VerlReward


def short_working(completions, solution, log_metric=None, **kwargs):
    """TRL's convention, all completions at once: 1 up to 600 characters, falling to 0 at 1200.

    `solution` is the dataset's response; `log_metric` puts a figure beside the trainer's own.
    """
    lengths = [len(completion[0]["content"]) for completion in completions]
    if log_metric is not None:
        log_metric("short_working/characters", sum(lengths) / len(lengths))
    return [min(max((1200 - length) / 600, 0.0), 1.0) for length in lengths]


def ends_with_answer(response):
    """One completion at a time: the last line is `#### ` and something."""
    lines = response.strip().splitlines()
    return float(bool(lines) and lines[-1].startswith("#### ") and len(lines[-1]) > 5)


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """verl's convention: the score, and details that are logged beside it."""
    given, wanted = (text.rpartition("####")[2].strip().replace(",", "") for text in (solution_str, ground_truth))
    return {"score": float(given == wanted), "answered": float("####" in solution_str)}


answer_form = ScalarReward(ends_with_answer, name="answer_form")
verl_score = VerlReward(compute_score, data_source="gsm8k", name="verl_score")
