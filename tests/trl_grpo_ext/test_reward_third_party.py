"""Rewards of other distributions, by their entry points."""

from pathlib import Path

import pytest

from trl_grpo_ext.rewards import exact_match, resolve_reward_funcs


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution on the path, as pip would have unpacked it."""
    info = tmp_path / "acme_rewards-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-rewards\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "[trl_grpo_ext.rewards]\n"
        "acme_polite = acme_rewards_module:polite\n"
        "acme_broken = acme_module_that_is_not_there:reward\n"
        "acme_number = acme_rewards_module:NUMBER\n"
        "exact_match = acme_rewards_module:polite\n",
        encoding="utf-8",
    )
    (tmp_path / "acme_rewards_module.py").write_text(
        "NUMBER = 3\ndef polite(completions, **kwargs):\n    return [1.0] * len(completions)\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_by_name(distribution: Path) -> None:
    (reward,) = resolve_reward_funcs("acme_polite")
    assert reward.__name__ == "polite" and reward(completions=["a", "b"]) == [1.0, 1.0]


def test_a_broken_one_is_told_with_its_distribution_and_hides_no_other(distribution: Path) -> None:
    with pytest.raises(ValueError, match=r"'acme_broken' of the distribution 'acme-rewards' .* ModuleNotFoundError"):
        resolve_reward_funcs("acme_broken")
    assert resolve_reward_funcs("exact_match") == [exact_match], "a built-in keeps its name"


def test_what_is_no_function_is_refused(distribution: Path) -> None:
    with pytest.raises(ValueError, match="not a function"):
        resolve_reward_funcs("acme_number")


def test_its_name_is_suggested(distribution: Path) -> None:
    with pytest.raises(ValueError, match="acme_polite"):
        resolve_reward_funcs("acme_polit")
