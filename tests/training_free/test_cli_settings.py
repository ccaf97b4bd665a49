"""The file of a run: what reaches the run, and one sentence for every key that can't work, before a model is loaded."""

import dataclasses
import json
import sys

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("httpx")

from tests.training_free.command_runs import write_run
from tests.training_free.http_server import serving
from trl_grpo_ext.cli.train_free import main
from trl_grpo_ext.training_free import Budget, GateConfig, TrainingFreeConfig, read_run_settings
from trl_grpo_ext.training_free.backends import RetryPolicy
from trl_grpo_ext.training_free.data_settings import DataSettings, json_rows
from trl_grpo_ext.training_free.model_settings import BACKENDS, EndpointModel, LocalModel, VLLMModel
from trl_grpo_ext.training_free.run_settings import SECTIONS, RunSettings
from trl_grpo_ext.training_free.settings_file import overridden

URL = "http://127.0.0.1:9/v1"


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    for kind in (LocalModel, VLLMModel):
        monkeypatch.setattr(kind, "load", lambda self: pytest.fail("a model was loaded"))


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path, URL)


def refused(capsys, run, *overrides):
    """The sentence of a refusal; nothing may have been written."""
    assert main([str(run), *(part for item in overrides for part in ("--set", item))]) == 1
    found = capsys.readouterr()
    assert found.err.startswith("error: ") and found.err.count("\n") == 1 and found.out == ""
    assert not (run.parent / "out").exists()
    return found.err


# Every key of a file, but for those below that may hold anything of their kind.
KEYS = [
    *(f"config.{item.name}" for item in dataclasses.fields(TrainingFreeConfig) if item.name not in ("gate", "budget")),
    *(f"gate.{item.name}" for item in dataclasses.fields(GateConfig)),
    *(f"budget.{item.name}" for item in dataclasses.fields(Budget)),
    *(f"policy.{item.name}" for item in dataclasses.fields(EndpointModel)),
    *(f"policy.retry.{item.name}" for item in dataclasses.fields(RetryPolicy)),
    *(f"dataset.{item.name}" for item in dataclasses.fields(DataSettings)),
    *SECTIONS,
    "policy.backend",
    "budget.prices.model",
    "budget.prices.model.prompt",
]


@pytest.mark.parametrize("key", KEYS)
def test_a_value_of_a_wrong_type_is_refused_by_name(capsys, run, key):
    # A list with a mapping in it is right nowhere.
    assert key in refused(capsys, run, f"{key}=[{{a: 1}}]")


@pytest.mark.parametrize("section", ["", "config.", "gate.", "budget.", "policy.", "policy.retry.", "dataset."])
def test_an_unknown_key_is_refused_with_what_there_is(capsys, run, section):
    sentence = refused(capsys, run, f"{section}colour=red")
    assert f"{section}colour" in sentence and "There are: " in sentence


