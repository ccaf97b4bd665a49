"""The curriculum without a trainer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.curriculum import Curriculum, CurriculumSampler


class Repeat:
    """What is read of TRL's RepeatSampler."""

    def __init__(self, num_samples, batch_size, mini_repeat_count=2, repeat_count=2):
        self.num_samples, self.batch_size = num_samples, batch_size
        self.mini_repeat_count, self.repeat_count = mini_repeat_count, repeat_count

    def __len__(self):
        return self.num_samples // self.batch_size * self.batch_size * self.mini_repeat_count * self.repeat_count


def curriculum(difficulties=tuple(range(10)), band=(0.25, 0.75), step=0.1, seed=0):
    return Curriculum(difficulties, band, step, seed)


def test_the_target_follows_the_solve_rate_and_rests_inside_the_band():
    one = curriculum()
    assert one.target == 0.0
    assert one.observe(0.9) == pytest.approx(0.9)
    assert one.observe(0.5) == pytest.approx(0.9)
    assert one.observe(0.1) == pytest.approx(0.0)
    assert one.observe(0.0) == 0.0
    for _ in range(20):
        one.observe(1.0)
    assert one.target == 9.0


def test_it_holds_the_solve_rate_of_a_simulated_learner_in_the_band():
    """A prompt is solved with probability 1 / (1 + exp(difficulty - skill)), skill growing slowly."""
    generator = torch.Generator().manual_seed(1)
    one = curriculum([i / 100 for i in range(1000)], band=(0.4, 0.6), step=0.02)
    rates, skill = [], 2.0
    for _ in range(120):
        difficulty = one.difficulties[one.draw(8)]
        chance = torch.sigmoid(skill - difficulty).repeat_interleave(32)
        rate = (torch.rand(len(chance), generator=generator) < chance).float().mean().item()
        one.observe(rate)
        rates.append(rate)
        skill += 0.02
    late = rates[30:]
    assert 0.4 <= sum(late) / len(late) <= 0.6
    assert sum(0.25 <= rate <= 0.75 for rate in late) / len(late) > 0.9


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 3))
def test_chunks_are_distinct_prompts_and_an_epoch_has_the_stock_length(rows, batch, seed):
    sampler = CurriculumSampler(Repeat(rows, batch), curriculum(range(rows), seed=seed))
    indices = list(sampler)
    assert len(indices) == len(sampler)
    chunk = batch * 4
    chunks = [indices[i : i + chunk] for i in range(0, len(indices), chunk)]
    prompts = [one[: chunk // 2 : 2] for one in chunks]
    for one, distinct in zip(chunks, prompts, strict=True):
        assert one == [index for index in distinct for _ in range(2)] * 2
        assert len(set(distinct)) == batch


def test_two_epochs_differ_and_the_same_state_draws_the_same():
    first = CurriculumSampler(Repeat(10, 2), curriculum([1.0] * 10))
    second = CurriculumSampler(Repeat(10, 2), curriculum([1.0] * 10))
    one, two = list(first), list(first)
    assert one != two and sorted(set(one)) == sorted(set(two)) == list(range(10))
    assert list(second) == one


def test_prompts_near_the_target_take_turns():
    one = curriculum(range(100))
    one.target = 50.0
    drawn = [row for _ in range(5) for row in one.draw(2)]
    assert sorted(drawn) in ([*range(45, 55)], [*range(46, 56)])


def test_the_state_of_another_dataset_is_refused():
    with pytest.raises(ValueError, match="dataset of 10 rows, this one has 11: resume with the same dataset"):
        curriculum(range(11)).load_state_dict(curriculum().state_dict())


def test_a_resumed_epoch_repeats_what_was_drawn_and_goes_on_as_the_other_did():
    def run(sampler, skip, seen):
        for position, index in enumerate(sampler):
            if position < skip:
                continue
            seen.append(index)
            if position % 8 == 0:
                sampler.curriculum.observe(1.0)

    whole = CurriculumSampler(Repeat(10, 2), curriculum())
    seen, state = [], None
    for position, index in enumerate(whole):
        seen.append(index)
        if position % 8 == 0:
            whole.curriculum.observe(1.0)
        if position == 15:
            state = whole.curriculum.state_dict()
    resumed = CurriculumSampler(Repeat(10, 2), curriculum())
    resumed.curriculum.load_state_dict(state)
    resumed.resume()
    rest = []
    run(resumed, 16, rest)
    assert rest == seen[16:]
    assert resumed.curriculum.state_dict() == whole.curriculum.state_dict()


@pytest.mark.parametrize("value", [None, "hard", float("nan"), float("inf"), True])
def test_bad_difficulties_are_refused_with_their_row(value):
    with pytest.raises(ValueError, match="curriculum_column: row 1 must hold a finite number"):
        curriculum([1.0, value])
