"""Probes tell a reward that reads the answer from one that does not."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_grpo_ext.rewards import exact_match, gsm8k_number, probe_table, total_report
from trl_grpo_ext.rewards.composition import CompositeReward
from trl_grpo_ext.rewards.probes import ProbeError, corrupted, probe_reward, probe_texts

GOLDS = ["It is 3.\n#### 3", "#### 12", "#### 100"]
PROMPTS = [[{"role": "user", "content": "?"}]] * 3


def constant(completions: list[Any], **kwargs: Any) -> list[float]:
    return [1.0] * len(completions)


def long_is_good(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(len(completion[0]["content"])) for completion in completions]


@given(st.text(max_size=40), st.lists(st.text(max_size=10), max_size=3))
def test_a_corrupted_answer_is_another_text_unless_it_cannot_be(gold: str, others: list[str]) -> None:
    wrong = corrupted(gold, others)
    assert wrong != gold or gold == gold[::-1]


def test_a_number_is_raised_by_one() -> None:
    assert corrupted("so 3 + 4 = 9", []) == "so 3 + 4 = 10"
    assert corrupted("yes", ["yes", "no"]) == "no"


@pytest.mark.parametrize("reward", [exact_match, gsm8k_number])
def test_a_reward_that_reads_the_answer_separates(reward: Any) -> None:
    report = probe_reward(reward, PROMPTS, GOLDS, {"solution": GOLDS})
    assert (report.means["gold"], report.means["corrupted"], report.means["empty"]) == (1.0, 0.0, 0.0)
    assert report.separates == 1.0 and not report.is_flagged and report.spread > 0 and report.seconds > 0


@pytest.mark.parametrize("reward", [constant, long_is_good])
def test_a_reward_that_does_not_is_flagged(reward: Any) -> None:
    report = probe_reward(reward, PROMPTS, GOLDS, {"solution": GOLDS})
    assert report.is_flagged
    assert "DOES NOT SEPARATE" in probe_table([report])


def test_a_reward_that_skips_every_row_has_no_mean_and_is_flagged() -> None:
    def skips(completions: list[Any], **kwargs: Any) -> list[None]:
        return [None] * len(completions)

    report = probe_reward(skips, PROMPTS, GOLDS, {})
    assert math.isnan(report.means["gold"]) and report.is_flagged


def test_a_reward_that_raises_is_told_with_the_probe() -> None:
    def fragile(completions: list[Any], **kwargs: Any) -> list[float]:
        return [float(completion[0]["content"].split()[-1]) for completion in completions]

    with pytest.raises(ProbeError, match=r"fragile raised IndexError on the probe 'empty'"):
        probe_reward(fragile, PROMPTS, ["a 1", "b 2", "c 3"], {})


def test_every_probe_has_one_text_per_row() -> None:
    assert {len(texts) for texts in probe_texts(GOLDS).values()} == {3}


def test_the_report_tells_columns_skips_and_time() -> None:
    def every_other(completions: list[Any], solution: list[Any], **kwargs: Any) -> list[Any]:
        return [None if row % 2 else 1.0 for row in range(len(completions))]

    report = probe_reward(every_other, PROMPTS, GOLDS, {"solution": GOLDS, "level": [1, 2, 3], "trainer_state": None})
    assert report.reads == ("solution",) and 0.3 < report.skipped < 0.7
    header, line = probe_table([report]).splitlines()
    assert header.split()[-1] == "reads" and "solution" in line


def test_a_reward_that_pays_a_text_without_an_answer_is_flagged() -> None:
    def fooled(completions: list[Any], solution: list[Any], **kwargs: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        return [float(text == gold or text.startswith("Thought")) for text, gold in zip(texts, solution, strict=True)]

    report = probe_reward(fooled, PROMPTS, GOLDS, {"solution": GOLDS})
    assert report.separates == 1.0 and report.overpaid == "master key" and report.is_flagged
    assert "PAYS 'master key'" in probe_table([report])


@pytest.mark.parametrize("group_size", [1, 2, 4, 8])
def test_rewards_that_compare_a_group_are_probed_in_groups(group_size: int) -> None:
    """Each call has whole groups of one prompt, the gold answer and its corrupted twin in the same one."""
    ranked = CompositeReward(
        [exact_match],
        normalisation="none" if group_size == 1 else "rank",
        group_size=group_size if group_size > 1 else None,
    )
    prompts = [[{"role": "user", "content": str(row)}] for row in range(3)]
    report = probe_reward(ranked, prompts, GOLDS, {"solution": GOLDS}, group_size)
    assert report.separates == 1.0 and not report.is_flagged
    assert all(len(values) == 3 for values in report.given.values())


def test_the_first_call_is_not_timed() -> None:
    import time

    calls: list[int] = []

    def slow_start(completions: list[Any], **kwargs: Any) -> list[float]:
        if not calls:
            time.sleep(0.5)
        calls.append(len(completions))
        return [0.0] * len(completions)

    assert probe_reward(slow_start, PROMPTS, GOLDS, {}).seconds * 15 < 0.25
    assert calls == [5, 15]


def test_the_total_is_the_weighted_sum_of_what_is_judged() -> None:
    good = probe_reward(exact_match, PROMPTS, GOLDS, {"solution": GOLDS})
    form = probe_reward(long_is_good, PROMPTS, GOLDS, {})
    free = probe_reward(constant, PROMPTS, GOLDS, {}, judged=False)
    assert free.verdict == "reads no label" and not free.is_flagged
    total = total_report([good, form, free], [10.0, 0.0, 5.0])
    assert total.means["gold"] == 10.0 and total.means["empty"] == 0.0 and not total.is_flagged
    drowned = total_report([good, form], [0.0, 1.0])
    assert drowned.is_flagged