REFUSED = [
    ("config.num_generation=8", ["did you mean 'num_generations'"]),
    ("config.gate=null", ["config.gate", "There are: "]),
    ("config.num_generations=0", ["config.num_generations must be a whole number of at least 1, not 0"]),
    ("config.temperature=1e-1", ["config.temperature must be a number, not '1e-1'", "write 1.0e-3"]),
    ("config.template=lessons", ["config.template", "{experiences}", "exactly once"]),
    ("gate.alpha=2", ["gate.alpha must be above 0 and below 1"]),
    ("gate.min_pairs=2000", ["gate.max_pairs"]),
    ("gate={}", ["24 held-out problems", "min_pairs=30"]),
    ("gate=null", ["held_out is for the gate"]),
    ("held_out=null", ["min_pairs=20", "held_out_share"]),
    ("held_out.path=rows.jsonl", ["held_out holds 6 problems of the dataset"]),
    ("budget.max_calls=0", ["budget.max_calls", "above 0"]),
    ("budget.max_cost=1", ["max_cost needs prices"]),
    ("budget={max_cost: 1, prices: {other: {prompt: 1, completion: 1}}}", ["has none for the model 'openai:policy'"]),
    ("reflector={max_cost: 1}", ["reflector.max_cost: there is no such key"]),
    ("policy.backend=llama", ["policy.backend must be one of transformers, openai, vllm, not 'llama'"]),
    ("policy.api_key=sk-1", ["policy.api_key", "policy.api_key_env"]),
    ("policy.api_key_env=NO_SUCH_VARIABLE", ["policy", "api_key_env='NO_SUCH_VARIABLE'", "no such environment"]),
    ("policy.base_url=127.0.0.1", ["policy: base_url must be like http://"]),
    ("policy.concurrency=0", ["policy: concurrency must be at least 1"]),
    ("policy.retry.attempts=0", ["policy", "attempts must be at least 1"]),
    ("policy={backend: openai, model: m}", ["policy.base_url is missing"]),
    ("policy={backend: transformers, model: nowhere}", ["policy.model: 'nowhere' is no folder with a model"]),
    ("reflector=nowhere", ["reflector.model: 'nowhere' is no folder"]),
    ("policy=null", ["policy is missing"]),
    ("dataset.path=nowhere.jsonl", ["dataset.path: there is no nowhere.jsonl"]),
    ("dataset.split=train", ["dataset.split is for folders"]),
    ("dataset.max_samples=0", ["dataset.max_samples must be at least 1"]),
    ("dataset.columns.prompt=question", ["dataset.columns: row 0 has no column 'question'; it has task, code"]),
    ("dataset.columns={}", ["row 0 has none of the columns prompt, question, query, problem"]),
    ("dataset.path=my_reward.py", ["my_reward.py, line 2: no JSON"]),
    ("reward=gsm8k_nunber", ["gsm8k_nunber", "gsm8k_number"]),
    ("reward=gsm8k_number", ["gsm8k_number", "'solution'"]),
    ("reward=my_reward.py:unsolved", ["unsolved"]),
    ("reward=other.py:solved", ["other.py"]),
    ("output_dir=null", ["output_dir is missing"]),
    ("config.given_ground_truth=false", ["'code'", "withholds"]),
    ("policy", ["--set policy: write KEY=VALUE"]),
    ("a..b=1", ["write KEY=VALUE"]),
    ("gate.alpha=[1", ["the value is no YAML"]),
    ("reward.name=1", ["reward is 'my_reward.py:solved' in the file and has no keys"]),
]


@pytest.mark.parametrize(("override", "words"), REFUSED, ids=[override[:60] for override, _ in REFUSED])
def test_refusals_name_the_key_and_the_way_out(capsys, run, override, words):
    sentence = refused(capsys, run, override)
    assert [word for word in words if word not in sentence] == [], sentence


