"""Scales: kappa of known distributions, and the optimality of least squares."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.bitdelta.packing import unpack_signs
from trl_grpo_ext.bitdelta.scales import kappa, mean_scales
from trl_grpo_ext.bitdelta.signs import SignCode, fit_to_inputs, sign_code


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def samples(name, shape=(64, 65536)):
    uniform = torch.rand(shape, generator=generator())
    normal = torch.randn(shape, generator=generator(1))
    return {
        "gaussian": normal,
        "uniform": 2 * uniform - 1,
        "laplace": -torch.log(uniform.clamp_min(1e-12)) * normal.sign(),
        "sparse": normal * (uniform < 0.2),
    }[name]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("gaussian", 2 / math.pi), ("uniform", 0.75), ("laplace", 0.5), ("sparse", 0.2 * 2 / math.pi)],
)
def test_kappa_of_known_distributions(name, wanted):
    found = kappa(samples(name))
    assert math.isclose(found, wanted, abs_tol=1e-3)
    zero = torch.zeros(64, 65536)
    assert math.isclose(sign_code(zero, samples(name), 1, "row", None).share, found, abs_tol=1e-4)


def test_kappa_of_zeros_and_of_one_size():
    assert kappa(torch.zeros(2, 3)) == 1.0
    assert kappa(torch.tensor([[2.0, -2.0, 2.0]])) == 1.0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 50), st.sampled_from([8, 16, 64]), st.integers(0, 2**31))
def test_ragged_groups_have_the_mean_of_what_is_there(rows, columns, group, seed):
    delta = torch.randn(rows, columns, generator=generator(seed))
    means = mean_scales(delta, group)
    for place in range(means.shape[1]):
        part = delta[:, place * group : (place + 1) * group]
        torch.testing.assert_close(means[:, place], part.abs().mean(1))


def problem(rows, columns, seed=0, tokens=200):
    """A delta and correlated inputs, as a layer's are."""
    mixing = torch.randn(columns, columns, generator=generator(seed + 1))
    inputs = torch.randn(tokens, columns, generator=generator(seed + 2)) @ mixing
    delta = torch.randn(rows, columns, generator=generator(seed))
    return torch.zeros(rows, columns), delta, inputs


def output_errors(code: SignCode, delta, inputs):
    """Squared error of each row's outputs."""
    return ((code.tile(0, len(delta)) - delta) @ inputs.T).double().square().sum(1)


@pytest.mark.parametrize("scale", ["row", "group", "matrix"])
@pytest.mark.parametrize("masks", [1, 2])
def test_least_squares_scales_are_optimal(scale, masks):
    """No change of any scale lowers the error of the outputs, and mean scales are no better."""
    base, delta, inputs = problem(6, 48)
    mean = sign_code(base, delta, masks, scale, 16 if scale == "group" else None)
    # bfloat16 scales would hide the optimum behind their rounding.
    mean.scales = mean.scales.float()
    fitted = fit_to_inputs(mean, base, delta, inputs)
    best = output_errors(fitted, delta, inputs).sum()
    assert best < output_errors(mean, delta, inputs).sum()
    for place in range(fitted.scales.numel()):
        for factor in (0.99, 1.01):
            moved = SignCode(fitted.signs, fitted.scales.clone(), fitted.columns, fitted.group)
            moved.scales.view(-1)[place] *= factor
            assert output_errors(moved, delta, inputs).sum() >= best * (1 - 1e-6)


def test_row_scales_are_the_closed_form():
    base, delta, inputs = problem(5, 24)
    code = fit_to_inputs(sign_code(base, delta, 1, "row", None), base, delta, inputs)
    signs = unpack_signs(code.signs[0], 24)
    moments = inputs.T @ inputs
    wanted = ((signs @ moments) * delta).sum(1) / ((signs @ moments) * signs).sum(1)
    torch.testing.assert_close(code.scales[0].float(), wanted, rtol=4e-3, atol=1e-5)


def test_a_layer_that_saw_nothing_keeps_mean_scales():
    base, delta, inputs = problem(5, 24)
    mean = sign_code(base, delta, 1, "row", None)
    assert torch.equal(fit_to_inputs(mean, base, delta, torch.zeros_like(inputs)).scales, mean.scales)


def test_fewer_tokens_than_groups_stay_near_the_mean():
    base, delta, inputs = problem(4, 256, tokens=3)
    mean = sign_code(base, delta, 1, "group", 8)
    fitted = fit_to_inputs(mean, base, delta, inputs)
    assert torch.isfinite(fitted.scales).all()
    assert (fitted.scales.float() - mean.scales.float()).norm() < 3 * mean.scales.float().norm()


def test_inputs_of_another_width_are_refused():
    base, delta, _ = problem(4, 16)
    with pytest.raises(ValueError, match=r"\[tokens, 16\]"):
        fit_to_inputs(sign_code(base, delta, 1, "row", None), base, delta, torch.zeros(3, 8))
