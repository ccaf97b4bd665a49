"""Code runs when the user names it, never because a file of data, a delta or a library says so. Read by `ast`, and tried."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("trl_grpo_ext", "llamafactory_plugin")
# Pickles travel between the trainer and the reward workers that it starts itself, in this direction only.
MAY_PICKLE = "trl_grpo_ext/rewards/runtime/"
# The programs of models and of their tests, in processes of their own.
MAY_EXEC = {"trl_grpo_ext/rewards/code/candidate.py", "trl_grpo_ext/rewards/code/judge.py"}
UNPICKLING = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


@cache
def trees() -> dict[str, ast.Module]:
    """Every file of both packages."""
    files = [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]
    return {path.relative_to(REPOSITORY).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def dotted(node: ast.expr) -> str:
    """`a.b` of a name and its attributes; `?` in the place of another expression."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


@cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """(file, what is called, the call) of both packages."""
    return [
        (file, dotted(node.func), node)
        for file, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


def test_nothing_is_unpickled_but_what_the_trainer_sends_its_workers() -> None:
    found = []
    for file, tree in trees().items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if UNPICKLING & {item.split(".")[0] for item in names}:
                found.append(file)
    assert found and all(file.startswith(MAY_PICKLE) for file in found)


def test_nothing_loads_as_torch_or_yaml_would_run_it() -> None:
    wrong = {"torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "numpy.load", "np.load"}
    # Of a checkpoint, by PyTorch's reader that makes nothing but tensors and plain values.
    harmless = {
        file for file, _, node in calls() for item in node.keywords if ast.unparse(item) == "weights_only=True"
    }
    assert harmless == {"trl_grpo_ext/resume_state.py"}
    found = [(file, ast.unparse(node)) for file, name, node in calls() if name in wrong]
    assert [file for file, call in found if "weights_only=True" not in call] == []


def test_no_shell_and_no_evaluation() -> None:
    shells = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
    assert [(file, name) for file, name, _ in calls() if name in shells | {"eval"}] == []
    assert {file for file, name, _ in calls() if name == "exec"} == MAY_EXEC
    shelled = [file for file, _, node in calls() for item in node.keywords if item.arg == "shell"]
    assert shelled == []


def test_sql_is_never_put_together_from_values() -> None:
    """Every statement is a literal, a name, or a frame around constants and column names of our own."""
    frames = []
    for _file, name, node in calls():
        takes_sql = name.rsplit(".", 1)[-1] in ("execute", "executemany", "executescript", "rows", "value")
        if takes_sql and node.args and isinstance(node.args[0], ast.JoinedStr):
            holes = [ast.unparse(part.value) for part in node.args[0].values if isinstance(part, ast.FormattedValue)]
            frames += [hole for hole in holes if not hole.isupper()]
    # `names` and `assignments` are of CHANGEABLE, `synchronous` of DURABILITY, `columns` of a dataclass, `table` and
    # `index` of literals, `kinds` and `matching` of `filters`, which puts a "?" in the place of each value.
    ours = {"', '.join(names)", "assignments", "synchronous", "columns", "table", "index", "kinds", "matching"}
    assert set(frames) <= ours | {"DURABILITY[durability]", "', '.join('?' * len(row))"}


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.marker, "ran")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "ran"


def test_the_bomb_works(marker: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()


def test_pickles_and_code_beside_a_delta(marker: Path, tmp_path: Path) -> None:
    """A delta folder with a pickled state, a Python file, and a model configuration that names it."""
    from tests.fuzz import deltas
    from trl_grpo_ext import bitdelta

    try:
        folder = shutil.copytree(deltas.folders()["delta"], tmp_path / "delta")
        for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "bitdelta_model.bin"):
            (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
        (folder / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')\n", encoding="utf-8")
        table = json.loads((folder / "bitdelta_config.json").read_text(encoding="utf-8"))
        evil = {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"}
        table["model_config"]["auto_map"] = evil
        (folder / "bitdelta_config.json").write_text(json.dumps(table), encoding="utf-8")
        bitdelta.inspect(folder)
        bitdelta.verify(folder, deltas.folders()["base"])
        out = bitdelta.export(folder, tmp_path / "out", base=deltas.folders()["base"])
        assert not list(Path(out).glob("*.bin")) and not list(Path(out).glob("*.py"))
    finally:
        deltas.forget()
    assert not marker.exists()


@pytest.mark.parametrize("name", ["library.db", "library.json"])
def test_a_pickle_as_library(name: str, marker: Path, tmp_path: Path) -> None:
    from trl_grpo_ext.experience import ExperienceError, ExperienceLibrary

    (tmp_path / name).write_bytes(pickle.dumps(Bomb(marker)))
    with ExperienceLibrary() as library, pytest.raises((ExperienceError, ValueError)):
        library.load_snapshot(tmp_path / name) if name.endswith("db") else library.import_file(tmp_path / name)
    assert not marker.exists()


def test_reward_files_run_when_the_user_names_them_only(marker: Path, tmp_path: Path) -> None:
    """Not those that dataset_info.json, a row, the model's folder or a folder to resume from name."""
    pytest.importorskip("llamafactory", reason="needs LLaMA-Factory (line A)")
    from tests.llamafactory_plugin.conftest import Workspace
    from tests.llamafactory_plugin.tiny import build_model, questions, write_dataset
    from trl_grpo_ext.rewards.loading import load_reward

    workspace = Workspace(tmp_path, build_model(tmp_path / "model"))
    evil = tmp_path / "evil.py"
    evil.write_text(
        f"open({str(marker)!r}, 'w')\ndef reward(completions, **_):\n    return [1.0] * len(completions)\n"
    )
    named = f"{evil}:reward"
    for folder in (workspace.data, tmp_path / "model", workspace.output):
        folder.mkdir(exist_ok=True)
        shutil.copy(evil, folder / "rewards.py")
        (folder / "run_settings.json").write_text(json.dumps({"arguments": {"reward_funcs": [named]}}))
    rows = [row | {"reward_funcs": named, "level": named} for row in questions(16)]
    info = {"reward_funcs": named, "rewards": named, "columns": {"extra": ["level"]}}
    info["columns"] |= {"prompt": "instruction", "response": "output"}
    write_dataset(workspace.data, "words", rows, **info)
    workspace.run(max_steps=1, reward_funcs="exact_match")
    assert not marker.exists()
    # The file is a bomb indeed: named by the user, it runs.
    load_reward(named, [])
    assert marker.exists()
