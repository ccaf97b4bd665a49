"""`grpo-ext bitdelta` as a user runs it."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.bitdelta.conftest import save, tiny
from tests.bitdelta.test_callback import tokenizer
from trl_grpo_ext.cli.bitdelta import main, read_prompts
from trl_grpo_ext.cli.evaluate import main as evaluate

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(capsys):
    def command(*arguments):
        status = main([*map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


def test_the_whole_way(run, pair, tmp_path):
    base, tuned = pair
    options = ["--group-size", 16, "--safety-threshold", 0.5, "--json"]
    status, out, _ = run("compress", base, tuned, tmp_path / "delta", *options)
    figures = json.loads(out)
    assert status == 0 and figures["delta_bytes"] < figures["full_bytes"] / 4 and figures["codecs"]["sign"] == 14
    assert run("inspect", tmp_path / "delta")[1].startswith(f"{figures['delta_bytes']:,} bytes instead of")
    assert "sign mask explains" in run("inspect", tmp_path / "delta", "--tensors")[1]
    tensors = json.loads(run("inspect", tmp_path / "delta", "--tensors", "--json")[1])["tensors"]
    assert tensors["model.layers.0.mlp.up_proj.weight"]["params"]["group"] == 16
    assert (
        run("verify", tmp_path / "delta")[1] == f"{len(tensors)} tensors are whole, and their base is the right one\n"
    )
    assert run("apply", base, tmp_path / "delta", tmp_path / "applied")[0] == 0
    assert run("export", tmp_path / "delta", tmp_path / "exported", "--dtype", "float32", "--base", base)[0] == 0
    folders = (tmp_path / "applied", tmp_path / "exported")
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype="auto") for folder in folders]
    assert [model.dtype for model in models] == [torch.bfloat16, torch.float32]


def test_distill(run, pair, made, tmp_path):
    tuned, prompts = shutil.copytree(pair[1], tmp_path / "tuned"), tmp_path / "prompts.txt"
    tokenizer().save_pretrained(tuned)
    prompts.write_text("1 2 3\n4 5 6 7\n")
    options = ["--prompts", prompts, "--steps", 2, "--json"]
    status, out, error = run("distill", made[0], tuned, tmp_path / "better", *options)
    assert status == 0, error
    assert json.loads(out)["fits"] == {"distill": json.loads(out)["codecs"]["sign"]}
    assert run("verify", tmp_path / "better")[0] == 0
    assert "is not empty" in run("distill", made[0], tuned, tmp_path / "better", *options)[2]
    assert "it has no sign codes" in run("distill", made[1], tuned, tmp_path / "out", *options)[2]
    assert "steps and rate must be" in run("distill", made[0], tuned, tmp_path / "out", *options, "--steps", 0)[2]
    other = save(tiny(intermediate_size=96), tmp_path / "other")
    tokenizer().save_pretrained(other)
    assert "it is not the model that" in run("distill", made[0], other, tmp_path / "out", *options)[2]
    assert not (tmp_path / "out").exists()


def test_refusals_are_one_line(run, pair, made, tmp_path):
    status, out, error = run("compress", pair[0], pair[0], pair[1])
    assert (status, out) == (1, "") and error.startswith("error: ") and error.count("\n") == 1
    assert "bits must be an integer" in run("compress", *pair, tmp_path / "out", "--bits", 9)[2]
    assert "it is no delta" in run("inspect", pair[0])[2]
    assert "is not of low rank" in run("export", made[0], tmp_path / "out", "--format", "lora")[2]
    assert "others" in run("verify", made[0], "--base", pair[1])[2]
    assert not (tmp_path / "out").exists()


def test_prompts_of_a_file(tmp_path):
    plain, rows = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    plain.write_text("one\n\ntwo\n")
    rows.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    assert read_prompts(str(plain)) == read_prompts(str(rows)) == ["one", "two"]
    rows.write_text('{"prompt": "one"}\n{"text": "two"}\n')
    with pytest.raises(ValueError, match="line 2 of"):
        read_prompts(str(rows))


def test_the_command_is_registered():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["trl_grpo_ext.commands"]["bitdelta"] == "trl_grpo_ext.cli.bitdelta:main"


def test_evaluate_takes_the_folder_of_a_delta(made, tmp_path, capsys):
    exact, data = shutil.copytree(made[1], tmp_path / "exact"), tmp_path / "data.jsonl"
    tokenizer().save_pretrained(exact)
    data.write_text('{"prompt": "1 2", "solution": "3"}\n{"prompt": "4", "solution": "5"}\n')
    options = ["--data", str(data), "--scorer", "exact_match", "--max-new-tokens", "3", "--output", str(tmp_path)]
    assert evaluate([str(exact), *options]) == 0
    assert "exact_match/avg@1" in capsys.readouterr().out
    damaged = exact / "bitdelta_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert evaluate([str(exact), *options]) == 1
    assert "truncated" in capsys.readouterr().err
