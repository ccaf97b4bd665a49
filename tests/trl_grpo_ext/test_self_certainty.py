"""Self-certainty (arXiv 2505.19590)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.self_certainty import self_certainty, token_self_certainty


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 40), chunk=st.integers(1, 9), shift=st.floats(-50, 50))
def test_is_the_divergence_of_the_uniform_distribution_to_the_tokens(seed, size, chunk, shift):
    logits = 3 * torch.randn(2, 5, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = token_self_certainty(logits + shift, chunk_size=chunk)
    uniform = torch.full((size,), 1 / size, dtype=torch.float64)
    for row in range(2):
        for token in range(5):
            probabilities = logits[row, token].softmax(-1)
            expected = sum(float(u * (u / p).log()) for u, p in zip(uniform, probabilities, strict=True))
            assert found[row, token].item() == pytest.approx(expected, abs=1e-9)
    assert (found >= -1e-12).all()


def test_uniform_tokens_have_none_and_sharper_tokens_have_more():
    assert token_self_certainty(torch.full((3, 7), 4.0)).abs().max() < 1e-6
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    values = [token_self_certainty(scale * logits).item() for scale in (0.5, 1.0, 2.0, 4.0)]
    assert values == sorted(values)


def test_half_precision_is_computed_in_float32_and_without_gradient():
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    found = token_self_certainty(logits)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found, token_self_certainty(logits.float()))


def test_padding_of_the_vocabulary_makes_it_infinite():
    assert token_self_certainty(torch.tensor([0.0, 1.0, -math.inf])).item() == math.inf


def test_no_positions():
    assert token_self_certainty(torch.zeros(2, 0, 5)).shape == (2, 0)


def test_reward_is_the_mean_over_the_tokens():
    values = torch.tensor([[1.0, 2.0, float("nan")], [4.0, 9.0, 9.0], [5.0, 5.0, 5.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert self_certainty(values, mask).tolist() == [1.5, 4.0, 0.0]


def test_chunk_size_is_checked():
    with pytest.raises(ValueError, match="chunk_size must be at least 1, not 0"):
        token_self_certainty(torch.zeros(1, 2), chunk_size=0)
