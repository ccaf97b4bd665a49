"""`resolve_reward_funcs`: names, files, callables, and each refusal's sentence."""

import pickle
import sys

import pytest

from trl_grpo_ext import REWARDS, exact_match, gsm8k_number, resolve_reward_funcs

FILE = """
LOADS = []
LOADS.append(1)
CONSTANT = 3

def length(completions, **kwargs):
    return [float(len(c)) for c in completions]

class Scorer:
    def __call__(self, completions, **kwargs):
        return [0.0] * len(completions)

scorer = Scorer()
"""


@pytest.fixture
def rewards_file(tmp_path):
    path = tmp_path / "my_rewards.py"
    path.write_text(FILE)
    return path


def refusal(specs, *folders):
    with pytest.raises(ValueError) as caught:
        resolve_reward_funcs(specs, folders)
    return str(caught.value)


def test_names_and_callables_in_order():
    def own(completions, **kwargs):
        return [0.0] * len(completions)

    assert resolve_reward_funcs(["gsm8k_number", own, "exact_match"]) == [gsm8k_number, own, exact_match]
    assert resolve_reward_funcs("exact_match") == [exact_match]
    assert resolve_reward_funcs(own) == [own]
    assert {"exact_match", "gsm8k_number", "math_equal", "math_equal_strict", "preference_overlap"} <= set(REWARDS)
    assert list(REWARDS) == sorted(REWARDS)


@pytest.mark.parametrize("name", ["label_free", "self_consistency", "step_validity"])
def test_stateful_built_ins_are_made_anew(name):
    (first,), (second,) = resolve_reward_funcs(name), resolve_reward_funcs(name)
    assert first is not second and first.__name__ == second.__name__ == name


def test_the_table_can_not_be_changed():
    with pytest.raises(TypeError):
        REWARDS["mine"] = exact_match


def test_file_by_absolute_path(rewards_file):
    (length,) = resolve_reward_funcs([f"{rewards_file}:length"])
    assert length(["abc"]) == [3.0]


def test_file_is_looked_up_in_order_then_in_the_working_directory(tmp_path, monkeypatch):
    for folder in ("first", "second", "working"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "r.py").write_text(f"def f(completions, **kwargs):\n    return ['{folder}']\n")
    monkeypatch.chdir(tmp_path / "working")

    def found(*folders):
        return resolve_reward_funcs("r.py:f", folders)[0]([])

    assert found(tmp_path / "absent", tmp_path / "second", tmp_path / "first") == ["second"]
    assert found(str(tmp_path / "first")) == ["first"]
    assert found(tmp_path / "absent") == ["working"]
    assert resolve_reward_funcs("r.py:f", str(tmp_path / "second"))[0]([]) == ["second"]


def test_same_file_is_one_module_and_its_functions_pickle(rewards_file, tmp_path, monkeypatch):
    (first,) = resolve_reward_funcs([f"{rewards_file}:length"])
    monkeypatch.chdir(tmp_path)
    (second,) = resolve_reward_funcs(["./my_rewards.py:length"])
    assert first is second
    assert sys.modules[first.__module__].LOADS == [1]
    assert pickle.loads(pickle.dumps(first)) is first


def test_files_of_one_name_in_two_folders_are_two_modules(tmp_path):
    for folder, name in (("a", "f"), ("b", "g")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "r.py").write_text(f"def {name}(completions, **kwargs):\n    return ['{folder}']\n")
    f, g = resolve_reward_funcs(["a/r.py:f", "b/r.py:g"], [tmp_path])
    assert (f([]), g([])) == (["a"], ["b"])


def test_the_folder_of_the_file_is_not_importable(tmp_path):
    (tmp_path / "neighbour_of_the_reward.py").write_text("")
    (tmp_path / "r.py").write_text("import neighbour_of_the_reward\ndef f(completions, **kwargs):\n    return []\n")
    before = list(sys.path)
    sentence = refusal("r.py:f", tmp_path)
    assert sys.path == before
    assert "ModuleNotFoundError: No module named 'neighbour_of_the_reward'" in sentence
    assert "set PYTHONPATH" in sentence


def test_unknown_name():
    sentence = refusal(["gsm8k_numbr"])
    assert "Unknown reward 'gsm8k_numbr', did you mean 'gsm8k_number'?" in sentence
    assert "exact_match, game_of_24, gsm8k_number" in sentence
    assert "did you mean" not in refusal("zzz")


def test_missing_file(tmp_path, monkeypatch):
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    sentence = refusal("no.py:f", tmp_path / "conf")
    assert f"folder searched: {tmp_path / 'conf'}, {tmp_path / 'working'}." in sentence
    assert refusal(f"{tmp_path}/no.py:f") == f"Reward file '{tmp_path}/no.py' does not exist."


@pytest.mark.parametrize("spec", ["r.py", "r.py:", ":f"])
def test_no_function_named(spec):
    assert "names no function; write it as 'path/to/file.py:function'" in refusal(spec)


@pytest.mark.parametrize("body", ["raise RuntimeError('broken here')", "import sys; sys.exit('broken here')"])
def test_file_that_fails_at_import(tmp_path, body):
    path = tmp_path / "bad.py"
    path.write_text(body)
    with pytest.raises(ValueError, match="fails at import") as caught:
        resolve_reward_funcs(f"{path}:f")
    assert str(path) in str(caught.value)
    assert "broken here" in str(caught.value)
    assert isinstance(caught.value.__cause__, (RuntimeError, SystemExit))
    # A mended file is imported anew, not taken from a half-made module.
    path.write_text("def f(completions, **kwargs):\n    return [1.0]\n")
    assert resolve_reward_funcs(f"{path}:f")[0]([]) == [1.0]


def test_syntax_error_is_named(tmp_path):
    (tmp_path / "bad.py").write_text("def f(:\n")
    assert "SyntaxError" in refusal("bad.py:f", tmp_path)


def test_not_a_python_file(tmp_path):
    (tmp_path / "rewards.txt").write_text("")
    assert "must end in .py" in refusal("rewards.txt:f", tmp_path)


def test_missing_function(rewards_file):
    sentence = refusal(f"{rewards_file}:lenght")
    assert "has no 'lenght', did you mean 'length'?" in sentence
    assert "Callables in it: Scorer, length, scorer." in sentence


@pytest.mark.parametrize(("name", "kind"), [("CONSTANT", "int"), ("Scorer", "class")])
def test_objects_that_are_no_functions(rewards_file, name, kind):
    assert f"is a {kind}, not a function" in refusal(f"{rewards_file}:{name}")


def test_callable_without_a_name(rewards_file):
    assert "has no __name__, under which TRL logs it" in refusal(f"{rewards_file}:scorer")


def test_something_else_as_a_reward():
    assert "Reward None is a NoneType, not a function" in refusal([None])


def test_two_functions_of_one_name(tmp_path):
    (tmp_path / "r.py").write_text("def exact_match(completions, **kwargs):\n    return []\n")
    for specs in (["exact_match", "exact_match"], ["exact_match", "r.py:exact_match"]):
        assert "Two reward functions have the name 'exact_match'" in refusal(specs, tmp_path)
