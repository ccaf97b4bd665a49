"""`experience_*` from YAML: what reaches the callbacks, and what is refused before a model is loaded or a file made."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

from llamafactory_plugin import rendering, workflow
from llamafactory_plugin.dispatch import parse_run
from llamafactory_plugin.errors import UsageError
from llamafactory_plugin.experience import OWN_KEYS, experience_callbacks, experience_line
from llamafactory_plugin.experience_library import opened_library
from tests.llamafactory_plugin import tiny
from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.prepared import flags, prepare
from trl_grpo_ext import experience
from trl_grpo_ext.experience import ExperienceCallback, ExperienceConfig, ExperienceLibrary, Lesson, RescueCallback

# Every key that goes to a callback: a value that is not its default, and what the callback is given.
GIVEN: dict[str, tuple[Any, str, Any]] = {
    "experience_inject": ("both", "inject", "both"),
    "experience_position": ("user", "position", "user"),
    "experience_template": ("Hints:\n{experiences}", "template", "Hints:\n{experiences}"),
    "experience_token_budget": (64, "token_budget", 64),
    "experience_episodes": (3, "episodes", 3),
    "experience_dropout": (0.25, "dropout", 0.25),
    "experience_read_only": (True, "record", False),
    "experience_same_prompt": (True, "same_prompt", True),
    "experience_where": ({"domain": ["math", "web"]}, "where", {"domain": ["math", "web"]}),
    "experience_metadata_columns": ("level, kind", "metadata_columns", ["level", "kind"]),
}
RESCUE: dict[str, tuple[Any, str, Any]] = {
    "experience_rescue": ("off_policy", "mode", "off_policy"),
    "experience_rescue_inject": ("lessons", "inject", "lessons"),
    "experience_rescue_visits": (3, "visits", 3),
    "experience_rescue_rerolls": (1, "rerolls", 1),
    "experience_rescue_reward_at_most": (-0.5, "reward_at_most", -0.5),
    "experience_rescue_anneal": (0.5, "anneal", 0.5),
}
SHARED = ("position", "template", "token_budget", "episodes", "same_prompt", "where", "seed")
# What some keys need beside them.
BESIDE = {
    "experience_episodes": {"experience_inject": "both"},
    "experience_same_prompt": {"experience_inject": "episodes"},
    "experience_read_only": {},
} | {name: {"experience_rescue": "on_policy_hinted"} for name in RESCUE if name != "experience_rescue"}


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "load_model", lambda *_: pytest.fail("the model was loaded"))


@pytest.fixture
def library(workspace: Workspace) -> Path:
    path = workspace.folder / "experiences.db"
    with ExperienceLibrary(path) as made:
        made.add(Lesson("Count the words."))
    rows = [row | {"level": index, "kind": "word"} for index, row in enumerate(tiny.questions(16))]
    tiny.write_dataset(workspace.data, "words", rows)
    return path


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What the two callbacks are made with."""
    found: dict[str, dict[str, Any]] = {}

    def record(name: str) -> None:
        def make(library: Any, **values: Any) -> None:
            found[name] = values

        monkeypatch.setattr(experience, name, make)

    record("ExperienceCallback")
    record("RescueCallback")
    return found


def checked(workspace: Workspace, **overrides: Any) -> Any:
    """A run that has passed every check and has not begun."""
    from llamafactory.train import tuner

    run = parse_run(tuner, workspace.arguments(**overrides))
    workflow.prepare_run(run)
    return run


def callbacks(workspace: Workspace, **overrides: Any) -> list[Any]:
    run = prepare(workspace.arguments(**overrides)).run
    return experience_callbacks(run, ExperienceLibrary())


