"""Trimming and regrouping as functions of a batch."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, LlamaConfig

from trl_grpo_ext.batching import regrouped, trimmed

ROTARY = LlamaConfig()


def batch_of(prompt_lengths, completion_lengths, width=6, keep=5):
    prompts, completions = torch.tensor(prompt_lengths), torch.tensor(completion_lengths)
    rows = len(prompts)
    return {
        "prompt_ids": torch.arange(rows * width).view(rows, width),
        "prompt_mask": (torch.arange(width) >= width - prompts[:, None]).long(),
        "completion_ids": torch.arange(rows * keep).view(rows, keep),
        "completion_mask": (torch.arange(keep) < completions[:, None]).long(),
        "advantages": torch.arange(rows).float(),
        "importance_sampling_ratio": torch.ones(rows, 1),
        "old_per_token_logps": None,
        "num_items_in_batch": torch.tensor(9),
    }


def test_columns_of_padding_go():
    batch = batch_of([2, 4], [3, 1])
    batch["of_a_later_version"] = batch["completion_ids"] + 1
    found = trimmed(batch, ROTARY)
    assert found["prompt_ids"].tolist() == batch["prompt_ids"][:, 2:].tolist()
    for name in ("completion_ids", "completion_mask", "of_a_later_version"):
        assert found[name].tolist() == batch[name][:, :3].tolist()
    assert found["importance_sampling_ratio"].shape == (2, 1) and found["old_per_token_logps"] is None


def test_prompts_of_absolute_positions_stay():
    assert trimmed(batch_of([2, 4], [3, 1]), GPT2Config())["prompt_ids"].shape == (2, 6)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_nothing_goes_where_frequencies_depend_on_the_length(kind):
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    config = SimpleNamespace(rope_parameters=rope)
    assert trimmed(batch_of([2, 4], [3, 1]), config)["completion_ids"].shape == (2, 5)
    config.rope_parameters = {"full_attention": rope, "sliding_attention": {"rope_type": "default"}}
    assert trimmed(batch_of([2, 4], [3, 1]), config)["completion_ids"].shape == (2, 5)


def test_prompts_as_wide_as_completions_keep_their_own_columns():
    batch = batch_of([5, 5], [2, 1], width=5, keep=5)
    assert trimmed(batch, ROTARY)["prompt_ids"].shape == (2, 5)


def test_a_batch_of_masked_completions_keeps_a_column():
    assert trimmed(batch_of([1, 1], [0, 0]), ROTARY)["completion_ids"].shape == (2, 1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4).flatmap(lambda n: st.permutations(list(range(n)) * 4)),
    st.integers(0, 2**16),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_regrouping_loses_no_row_and_keeps_groups_together(groups, seed, window, by_length):
    lengths = torch.randint(1, 6, (len(groups),), generator=torch.Generator().manual_seed(seed))
    whole = batch_of([6] * len(groups), lengths.tolist())
    whole["prompt_ids"] = torch.tensor(groups)[:, None].repeat(1, 6)
    batches = [{name: part(value, i) for name, value in whole.items()} for i in range(len(groups) // 2)]
    found = regrouped(batches, window, by_length)
    rows = torch.cat([batch["advantages"] for batch in found]).long()
    assert sorted(rows.tolist()) == list(range(len(groups)))
    ids = torch.cat([batch["completion_ids"] for batch in found])
    assert ids.tolist() == whole["completion_ids"][rows].tolist()
    for start in range(0, len(rows), 2 * window):
        order = [groups[row] for row in rows[start : start + 2 * window].tolist()]
        changes = sum(one != other for one, other in zip(order[1:], order, strict=False))
        assert changes == len(set(order)) - 1
    if not by_length:
        order = [groups[row] for row in rows.tolist()]
        assert list(dict.fromkeys(order)) == list(dict.fromkeys(groups))


def part(value, index):
    return value[2 * index : 2 * index + 2] if torch.is_tensor(value) and value.dim() else value


def test_longest_first_inside_a_window():
    whole = batch_of([6] * 4, [1, 5, 2, 3])
    whole["prompt_ids"] = torch.tensor([0, 1, 0, 1])[:, None].repeat(1, 6)
    batches = [{name: part(value, i) for name, value in whole.items()} for i in range(2)]
    found = regrouped(batches, 2, True)
    assert [batch["completion_mask"].sum(1).tolist() for batch in found] == [[5, 3], [2, 1]]


@pytest.mark.parametrize("by_length", [False, True])
def test_what_is_one_value_for_all_stays(by_length):
    found = regrouped([batch_of([6, 6], [1, 2])], 1, by_length)
    assert found[0]["num_items_in_batch"] == 9 and found[0]["old_per_token_logps"] is None
