"""`grpo_training_free: true`: LLaMA-Factory's model, template and data, no training, the result folder; what is refused."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from llamafactory.data.template import TEMPLATES

from llamafactory_plugin import training_free
from llamafactory_plugin.dispatch import parse_run
from llamafactory_plugin.errors import UsageError
from llamafactory_plugin.training_free import TemplateBackend, prepare_training_free
from tests.llamafactory_plugin import tiny
from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.prepared import flags
from tests.training_free.http_server import Answer, completion, serving
from trl_grpo_ext.training_free import ChatRequest, GateConfig, TrainingFreeConfig

SMALL = {"gate": {"min_pairs": 2, "max_pairs": 4, "look_every": 2}, "batch_size": 4, "max_reflection_length": 8}
TAKEN_OUT = dict.fromkeys(("per_device_train_batch_size", "max_steps", "save_strategy", "logging_steps"))


@pytest.fixture
def lessons(workspace: Workspace) -> Workspace:
    """Runs that learn lessons from 10 of 16 questions."""
    workspace.defaults |= TAKEN_OUT | {"grpo_training_free": True, "grpo_training_free_config": SMALL}
    workspace.defaults |= {"num_train_epochs": 1, "val_size": 6, "grpo_group_size": 3}
    return workspace


def parsed(arguments: dict[str, Any] | list[str]) -> Any:
    from llamafactory.train import tuner

    return parse_run(tuner, arguments)


def prepared(workspace: Workspace, **overrides: Any) -> training_free.PreparedTrainingFree:
    return prepare_training_free(parsed(workspace.arguments(**overrides)))


def test_a_run_of_a_real_model_and_its_resume(lessons: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    lessons.run(finetuning_type="full")
    report = json.loads((lessons.output / "report.json").read_text("utf-8"))
    assert report["status"] in ("finished", "degraded") and [s["rollouts"] for s in report["steps"][:3]] == [12, 12, 6]
    names = {path.name for path in lessons.output.iterdir()}
    assert {"library.db", "report.md", "experiences.json", "system_prompt.txt", "run.db"} <= names
    assert not any("safetensors" in name for name in names)
    calls = report["spent"]["calls"]
    if report["status"] == "finished":
        monkeypatch.setattr(TemplateBackend, "complete", lambda *_: pytest.fail("asked again"))
        lessons.run(finetuning_type="full")
        assert json.loads((lessons.output / "report.json").read_text("utf-8"))["spent"]["calls"] == calls


def test_a_reflector_of_its_own_and_a_lesson_that_is_learned(lessons: Workspace) -> None:
    """Without a gate, from groups without a spread: what the endpoint proposes is in the library and in later prompts."""
    pytest.importorskip("httpx")
    lesson = "When a question asks for the second word, name the word in the middle."

    def propose(body: dict[str, Any]) -> Answer:
        return Answer(body=completion(json.dumps([{"operation": "add", "text": lesson}])))

    with serving(propose) as endpoint:
        reflector = {"base_url": endpoint.url, "model": "reflector"}
        own = {"batch_size": 8, "gate": None, "require_spread": False, "reflector": reflector, "lesson_dropout": 0}
        lessons.run(val_size=None, num_train_epochs=1, grpo_training_free_config=own)
        asked = {body["model"] for body in endpoint.requests}
    assert asked == {"reflector"}
    assert json.loads((lessons.output / "experiences.json").read_text("utf-8")) == {"G0": lesson}
    assert lesson in (lessons.output / "system_prompt.txt").read_text("utf-8")
    report = json.loads((lessons.output / "report.json").read_text("utf-8"))
    assert not report["gated"] and [step["rollouts"] for step in report["steps"]] == [24, 24]


def test_prompts_are_rendered_by_the_template(lessons: Workspace) -> None:
    """As LLaMA-Factory's own inference renders them, the template's default system text behind the lessons."""
    from llamafactory.model import load_model

    found = prepared(lessons)
    run, renderer = found.run, found.renderer
    model = load_model(renderer.tokenizer, run.model_args, run.finetuning_args, is_trainable=False)
    backend = TemplateBackend(model, renderer)
    row = found.rows[0]["prompt"]
    assert [message["role"] for message in row] == ["system", "user"]
    assert row[0]["content"] == renderer.template.default_system
    request = ChatRequest(tuple((message["role"], message["content"]) for message in row))
    text = renderer.decode(backend.prompt_ids(request))
    plain, _ = renderer.template.encode_oneturn(
        renderer.tokenizer, [{"role": "user", "content": row[1]["content"]}, {"role": "assistant", "content": ""}]
    )
    assert text == renderer.decode(plain) and "<|im_start|>system" in text


def loaded(found: training_free.PreparedTrainingFree) -> TemplateBackend:
    from llamafactory.model import load_model

    run, tokenizer = found.run, found.renderer.tokenizer
    model = load_model(tokenizer, run.model_args, run.finetuning_args, is_trainable=False)
    return TemplateBackend(model, found.renderer)


def test_a_template_is_rendered_in_place_of_the_tokenizers_own(lessons: Workspace) -> None:
    chat, found = loaded(prepared(lessons)), prepared(lessons, template="default")
    plain = loaded(found)
    request = ChatRequest((("system", "s"), ("user", "u")))
    assert list(plain.prompt_ids(request)) == found.renderer.encode(request.as_messages())
    assert "<|im_start|>" not in found.renderer.decode(plain.prompt_ids(request))
    assert plain.prompt_ids(request) != chat.prompt_ids(request) and plain.name != chat.name


def test_thinking_is_switched_off_by_the_template(lessons: Workspace) -> None:
    """Which the tokenizer's own chat template would not do: LLaMA-Factory's renders the empty thought."""
    request = ChatRequest((("system", "s"), ("user", "u")))
    texts = []
    for flag in (True, False):
        run = prepared(lessons, template="qwen3", enable_thinking=flag)
        texts.append(run.renderer.decode(loaded(run).prompt_ids(request)))
    assert texts[1] == texts[0] + "<think>\n\n</think>\n\n"


def test_the_templates_stop_words_end_an_answer(lessons: Workspace) -> None:
    backend = loaded(prepared(lessons, template="llama3"))
    words = backend.tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|eom_id|>"])
    assert set(words) <= set(backend._stop)


def test_keys_reach_the_settings(lessons: Workspace) -> None:
    own = {"batch_size": 5, "lesson_dropout": 0.1, "gate": {"min_pairs": 3}, "budget": {"max_calls": 7}}
    keys = {"grpo_group_size": 4, "num_train_epochs": 2.0, "grpo_temperature": 0.9, "grpo_eval_temperature": 0.2}
    found = prepared(lessons, **keys, seed=9, disable_shuffling=True, grpo_training_free_config=own).config
    wanted = TrainingFreeConfig.from_mapping(
        {**own, "num_generations": 4, "num_train_epochs": 2, "temperature": 0.9, "eval_temperature": 0.2}
        | {"seed": 9, "shuffle": False, "max_completion_length": 8}
    )
    assert found == wanted


def test_what_is_not_set_is_the_papers(lessons: Workspace) -> None:
    own = {"gate": {"min_pairs": 2}}
    taken_out = {"grpo_group_size": None, "num_train_epochs": None, "grpo_max_completion_length": None}
    found = prepared(lessons, **taken_out, grpo_training_free_config=own).config
    assert found == TrainingFreeConfig(seed=42, gate=GateConfig(min_pairs=2))


def test_evaluation_data_are_for_the_gate(lessons: Workspace) -> None:
    found = prepared(lessons)
    assert len(found.rows) == 10 and found.held_out is not None and len(found.held_out) == 6
    tiny.write_dataset(lessons.data, "more", tiny.questions(7, seed=5))
    other = prepared(lessons, val_size=None, eval_dataset="more")
    assert len(other.rows) == 16 and other.held_out is not None and len(other.held_out) == 7
    assert prepared(lessons, val_size=None).held_out is None


def test_keys_of_training_are_named_in_one_line(lessons: Workspace) -> None:
    found = prepared(lessons, learning_rate=1e-5, lora_rank=4, per_device_train_batch_size=2, cutoff_len=512)
    assert "not read, since nothing is trained: learning_rate, lora_rank, per_device_train_batch_size" in found.lines
    assert not any("not read" in line for line in prepared(lessons).lines)


def test_functions_of_files_run_in_workers(lessons: Workspace) -> None:
    text = "def second(completions, solution, **kwargs):\n    return [1.0] * len(completions)\n"
    (lessons.folder / "rewards.py").write_text(text)
    found = prepared(lessons, reward_funcs=f"{lessons.folder / 'rewards.py'}:second")
    assert found.rewards[0].__name__ == "second"


def test_flags(lessons: Workspace) -> None:
    given = {name: value for name, value in lessons.arguments().items() if name != "grpo_training_free"}
    given["grpo_training_free_config"] = json.dumps(SMALL, separators=(",", ":"))
    run = parsed([*flags(given), "--grpo_training_free"])
    assert prepare_training_free(run).config.batch_size == 4


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"grpo_training_free": False}, ["grpo_training_free_config", "only with grpo_training_free"]),
    ({"grpo_training_free": "sure"}, ["grpo_training_free must be true or false"]),
    ({"grpo_training_free_config": "x"}, ["grpo_training_free_config", "JSON object"]),
    ({"grpo_training_free_config": {"batchsize": 3}}, ["grpo_training_free_config.batchsize", "'batch_size'"]),
    (
        {"grpo_training_free_config": {"batch_size": 0}},
        ["grpo_training_free_config.batch_size must be a whole number"],
    ),
    ({"grpo_training_free_config": {"gate": {"alpha": 2}}}, ["grpo_training_free_config.gate.alpha"]),
    ({"grpo_training_free_config": {"num_generations": 3}}, ["it is the key grpo_group_size"]),
    ({"grpo_training_free_config": {"reflector": "nowhere"}}, ["reflector.model", "'nowhere'"]),
    ({"grpo_training_free_config": {}}, ["the gate can't accept anything", "6 held-out problems", "min_pairs=30"]),
    ({"num_train_epochs": 1.5}, ["num_train_epochs must be a whole number"]),
    ({"grpo_beta": 0.1}, ["grpo_beta", "there is no loss"]),
    ({"grpo_preset": "dr_grpo"}, ["grpo_preset", "there is no loss"]),
    ({"top_p": 0.9}, ["top_p", "sampled from the model itself"]),
    ({"max_steps": 3}, ["max_steps", "num_train_epochs"]),
    ({"reward_weights": [1.0]}, ["reward_weights", "grpo_reward_composition"]),
    ({"reward_funcs": "exact_match,repetition_penalty"}, ["one reward, not 2"]),
    ({"experience_library": "e.db"}, ["experience_library", "output_dir/library.db"]),
    ({"do_train": False}, ["do_train: true"]),
    ({"streaming": True, "max_steps": 2, "val_size": None}, ["streaming"]),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSED, ids=[str(overrides)[:60] for overrides, _ in REFUSED])
def test_refusals(
    lessons: Workspace, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, Any], words: list[str]
) -> None:
    monkeypatch.setattr(training_free, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    sentence = lessons.refused(**overrides)
    assert [word for word in words if word not in sentence] == [], sentence


def test_several_processes_are_refused(lessons: Workspace) -> None:
    from llamafactory_plugin.training_free_settings import refuse_training

    with pytest.raises(UsageError, match="in one process, not in 2"):
        refuse_training(parsed(lessons.arguments()), 2)


def test_another_stage_refuses_the_keys(lessons: Workspace) -> None:
    taken_out = dict.fromkeys(name for name in lessons.defaults if name.startswith("grpo_"))
    sentence = lessons.refused(**taken_out | {"stage": "sft", "grpo_training_free": True})
    assert "grpo_training_free: only stage grpo reads this" in sentence


def test_ctrl_c_ends_with_a_line(lessons: Workspace, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TemplateBackend, "complete", stop)
    with pytest.raises(SystemExit) as status:
        lessons.run()
    assert status.value.code == 130 and any("the same command continues" in line for line in log_lines)
    assert json.loads((lessons.output / "report.json").read_text("utf-8"))["status"] == "interrupted"


def test_check_says_what_it_will_do(
    lessons: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from llamafactory_plugin.check import main

    monkeypatch.setattr(training_free, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert main([str(lessons.yaml())]) == 0
    output = capsys.readouterr().out
    assert "training-free: 10 problems, 6 held out for the gate; 3 steps of at most 4 problems x 3 rollouts" in output
    assert "exact_match" in output and not lessons.output.exists()


@pytest.mark.slow
def test_the_stock_command(lessons: Workspace) -> None:
    result = lessons.cli(str(lessons.yaml()))
    assert "GRPO training-free: 10 problems" in result.stdout + result.stderr
    assert (lessons.output / "system_prompt.txt").exists() and Path(lessons.output / "experiences.json").exists()


EXAMPLES = Path(__file__).parents[2] / "examples" / "llamafactory"
PAGE = Path(__file__).parents[2] / "docs" / "training_free.md"


@pytest.fixture
def gsm8k(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is put in the place of a shown run's model, sizes and folders."""
    monkeypatch.setitem(TEMPLATES, "qwen3", copy.deepcopy(TEMPLATES["qwen3"]))
    rows = [{"question": f"What is {number} plus 1?", "answer": f"It is.\n#### {number + 1}"} for number in range(40)]
    tiny.write_dataset(workspace.data, "gsm8k", rows, columns={"prompt": "question", "response": "answer"})
    given = {name: workspace.defaults[name] for name in ("model_name_or_path", "dataset_dir", "output_dir", "use_cpu")}
    workspace.defaults = {}
    return given | {"num_train_epochs": 1, "grpo_group_size": 2, "grpo_max_completion_length": 4}


def test_the_example_runs(workspace: Workspace, gsm8k: dict[str, Any]) -> None:
    run = yaml.safe_load((EXAMPLES / "training_free.yaml").read_text(encoding="utf-8"))
    own = run["grpo_training_free_config"] | {"gate": {"min_pairs": 5}, "max_reflection_length": 4}
    workspace.run(**run | gsm8k | {"val_size": 10, "grpo_training_free_config": own})
    report = json.loads((workspace.output / "report.json").read_text("utf-8"))
    assert report["status"] in ("finished", "degraded") and report["steps"][0]["rollouts"] == 60


def test_the_run_of_the_page_passes(workspace: Workspace, gsm8k: dict[str, Any]) -> None:
    _, shown = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    found = prepared(workspace, **gsm8k | yaml.safe_load(shown) | {"reward_funcs": "gsm8k_number"})
    assert (len(found.rows), found.config.batch_size, found.config.num_generations) == (10, 20, 5)
    assert found.lines[0].startswith("training-free: 10 problems, 30 held out for the gate; 3 steps")