class TestValues:
    def test_every_key_is_tested_here(self) -> None:
        assert {*GIVEN, *RESCUE, "experience_library", "experience_config"} == set(OWN_KEYS)

    def test_without_a_library_there_is_no_callback(self, workspace: Workspace) -> None:
        run = prepare(workspace.arguments()).run
        with opened_library(run) as library:
            assert experience_callbacks(run, library) == []
        assert experience_line(run.finetuning_args) is None

    @pytest.mark.parametrize("name", GIVEN)
    def test_every_key_reaches_the_callback(self, workspace: Workspace, library: Path, given: Any, name: str) -> None:
        value, argument, wanted = GIVEN[name]
        made = {"experience_library": str(library), name: value} | BESIDE.get(name, {})
        callbacks(workspace, **made)
        assert given["ExperienceCallback"][argument] == wanted
        assert "RescueCallback" not in given

    @pytest.mark.parametrize("name", RESCUE)
    def test_every_key_reaches_the_rescue(self, workspace: Workspace, library: Path, given: Any, name: str) -> None:
        value, argument, wanted = RESCUE[name]
        made = {"experience_library": str(library)} | BESIDE.get(name, {}) | {name: value}
        callbacks(workspace, **made)
        assert given["RescueCallback"][argument] == wanted

    def test_the_defaults_are_the_callbacks(self, workspace: Workspace, library: Path, given: Any) -> None:
        """But for the seed, which is the run's, and no argument of theirs is without a key."""
        callbacks(workspace, experience_library=str(library), experience_rescue="on_policy_hinted", seed=7)
        for kind in (ExperienceCallback, RescueCallback):
            values = given[kind.__name__]
            signature = inspect.signature(kind).parameters
            defaults = {name: item.default for name, item in signature.items() if name != "library"}
            assert values.pop("seed") == 7 and defaults.pop("seed") == 0
            # `similarity` is a function: Python only.
            defaults.pop("similarity", None)
            assert values == defaults

    def test_the_rescue_shares_what_a_hint_looks_like(self, workspace: Workspace, library: Path, given: Any) -> None:
        texts = {name: value for name, (value, argument, _) in GIVEN.items() if argument in SHARED}
        callbacks(workspace, experience_library=str(library), experience_rescue="off_policy", **texts)
        hints, injected = given["RescueCallback"], given["ExperienceCallback"]
        assert {name: hints[name] for name in SHARED} == {name: injected[name] for name in SHARED}

    def test_rescue_alone_still_records(self, workspace: Workspace, library: Path) -> None:
        made = {"experience_library": str(library), "experience_inject": "none", "experience_rescue": "off_policy"}
        both = callbacks(workspace, **made)
        assert [type(callback) for callback in both] == [ExperienceCallback, RescueCallback]
        only = callbacks(workspace, **made, experience_read_only=True)
        assert [type(callback) for callback in only] == [RescueCallback]

    def test_flags_and_inline_json(self, workspace: Workspace, library: Path) -> None:
        made = {"experience_library": library, "experience_where": '{"domain":"math"}', "experience_token_budget": 9}
        (callback,) = experience_callbacks(prepare(flags(workspace.defaults | made)).run, ExperienceLibrary())
        assert callback.selector.where == {"domain": "math"} and callback.selector.token_budget == 9

    def test_metadata_columns_come_along_by_themselves(self, workspace: Workspace, library: Path) -> None:
        data = prepare(
            workspace.arguments(experience_library=str(library), experience_metadata_columns=["level"])
        ).train
        assert sorted(data["level"]) == list(range(16))

    def test_the_line_of_the_log(self, workspace: Workspace, library: Path) -> None:
        made = {"experience_dropout": 0.5, "experience_token_budget": 9, "experience_rescue": "off_policy"}
        run = prepare(workspace.arguments(experience_library=str(library), **made)).run
        assert experience_line(run.finetuning_args) == (
            f"experience library {library}: lessons injected, position system, at most 9 tokens, dropout 0.5, rescue "
            "off_policy"
        )


