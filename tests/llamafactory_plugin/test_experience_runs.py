"""Runs of stage grpo with an experience library: what is generated from, rewarded, learned, stored, saved and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.llamafactory_plugin import tiny
from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.test_training import Probe, trainable_weights
from trl_grpo_ext.experience import Episode, ExperienceLibrary, Lesson

LESSON = "Count: the second word stands between the others."
# Fails the run when it sees anything but the prompt of the dataset.
REWARD_FILE = """
def plain(prompts, completions, **columns):
    for prompt in prompts:
        assert [message["role"] for message in prompt] == ["user"], prompt
        assert prompt[0]["content"].startswith("Which word is second"), prompt
    assert not {"plain_prompt", "experience_selection"} & set(columns), columns
    texts = [completion[0]["content"] for completion in completions]
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in texts]
"""


@pytest.fixture
def injecting(workspace: Workspace) -> dict[str, Any]:
    """Arguments of a run with one lesson, and the reward above in the trainer."""
    (workspace.folder / "rewards.py").write_text(REWARD_FILE, encoding="utf-8")
    path = workspace.folder / "experiences.db"
    with ExperienceLibrary(path) as library:
        library.add(Lesson(LESSON))
    reward = {"reward_funcs": f"{workspace.folder / 'rewards.py'}:plain", "grpo_reward_in_process": True}
    return reward | {"experience_library": str(path), "learning_rate": 1e-3}


def tokenizer_of(workspace: Workspace) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(workspace.defaults["model_name_or_path"])


def rendered(workspace: Workspace, probe: Probe) -> list[str]:
    """The prompts of every `generate` call, as texts, without padding."""
    tokenizer = tokenizer_of(workspace)
    texts = [text for ids in probe.prompts for text in tokenizer.batch_decode(ids)]
    return [text.replace("<|endoftext|>", "") for text in texts]


def logged(workspace: Workspace, name: str) -> list[float]:
    return [entry[name] for entry in workspace.log() if name in entry]


SYSTEM = "<|im_start|>system\n{}<|im_end|>\n"
DEFAULT = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


class TestPrompts:
    @pytest.mark.parametrize("position", ["system", "user", "prefix"])
    def test_generation_begins_from_the_injected_prompt_in_the_templates_own_form(
        self, workspace: Workspace, injecting: Any, position: str
    ) -> None:
        template = "Hints\n{experiences}"
        probe = Probe()
        given = {"experience_position": position, "experience_template": template}
        workspace.run([probe], **injecting | given, max_steps=1)
        hints = f"Hints\nLessons from earlier attempts; use those that fit:\n[G0]. {LESSON}"
        beginnings = {
            "system": SYSTEM.format(f"{hints}\n\n{DEFAULT}") + "<|im_start|>user\nWhich word",
            "user": SYSTEM.format(DEFAULT) + f"<|im_start|>user\n{hints}\n\nWhich word",
            "prefix": SYSTEM.format(DEFAULT)
            + f"<|im_start|>user\n{hints}<|im_end|>\n<|im_start|>assistant\nUnderstood.<|im_end|>\n"
            + "<|im_start|>user\nWhich word",
        }
        texts = rendered(workspace, probe)
        assert len(texts) == 8 and len(set(texts)) == 2, "constant within a group"
        assert all(text.startswith(beginnings[position]) for text in texts), texts[0]
        assert all(text.endswith("<|im_end|>\n<|im_start|>assistant\n") for text in texts)

    def test_a_system_text_of_the_data_stays_behind_it(self, workspace: Workspace, injecting: Any) -> None:
        tiny.write_dataset(
            workspace.data,
            "told",
            [row | {"system": "Be brief."} for row in tiny.questions(16)],
            columns={"prompt": "instruction", "response": "output", "system": "system"},
        )
        probe = Probe()
        own = {"reward_funcs": "exact_match", "grpo_reward_in_process": None, "dataset": "told"}
        workspace.run([probe], **injecting | own, max_steps=1)
        header = "Lessons from earlier attempts; use those that fit:"
        expected = SYSTEM.format(f"{header}\n[G0]. {LESSON}\n\nBe brief.")
        assert all(text.startswith(expected) for text in rendered(workspace, probe))

    def test_episodes_as_worked_examples(self, workspace: Workspace, injecting: Any) -> None:
        with ExperienceLibrary(injecting["experience_library"]) as library:
            library.add(Episode("Which word is third: x y z?", "z", 1.0, metadata={"domain": "words"}))
            library.add(Episode("Which word is last: x y q?", "q", 1.0))
        probe = Probe()
        given = {"experience_inject": "episodes", "experience_where": {"domain": "words"}}
        workspace.run([probe], **injecting | given, max_steps=1)
        assert all("Q: Which word is third: x y z?\nA: z\n\n" in text for text in rendered(workspace, probe))

    def test_the_completions_file_shows_both_prompts(self, workspace: Workspace, injecting: Any) -> None:
        workspace.run(**injecting, max_steps=1)
        for row in workspace.completions():
            assert [message["role"] for message in row["prompt"]] == ["user"]
            system, user = row["injected_prompt"]
            assert LESSON in system["content"] and [user] == row["prompt"]

    def test_an_empty_library_is_the_run_without_one(self, workspace: Workspace, injecting: Any) -> None:
        options = injecting | {"learning_rate": 1e-2, "experience_read_only": True}
        Path(injecting["experience_library"]).unlink()
        with ExperienceLibrary(injecting["experience_library"]):
            pass
        workspace.run(**options)
        first, rows = trainable_weights(workspace.output), workspace.completions()
        assert not any("injected_prompt" in row for row in rows)
        without = {name: None for name in options if name.startswith("experience_")}
        workspace.run(**options | without, output_dir=str(workspace.folder / "plain"))
        workspace.output = workspace.folder / "plain"
        second = trainable_weights(workspace.output)
        assert workspace.completions() == rows
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_the_loss_sees_what_loss_context_says(
        self, workspace: Workspace, injecting: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from llamafactory_plugin.trainer import LlamaFactoryGRPOTrainer

        seen: list[torch.Tensor] = []
        compute = LlamaFactoryGRPOTrainer._compute_loss

        def spy(self: Any, model: Any, inputs: Any) -> Any:
            seen.append(inputs["prompt_ids"])
            return compute(self, model, inputs)

        monkeypatch.setattr(LlamaFactoryGRPOTrainer, "_compute_loss", spy)
        tokenizer = tokenizer_of(workspace)
        for context, has_lesson in (("injected", True), ("plain", False)):
            seen.clear()
            workspace.run(**injecting, grpo_config={"loss_context": context}, max_steps=1, overwrite_output_dir=True)
            texts = [text for ids in seen for text in tokenizer.batch_decode(ids)]
            assert len(texts) == 8
            assert all((LESSON in text) is has_lesson and DEFAULT in text for text in texts)


class TestLibrary:
    def test_rollouts_are_stored_with_their_plain_prompt_and_columns(
        self, workspace: Workspace, injecting: Any
    ) -> None:
        rows = [row | {"domain": "words"} for row in tiny.questions(16)]
        tiny.write_dataset(workspace.data, "words", rows)
        workspace.run(**injecting, experience_metadata_columns="domain")
        with ExperienceLibrary(injecting["experience_library"]) as library:
            stats = library.stats()
            held = [item.record for item in library.records("episode")]
        best = {(row["prompt"][0]["content"], row["completion"]) for row in workspace.completions()}
        assert stats.total_rollouts == 16 and held
        assert {(episode.prompt, episode.response) for episode in held} <= best  # type: ignore[union-attr]
        assert all(episode.metadata == {"domain": "words"} and episode.advantage > 0 for episode in held)  # type: ignore[union-attr]

    def test_read_only(self, workspace: Workspace, injecting: Any) -> None:
        workspace.run(**injecting, experience_read_only=True)
        with ExperienceLibrary(injecting["experience_library"]) as library:
            assert (library.library_size(), library.stats().total_rollouts) == (0, 0)

    def test_dropout_measures_the_lesson(self, workspace: Workspace, injecting: Any) -> None:
        options = {"experience_dropout": 0.5, "max_steps": 6, "per_device_train_batch_size": 16}
        workspace.run(**injecting | options)
        share = logged(workspace, "experience/injected_share")
        assert 0.1 < sum(share) / len(share) < 0.9
        assert logged(workspace, "experience/reward_with") and logged(workspace, "experience/reward_without")
        with ExperienceLibrary(injecting["experience_library"]) as library:
            (lesson,) = library.records("lesson")
            assert lesson.uses > 0

    def test_evaluations_are_injected_during_and_after_training_and_store_nothing(
        self, workspace: Workspace, injecting: Any
    ) -> None:
        options = {"val_size": 4, "eval_strategy": "steps", "eval_steps": 2, "experience_read_only": False}
        workspace.run(**injecting | options, max_steps=2)
        rows = workspace.completions("eval_completions.jsonl")
        assert len(rows) == 2 * 16 and all(LESSON in row["injected_prompt"][0]["content"] for row in rows)
        with ExperienceLibrary(injecting["experience_library"]) as library:
            assert library.stats().total_rollouts == 16

    def test_an_evaluation_alone(self, workspace: Workspace, injecting: Any) -> None:
        workspace.run(**injecting, do_train=False, do_eval=True, val_size=4)
        rows = workspace.completions("eval_completions.jsonl")
        assert len(rows) == 16 and all("injected_prompt" in row for row in rows)

    def test_a_rescue_of_dead_groups(self, workspace: Workspace, injecting: Any) -> None:
        """The reward is 1 only with a hint in the prompt, which no reward function can see: the test looks there."""
        (workspace.folder / "rewards.py").write_text(
            "def plain(prompts, completions, **columns):\n"
            "    assert all(len(prompt) == 1 for prompt in prompts)\n"
            "    return [0.0] * len(prompts)\n",
            encoding="utf-8",
        )
        options = {"experience_inject": "none", "experience_rescue": "on_policy_hinted", "experience_rescue_visits": 1}
        probe = Probe()
        workspace.run([probe], **injecting | options)
        assert logged(workspace, "experience/rescue_visits") == [2.0, 2.0]
        assert logged(workspace, "experience/hint_solve_rate") == [0.0, 0.0]
        hinted = [LESSON in text for text in rendered(workspace, probe)]
        # 8 rows without a hint, then 2 of each of 2 groups with one, in every step.
        assert hinted == 2 * ([False] * 8 + [True] * 4)
        assert all(DEFAULT in text for text in rendered(workspace, probe))


class TestCommand:
    @pytest.mark.slow
    def test_checkpoint_and_resume(self, workspace: Workspace, injecting: Any) -> None:
        """A real command, killed by its step limit, then resumed: nothing is stored twice."""
        path = workspace.output / "experiences.db"
        options = {"experience_library": str(path), "save_strategy": "steps", "save_steps": 1}
        run = workspace.yaml(**injecting | options)
        output = workspace.cli(run).stdout
        assert f"GRPO experience library {path}: lessons injected, position system" in output
        with ExperienceLibrary(path) as library:
            assert library.config.group_size == 4
            library.add(Lesson("learned elsewhere meanwhile"))
        assert (workspace.output / "checkpoint-1" / "experiences.db").exists()
        checkpoint = workspace.output / "checkpoint-2"
        workspace.cli(run, "max_steps=3", f"resume_from_checkpoint={checkpoint}")
        with ExperienceLibrary(path) as library, ExperienceLibrary(checkpoint / "experiences.db") as saved:
            assert saved.stats().total_rollouts == 16 and library.stats().total_rollouts == 24
            steps = [version.step for version in library.history() if version.cause == "rollouts"]
            assert steps == [3, 2, 1] and library.lesson_count() == 0
        assert [row["step"] for row in workspace.completions()] == [1] * 8 + [2] * 8 + [3] * 8

    def test_two_ranks_share_one_library(self, workspace: Workspace, injecting: Any) -> None:
        options = {"grpo_group_size": 8, "finetuning_type": "full", "experience_dropout": 0.5}
        run = workspace.yaml(**injecting | options)
        workspace.cli(run, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
        groups = [workspace.completions()[start : start + 8] for start in range(0, 32, 8)]
        assert all(len({json.dumps(row.get("injected_prompt")) for row in group}) == 1 for group in groups)
        with ExperienceLibrary(injecting["experience_library"]) as library:
            assert library.stats().total_rollouts == 32 and library.check_integrity() == []

    def test_the_check_command_tells(self, workspace: Workspace, injecting: Any, capsys: Any) -> None:
        from llamafactory_plugin.check import main

        main([str(workspace.yaml(**injecting, experience_dropout=0.5))])
        path = injecting["experience_library"]
        assert f"experience library {path}: lessons injected, position system, dropout 0.5" in capsys.readouterr().out
