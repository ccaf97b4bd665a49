"""The quickstart's task generator and its promise; the whole run is `make quickstart`."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
SCRIPTS = ("task", "evaluate", "report")
FIRST_HELD_OUT = ["13+54=", "26+16=", "86+57="]


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The example's scripts, imported as run.py does. Their short names leave sys.modules again afterwards."""
    before = {name: sys.modules.pop(name, None) for name in SCRIPTS}
    sys.path.insert(0, str(QUICKSTART))
    try:
        yield {name: __import__(name) for name in SCRIPTS}
    finally:
        sys.path.remove(str(QUICKSTART))
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


@pytest.fixture(scope="module")
def output(scripts: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    scripts["task"].make_task(folder)
    return folder


def read_rows(output: Path, name: str) -> list[dict[str, str]]:
    info = json.loads((output / "data" / "dataset_info.json").read_text(encoding="utf-8"))
    assert not Path(info[name]["file_name"]).is_absolute()
    return json.loads((output / "data" / info[name]["file_name"]).read_text(encoding="utf-8"))


def test_no_training_set_holds_a_held_out_problem(output: Path) -> None:
    held_out = {row["instruction"] for row in read_rows(output, "addition_heldout")}
    assert len(held_out) == 1000
    for name in ("addition_sft", "addition_grpo"):
        questions = {row["instruction"] for row in read_rows(output, name)}
        assert len(questions) == 9000
        assert not questions & held_out


def test_answers_are_the_reversed_sums(output: Path) -> None:
    for name in ("addition_sft", "addition_grpo", "addition_heldout"):
        for row in read_rows(output, name):
            a, b = row["instruction"].rstrip("=").split("+")
            assert int(row["output"][::-1]) == int(a) + int(b)


def test_the_split_is_the_same_on_every_machine(output: Path) -> None:
    assert [row["instruction"] for row in read_rows(output, "addition_heldout")[:3]] == FIRST_HELD_OUT


def test_the_model_is_as_large_as_announced(output: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(output / "model").num_parameters() == 642_176


def test_the_chat_template_ends_the_answer_with_eos(output: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    question, answer = {"role": "user", "content": "47+85="}, {"role": "assistant", "content": "231"}
    prompt = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([question, answer], tokenize=False)
    assert (prompt, whole) == ("47+85=", "47+85=231<eos>")
    encoded = tokenizer(whole)
    assert set(encoded) == {"input_ids", "attention_mask"}  # `generate()` refuses token_type_ids
    assert encoded["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == "47+85=231"


def test_an_untrained_model_scores_next_to_nothing(output: Path, scripts: dict[str, ModuleType]) -> None:
    accuracy = scripts["evaluate"].evaluate(output / "model")
    assert set(accuracy) == {"greedy", "sampled"}
    assert max(accuracy.values()) <= 0.01


def test_the_accuracy_counts_right_answers(
    output: Path, scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        scripts["evaluate"], "complete", lambda model, tokenizer, questions, mode: ["2", "4", "6", "9"]
    )
    rows = [{"instruction": f"{n}+{n}=", "output": str(2 * n)} for n in (1, 2, 3, 4)]
    assert scripts["evaluate"].evaluate(output / "model", rows, ["greedy"]) == {"greedy": 0.75}


@pytest.mark.parametrize(
    ("before", "after", "is_control", "expected"),
    [
        (0.30, 0.65, False, None),
        (0.20, 0.55, False, None),
        (0.25, 0.54, False, "0.550"),
        (0.40, 0.79, False, "0.800"),
        (0.19, 0.90, False, "outside"),
        (0.46, 0.95, False, "outside"),
        (0.30, 0.30, True, None),
        (0.30, 0.00, True, None),
        (0.30, 0.31, True, "Shuffled"),
        (0.46, 0.10, True, "outside"),
    ],
)
def test_the_promise(
    scripts: dict[str, ModuleType], before: float, after: float, is_control: bool, expected: str | None
) -> None:
    sentence = scripts["report"].verdict({"greedy": before}, {"greedy": after}, is_control)
    assert sentence is None if expected is None else expected in sentence