class TestFile:
    def test_a_new_library_takes_the_settings_and_the_group_size(self, workspace: Workspace) -> None:
        path = workspace.folder / "new.db"
        made = {"experience_library": str(path), "experience_config": {"max_library_size": 2000}, "grpo_group_size": 8}
        run = checked(workspace, **made)
        assert not path.exists()
        with opened_library(run) as library:
            assert isinstance(library, ExperienceLibrary)
            assert library.config == ExperienceConfig(max_library_size=2000, group_size=8)
        assert path.exists()

    def test_a_group_size_that_libraries_do_not_take(self, workspace: Workspace) -> None:
        run = checked(workspace, experience_library=str(workspace.folder / "new.db"), grpo_group_size=2)
        with opened_library(run) as library:
            assert isinstance(library, ExperienceLibrary) and library.config == ExperienceConfig()

    def test_a_file_keeps_its_settings(self, workspace: Workspace, library: Path) -> None:
        given = {"experience_library": str(library), "experience_config": {"max_library_size": 10_000}}
        run = checked(workspace, **given)
        with opened_library(run) as opened:
            assert isinstance(opened, ExperienceLibrary) and len(opened) == 1

    def test_a_file_in_the_output_folder(self, workspace: Workspace) -> None:
        run = checked(workspace, experience_library=str(workspace.output / "experiences.db"))
        assert not workspace.output.exists()
        with opened_library(run):
            assert (workspace.output / "experiences.db").exists()

    def test_other_ranks_open_nothing(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        path = str(workspace.folder / "new.db")
        run = checked(workspace, experience_library=path)
        monkeypatch.setenv("RANK", "1")
        with opened_library(run) as library:
            assert library == path
            experience_callbacks(run, library)
        assert not Path(path).exists()

    def test_nothing_is_left_of_a_check(self, workspace: Workspace, library: Path) -> None:
        before = {path.name: path.read_bytes() for path in workspace.folder.iterdir() if path.is_file()}
        checked(workspace, experience_library=str(library))
        assert {path.name: path.read_bytes() for path in workspace.folder.iterdir() if path.is_file()} == before


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"experience_inject": "all"}, ["experience_inject must be one of lessons, episodes, both, none", "'all'"]),
    ({"experience_inject": "episode"}, ["did you mean 'episodes'?"]),
    ({"experience_position": "top"}, ["experience_position must be one of system, user, prefix"]),
    ({"experience_template": "Hints:"}, ["experience_template", "{experiences}", "'Hints:'"]),
    ({"experience_template": "{experiences}{experiences}"}, ["in it once"]),
    ({"experience_token_budget": 0}, ["experience_token_budget must be a whole number of at least 1, not 0"]),
    ({"experience_token_budget": 1.5}, ["experience_token_budget must be a whole number"]),
    ({"experience_episodes": 0, "experience_inject": "both"}, ["experience_episodes", "at least 1"]),
    ({"experience_dropout": 1.5}, ["experience_dropout", "at most 1, not 1.5"]),
    ({"experience_dropout": float("nan")}, ["experience_dropout"]),
    ({"experience_read_only": "often"}, ["experience_read_only"]),
    ({"experience_where": "math"}, ["experience_where", "not a JSON object"]),
    ({"experience_where": {"domain": []}}, ["'domain'", "empty list"]),
    ({"experience_config": {"max_size": 5}}, ["experience_config: unknown setting 'max_size'", "max_library_size"]),
    ({"experience_config": {"max_library_size": 5}}, ["experience_config: max_library_size must be in [1000, 1"]),
    ({"experience_config": {"group_size": "8"}}, ["experience_config: group_size must be an integer"]),
    ({"experience_config": {"max_library_size": 2000}}, ["max_library_size is 10000 in", "2000 here", "remove it"]),
    ({"experience_metadata_columns": "levl"}, ["'levl'"]),
    ({"experience_metadata_columns": "level", "experience_read_only": True}, ["experience_metadata_columns"]),
    ({"experience_episodes": 3}, ["experience_episodes: no episodes are injected"]),
    ({"experience_same_prompt": True}, ["experience_same_prompt: no episodes are injected"]),
    ({"experience_inject": "none", "experience_position": "user"}, ["experience_position: nothing is injected"]),
    ({"experience_inject": "none", "experience_dropout": 0.5}, ["experience_dropout: nothing is injected"]),
    (
        {"experience_inject": "none", "experience_read_only": True},
        ["experience_read_only: nothing is injected either"],
    ),
    ({"experience_rescue": "yes"}, ["experience_rescue must be one of none, on_policy_hinted, off_policy"]),
    ({"experience_rescue_visits": 3}, ["experience_rescue_visits: set experience_rescue, or remove it"]),
    ({"experience_rescue": "off_policy", "experience_rescue_visits": 0}, ["experience_rescue_visits", "at least 1"]),
    ({"experience_rescue": "off_policy", "experience_rescue_anneal": 0}, ["experience_rescue_anneal"]),
    (
        {"experience_rescue": "off_policy", "experience_rescue_rerolls": 4},
        ["experience_rescue_rerolls must be below grpo_group_size (4)"],
    ),
    (
        {"experience_rescue": "on_policy_hinted", "grpo_config": {"loss_context": "plain"}},
        ["experience_rescue='on_policy_hinted'", "grpo_config.loss_context"],
    ),
    ({"reward_funcs": "self_certainty"}, ["experience_library with self_certainty", "experience_read_only"]),
    ({"experience_inject": "none", "grpo_config": {"loss_context": "plain"}}, ["grpo_config.loss_context plain"]),
    ({"grpo_config": {"off_policy_correction": "shape"}}, ["grpo_config.off_policy_correction: every completion"]),
    ({"experience_positions": "user"}, ["'experience_positions' is not an argument", "experience_position'?"]),
]


