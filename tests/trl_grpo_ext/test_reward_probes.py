"""Probes tell a reward that reads the answer from one that does not."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_grpo_ext.rewards import exact_match, gsm8k_number
from trl_grpo_ext.rewards.probes import ProbeError, corrupted, probe_reward, probe_table, probe_texts

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
