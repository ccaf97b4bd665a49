"""`check_reward_columns` against what each TRL line passes."""

import functools

import pytest

from trl_grpo_ext import REWARDS, check_reward_columns
from trl_grpo_ext.rewards import columns as columns_module

ALL = ["prompt", "solution", "chosen", "rejected", "nums", "target"]


def set_trl(monkeypatch, version):
    monkeypatch.setattr("trl_grpo_ext._compat.trl_version", lambda: version)
    monkeypatch.setattr(columns_module, "trl_version", lambda: version)


def refusal(func, columns):
    with pytest.raises(ValueError) as caught:
        check_reward_columns(func, columns)
    return str(caught.value)


def needs_tests(completions, tests, **kwargs):
    return []


WITHOUT_COLUMNS = {"json_schema", "language_consistency", "repetition_penalty", "tag_format"}


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_built_ins_fit_their_columns(name):
    check_reward_columns(REWARDS[name], ALL)
    check_reward_columns(REWARDS[name], iter(ALL))
    if name not in WITHOUT_COLUMNS:
        assert f"Reward function '{name}' needs the argument" in refusal(REWARDS[name], ["prompt"])


def test_missing_column_names_the_way_out():
    sentence = refusal(needs_tests, ["prompt", "solution", "test"])
    assert "'needs_tests' needs the argument 'tests'" in sentence
    assert "did you mean 'test'?" in sentence
    assert "Available columns: solution, test." in sentence
    assert '"columns": {"extra": [...]}' in sentence
    assert "--grpo_extra_columns" in sentence
    check_reward_columns(needs_tests, ["tests"])


def test_defaults_are_not_required():
    check_reward_columns(lambda completions, tests=None, **kwargs: [], [])


def test_keyword_only_arguments_are_required():
    def keyword_only(completions, *, tests, **kwargs):
        return []

    assert "'tests'" in refusal(keyword_only, ["solution"])


def test_prompt_is_passed_in_the_plural():
    def singular(prompt, completions, **kwargs):
        return []

    assert "TRL passes as 'prompts'; rename the argument" in refusal(singular, ["prompt"])


def test_positional_only_arguments_are_refused():
    def positional(completions, /, **kwargs):
        return []

    assert "by position only" in refusal(positional, [])


def no_kwargs(prompts, completions, completion_ids, trainer_state, solution):
    return []


@pytest.mark.parametrize("version", [(0, 24), (1, 16)])
def test_function_without_kwargs_must_accept_every_column(monkeypatch, version):
    set_trl(monkeypatch, version)
    sentence = refusal(no_kwargs, ["prompt", "solution", "level"])
    assert "does not accept level" in sentence.replace("log_extra, log_metric", "").replace(", ", "")
    assert "add **kwargs" in sentence
    assert "trainer_state" in refusal(lambda prompts, completions, completion_ids: [], [])


def test_function_without_kwargs_that_accepts_all(monkeypatch):
    set_trl(monkeypatch, (0, 24))
    check_reward_columns(no_kwargs, ["prompt", "solution"])
    set_trl(monkeypatch, (1, 16))
    assert "does not accept log_extra, log_metric" in refusal(no_kwargs, ["prompt", "solution"])


def test_arguments_that_only_a_later_trl_passes(monkeypatch):
    def logs(completions, log_extra, **kwargs):
        return []

    set_trl(monkeypatch, (1, 16))
    check_reward_columns(logs, [])
    set_trl(monkeypatch, (0, 24))
    assert "'log_extra', which TRL 0.24 does not pass; give it the default None" in refusal(logs, [])


@pytest.mark.parametrize("column", ["prompts", "completions", "trainer_state"])
def test_columns_named_like_trls_own_arguments(column):
    assert f"Dataset column {column} has the name" in refusal(REWARDS["exact_match"], ["solution", column])


def test_partial_and_wrapped_functions_show_their_signature():
    check_reward_columns(functools.partial(needs_tests, tests=[]), [])

    @functools.wraps(needs_tests)
    def wrapped(*args, **kwargs):
        return needs_tests(*args, **kwargs)

    assert "'tests'" in refusal(wrapped, [])


def test_keywords_are_those_of_the_installed_trl():
    """Every keyword said to be passed stands in the source of the installed trainer, and none is missing there."""
    import inspect
    import re

    from trl_grpo_ext import import_trl
    from trl_grpo_ext._compat import reward_keywords

    source = inspect.getsource(import_trl().GRPOTrainer._calculate_rewards)
    assigned = set(re.findall(r'\breward_kwargs\["(\w+)"\] = ', source))
    direct = {name for name in ("prompts", "completions", "completion_ids") if f"{name}=" in source}
    always, sometimes = reward_keywords()
    assert always | sometimes == assigned | direct