class TestRefusals:
    @pytest.mark.parametrize(("given", "parts"), REFUSED, ids=lambda item: str(item)[:60])
    def test_values_and_combinations(
        self, workspace: Workspace, library: Path, given: dict[str, Any], parts: list[str]
    ) -> None:
        before = library.read_bytes()
        sentence = workspace.refused(**{"experience_library": str(library)} | given)
        assert all(part in sentence for part in parts), sentence
        assert library.read_bytes() == before

    @pytest.mark.parametrize("name", [name for name in OWN_KEYS if name != "experience_library"])
    def test_a_key_without_a_library(self, workspace: Workspace, library: Path, name: str) -> None:
        value = (GIVEN | RESCUE | {"experience_config": ({"group_size": 8}, "", None)})[name][0]
        sentence = workspace.refused(UsageError, **{name: value})
        assert sentence == f"{name}: it is read only with experience_library; set that to a file, or remove it."

    def test_a_loss_on_plain_prompts_without_a_library(self, workspace: Workspace) -> None:
        sentence = workspace.refused(UsageError, grpo_config={"loss_context": "plain"})
        assert "without experience_library nothing is injected" in sentence

    def test_default_values_without_a_library_are_not_refused(self, workspace: Workspace) -> None:
        """As in a YAML that LLaMA Board saved."""
        from llamafactory_plugin.experience_arguments import ExperienceArguments

        prepare(workspace.defaults | {item.name: item.default for item in dataclasses.fields(ExperienceArguments)})

    def test_files(self, workspace: Workspace, library: Path) -> None:
        def refused(path: Path, *parts: str, **given: Any) -> None:
            sentence = workspace.refused(UsageError, experience_library=str(path), **given)
            assert all(part in sentence for part in ("experience_library", *parts)), sentence

        refused(workspace.folder / "no" / "such.db", "the folder", "does not exist", "output_dir")
        refused(workspace.folder / "none.db", "there is no", "experience_read_only", experience_read_only=True)
        refused(workspace.data / "words.json", "is not an experience library")
        refused(workspace.data)
        library.write_bytes(library.read_bytes()[:-100])
        refused(library, "truncated")

    @pytest.mark.parametrize("name", OWN_KEYS)
    def test_another_stage(self, workspace: Workspace, name: str) -> None:
        plain = {"grpo_group_size": None, "grpo_max_completion_length": None}
        sentence = workspace.refused(UsageError, stage="sft", **plain, **{name: "x"})
        assert sentence.startswith(f"{name}: only stage grpo reads this")

    def test_a_column_of_the_callbacks_name(self, workspace: Workspace, library: Path) -> None:
        rows = [row | {"plain_prompt": "x"} for row in tiny.questions(16)]
        tiny.write_dataset(workspace.data, "taken", rows)
        given = {"dataset": "taken", "grpo_extra_columns": "plain_prompt", "experience_library": str(library)}
        assert "plain_prompt is a reserved name; rename" in workspace.refused(UsageError, **given)


def test_the_name_of_the_plain_prompt_is_the_callbacks() -> None:
    from trl_grpo_ext.experience import rollout_rows

    assert rendering.PLAIN_PROMPT == rollout_rows.PLAIN_PROMPT