def test_vllm_is_refused_where_it_is_not_installed(capsys, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        assert "vllm serve" in refused(capsys, run, "policy={backend: vllm, model: m}")


@pytest.mark.parametrize(
    "text", ["- 1", "", "policy: [", "a: &a [*a]", "\x00", "policy: !!python/object:os.system {}"]
)
def test_files_that_are_no_mapping(capsys, run, text):
    run.write_text(text)
    assert (
        str(run) in refused(capsys, run) or "mapping" in refused(capsys, run) or "no such key" in refused(capsys, run)
    )


def test_a_local_model_without_a_price_is_refused_before_it_is_loaded(capsys, run, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"model_type": "qwen3"}')
    price = "{prompt: 1, completion: 1}"
    given = ["policy=m", f"budget={{max_cost: 1, prices: {{policy: {price}, reflector: {price}}}}}"]
    assert "none for the model 'transformers:qwen3:'" in refused(capsys, run, *given)
    assert (
        main([str(run), "--check", *(x for item in (*given, f"budget.prices.qwen3={price}") for x in ("--set", item))])
        == 0
    )


def test_a_file_that_is_not_there(capsys, tmp_path):
    assert main([str(tmp_path / "nowhere.yaml")]) == 1
    assert "nowhere.yaml can't be read" in capsys.readouterr().err


def test_every_setting_reaches_the_run(run):
    values = {
        "num_generations": 3,
        "num_train_epochs": 1,
        "temperature": 1,
        "template": "Learned:\n{experiences}",
        "answer_columns": ["code", "key"],
        "domain": "codes",
    }
    gate, budget = {"min_pairs": 9, "margin": 0.01}, {"max_calls": 9, "prices": {"*": {"prompt": 1, "completion": 2}}}
    found = read_run_settings(
        run,
        [
            f"config={json.dumps(values)}",
            f"gate={json.dumps(gate)}",
            f"budget={json.dumps(budget)}",
            "policy.timeout=9",
        ],
    )
    wanted = {**values, "answer_columns": ("code", "key")}
    assert {name: getattr(found.config, name) for name in wanted} == wanted
    assert found.config.gate == GateConfig(**gate) and found.config.budget == Budget(**budget)
    assert found.policy.load().timeout == 9 and found.policy.load().retry == RetryPolicy(2, 0.001)
    assert found.config.seed == TrainingFreeConfig().seed


def test_the_backends_take_the_settings_of_their_dataclasses():
    """No option of a backend is without a key, and no default differs."""
    import inspect

    from trl_grpo_ext.training_free.backends import OpenAIBackend, TransformersBackend, VLLMBackend

    left_out = {"self", "tokenizer", "api_key", "engine_options"}
    for name, backend in (("transformers", TransformersBackend), ("openai", OpenAIBackend), ("vllm", VLLMBackend)):
        options = {key: item.default for key, item in inspect.signature(backend.__init__).parameters.items()}
        fields = {item.name: item.default for item in dataclasses.fields(BACKENDS[name])}
        assert set(fields) - {"engine"} == set(options) - left_out
        shared = [key for key in fields if isinstance(fields[key], int | float | str)]
        assert {key: fields[key] for key in shared} == {key: options[key] for key in shared}


def test_paths_are_looked_up_beside_the_file(run, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    prepared = read_run_settings(run).prepare()
    assert (prepared.problems, prepared.kept) == (6, 24) and prepared.rows[0]["prompt"].startswith("Task 0")
    assert prepared.settings.reward == f"{run.parent / 'my_reward.py'}:solved"


def test_data_sets_of_hugging_face(run, capsys):
    from datasets import Dataset, DatasetDict

    rows = [json.loads(line) for line in (run.parent / "rows.jsonl").read_text().splitlines()]
    Dataset.from_list(rows).save_to_disk(run.parent / "one")
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(run.parent / "several")
    capsys.readouterr()
    for overrides in (["dataset.path=one"], ["dataset.path=several", "dataset.split=train"]):
        prepared = read_run_settings(run, [*overrides, "dataset.max_samples=4"]).prepare()
        assert prepared.problems == 4 and [row["code"] for row in prepared.rows] == [row["code"] for row in rows[:4]]
    assert "dataset.split must be one of train" in refused(capsys, run, "dataset.path=several")
    assert "holds one data set without splits" in refused(capsys, run, "dataset.path=one", "dataset.split=x")
    (run.parent / "empty").mkdir()
    assert "no data set that save_to_disk wrote" in refused(capsys, run, "dataset.path=empty")


def test_one_text_is_a_path_or_a_folder(run):
    found = read_run_settings(run, ["dataset=rows.jsonl"])
    assert found.dataset == DataSettings(str(run.parent / "rows.jsonl"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(KEYS), VALUES)
def test_whatever_stands_in_a_file_only_value_errors_come_out(tmp_path_factory, key, value):
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    if not folder.exists():
        folder.mkdir()
        write_run(folder, URL)
    values = yaml.safe_load((folder / "run.yaml").read_text())
    section, *rest = key.split(".")
    nested = value
    for name in reversed(rest):
        nested = {name: nested}
    merged = {**values[section], **nested} if rest and isinstance(values.get(section), dict) else nested
    try:
        RunSettings.from_mapping(values | {section: merged}, folder)
    except ValueError as error:
        assert str(error)


@given(VALUES, st.text(max_size=20))
def test_overrides_leave_the_rest_alone(value, text):
    before = {"a": {"b": value, "c": 1}, "d": value}
    try:
        found = overridden(before, [f"a.e={text}"])
    except ValueError:
        return
    assert found["a"]["c"] == 1 and found["d"] is value and "e" not in before["a"] and "e" in found["a"]


@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3), max_size=5))
def test_json_and_json_lines_give_the_same_rows(rows):
    lines = "\n".join(json.dumps(row) for row in rows)
    assert json_rows(json.dumps(rows), "data") == json_rows(f"{lines}\n\n", "data") == rows


def test_nothing_is_asked_while_a_file_is_read(run):
    with serving(lambda body: pytest.fail("asked")) as endpoint:
        read_run_settings(run, [f"policy.base_url={endpoint.url}"]).prepare()
        assert endpoint.requests == []
