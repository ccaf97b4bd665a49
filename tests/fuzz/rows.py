"""Rows of datasets on their way through LLaMA-Factory's converters and ours. Line A only."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.target import Target
from tests.fuzz.values import SCALARS, TEXTS, TREES, damage_tree

ALPACA = {"instruction": "What is 2+2?", "input": "", "output": "4", "level": 3}
CHAT = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}], "level": 3}
SHAREGPT = {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}], "level": 3}
EXAMPLES = {"alpaca": ALPACA, "openai": CHAT, "sharegpt": SHAREGPT}
OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


@cache
def parts() -> Any:
    """A template, a tokenizer and LLaMA-Factory's arguments of the data."""
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    from tests.llamafactory_plugin.tiny import build_tokenizer

    arguments = DataArguments(template="qwen", cutoff_len=64)
    tokenizer = build_tokenizer()
    return SimpleNamespace(
        arguments=arguments, tokenizer=tokenizer, template=get_template_and_fix_tokenizer(tokenizer, arguments)
    )


def attributes(formatting: str) -> Any:
    """One dataset's description, as `AttributeLister` prepares it."""
    from llamafactory_plugin.dataset_info import AttributeLister

    columns: dict[str, Any] = {"extra": ["level"]}
    columns |= {} if formatting == "alpaca" else {"messages": next(iter(EXAMPLES[formatting]))}
    columns |= {"prompt": "instruction", "query": "input", "response": "output"} if formatting == "alpaca" else {}
    info = {"file_name": "rows.json", "formatting": formatting, "columns": columns}
    if formatting == "openai":
        info["tags"] = OPENAI_TAGS
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rows.json").write_text("[]")
        (Path(folder) / "dataset_info.json").write_text(json.dumps({"rows": info}))
        return AttributeLister(folder, []).list(["rows"], folder)[0]


def _rows(draw: st.DrawFn) -> tuple[str, list[Any]]:
    formatting = draw(st.sampled_from(sorted(EXAMPLES)))
    rows = [damage_tree(draw, EXAMPLES[formatting]) for _ in range(draw(st.integers(1, 3)))]
    return formatting, rows


def dataset_rows(given: tuple[str, list[Any]]) -> None:
    """Convert and process rows that a table can hold; a row ends in the run or is dropped."""
    from datasets import Dataset
    from llamafactory.data import converter as lf_converter

    from llamafactory_plugin.conversion import KeepColumns
    from llamafactory_plugin.dataset import finish_dataset, load_single_dataset
    from llamafactory_plugin.processing import GRPODatasetProcessor

    formatting, rows = given
    described = attributes(formatting)
    convert = KeepColumns(lf_converter.get_dataset_converter(formatting, described, parts().arguments), described)

    try:
        table = Dataset.from_list(rows)
    except Exception:
        return  # no columns of one type each: `datasets` refuses such a file itself

    def load(_: Any) -> Any:
        return Dataset.from_list([convert(row) for row in table])

    aligned = load_single_dataset(load, described)
    if not len(aligned):
        return
    processor = GRPODatasetProcessor(
        parts().template, parts().tokenizer, None, parts().arguments, max_prompt_length=64
    )
    processed = Dataset.from_dict(processor.preprocess_dataset(aligned[:]))
    assert len(processed) == len(rows)
    finished = finish_dataset("train_dataset", processed, 64)
    for row in finished:
        assert row["prompt"] and all(isinstance(turn["content"], str) for turn in row["prompt"])


def _info(draw: st.DrawFn) -> Any:
    info = {"rows": {"file_name": "rows.json", "formatting": "alpaca", "columns": {"prompt": "q", "extra": ["a"]}}}
    tagged = {"rows": {"file_name": "rows.json", "formatting": "sharegpt", "tags": {"role_tag": "role"}, "ranking": 1}}
    return damage_tree(draw, draw(st.sampled_from([info, tagged])))


def dataset_info(info: Any) -> None:
    """Read a description of datasets."""
    from llamafactory_plugin.dataset_info import AttributeLister

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rows.json").write_text("[]")
        (Path(folder) / "dataset_info.json").write_text(json.dumps(info))
        AttributeLister(folder, []).list(["rows"], folder)


def targets() -> list[Target]:
    """The targets of this file."""
    from llamafactory_plugin.errors import UsageError

    infos = st.one_of(st.composite(_info)(), TREES, st.dictionaries(st.just("rows"), st.one_of(SCALARS, TEXTS)))
    return [
        Target("dataset rows", st.composite(_rows)(), dataset_rows, (UsageError,)),
        Target("dataset_info.json", infos, dataset_info, (UsageError,)),
    ]
