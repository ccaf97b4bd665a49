"""`math_verified`: algebra by math-verify, in processes that can be killed."""

import pickle
import time

import pytest

pytest.importorskip("math_verify", reason="needs math-verify (the extra math)")

from trl_grpo_ext.rewards import math_equal, resolve_reward_funcs
from trl_grpo_ext.rewards.symbolic import SymbolicWorkers

ROWS = {
    "completions": [r"\boxed{x^2+x}", r"\boxed{x^2-x}", r"\boxed{\frac{1}{2}}", "nothing"],
    "solution": ["x(x+1)", "x(x+1)", "0.5", "3"],
}


def test_what_algebra_decides() -> None:
    (reward,) = resolve_reward_funcs("math_verified")
    assert reward.__name__ == "math_verified"
    assert reward(**ROWS) == [1.0, 0.0, 1.0, 0.0]
    assert math_equal(**ROWS) == [0.0, 0.0, 1.0, 0.0], "without the workers the first row is undecided"


def test_a_power_tower_is_killed_and_its_row_skipped() -> None:
    """Published killer: bigint powers hold the interpreter lock, so that no timeout inside the process helps."""
    workers = SymbolicWorkers(deadline=2.0)
    began = time.monotonic()
    assert workers([("7", "3^{3^{20}}"), ("x(x+1)", "x^2+x")]) == [None, True]
    assert time.monotonic() - began < 60


def test_it_pickles() -> None:
    (reward,) = resolve_reward_funcs("math_verified")
    assert pickle.loads(pickle.dumps(reward))(**ROWS) == [1.0, 0.0, 1.0, 0.0]


def test_without_math_verify_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"install `math-verify>=0\.8`"):
        resolve_reward_funcs("math_verified")
