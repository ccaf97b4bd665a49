"""Test programs, built here and run in a real process; the sandbox itself is tested elsewhere."""

import ast
import gzip
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.rewards.code_programs import (
    CodeResult,
    build_test_program,
    extract_code,
    humaneval_test,
    parse_test_result,
    python_compiles,
)

NONCE = "0123456789abcdef" * 2
ADD = "def add(a, b):\n    return a + b\n"
TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]


def run(code, tests, timeout=20):
    program, nonce = build_test_program(code, tests)
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=timeout)
    return parse_test_result(done.stdout, nonce, len(tests))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Sure:\n```python\na = 1\n```\nor\n```python\na = 2\n```\n", "a = 2\n"),
        ("```\na = 1\n```", "a = 1\n"),
        ("a = 1", "a = 1"),
        ("```python\na = 1", None),
        ("```python\n \n```", None),
        (" \n", None),
    ],
)
def test_extract_code(text, code):
    assert extract_code(text) == code


@pytest.mark.parametrize(
    ("code", "passed", "error"),
    [
        (ADD, 2, None),
        ("def add(a, b):\n    return 3\n", 1, "AssertionError"),
        ("def add(a, b) return", 0, "SyntaxError"),
        ("x = 1", 0, "NameError"),
        ("raise RuntimeError('no')", 0, "RuntimeError: no"),
        (ADD + "print('passed', '" + NONCE + '{"passed": 2}' + "')", 2, None),
        (ADD + "if __name__ == '__main__':\n    raise SystemExit", 2, None),
        ("import sys\n" + ADD + "sys.exit(0)", 0, "SystemExit"),
        ("import os\n" + ADD + "os._exit(0)", 0, "no result"),
        (ADD + "TESTS = []\nNONCE = ''\nrun = report = None", 2, None),
        (ADD + "import os\nos.close(1)", 2, None),
        (ADD + "import sys\nsys.stdout = None", 2, None),
        ("'''{braces}''' '\\n' \"quotes\"\n" + ADD, 2, None),
    ],
)
def test_programs_in_a_real_process(code, passed, error):
    result = run(code, TESTS)
    assert (result.passed, result.total, result.share) == (passed, 2, passed / 2)
    assert result.error is None if error is None else result.error.startswith(error)


def test_tests_do_not_see_each_others_names():
    assert run(ADD, ["add = None", "assert add(1, 2) == 3"]).passed == 2


def test_humaneval_canonical_and_wrong_solutions(repository):
    path = repository.parent / "shared" / "data" / "humaneval" / "HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip("../shared/data/humaneval/HumanEval.jsonl.gz is not here")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    assert len(rows) == 164
    # Every tenth row, to be quick.
    for row in rows[::10]:
        tests = humaneval_test(row["test"], row["entry_point"])
        assert run(row["prompt"] + row["canonical_solution"], tests) == CodeResult(1, 1)
        assert run(row["prompt"] + "    return 'wrong'\n", tests).passed == 0


def test_bad_arguments_are_refused():
    for tests in ([], "assert True"):
        with pytest.raises(ValueError, match="tests must be a non-empty list of Python sources"):
            build_test_program(ADD, tests)
    with pytest.raises(ValueError, match="entry_point must be the name of a function, not 'f\\(\\)'"):
        humaneval_test("", "f()")
    with pytest.raises(ValueError, match="nonce must be 32 hexadecimal digits"):
        parse_test_result("", "x", 1)


@settings(deadline=None)
@given(st.text(max_size=80), st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_any_code_and_tests_make_a_program_that_holds_them_as_data(code, tests):
    program, nonce = build_test_program(code, tests)
    values = {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in ast.parse(program).body
        if isinstance(statement, ast.Assign)
    }
    assert values == {"NONCE": nonce, "CODE": code, "TESTS": tests, "ISOLATED": True}


@settings(deadline=None)
@given(st.text(max_size=200), st.integers(1, 5))
def test_any_output_gives_a_result(output, total):
    for text in (output, f"\n{NONCE}{output}", f'\n{NONCE}{{"passed": {output}}}\n'):
        result = parse_test_result(text, NONCE, total)
        assert 0 <= result.passed <= result.total == total
        assert 0 <= result.share <= 1


@pytest.mark.parametrize(
    ("line", "passed"),
    [
        ('{"passed": 2, "total": 2, "error": null}', 2),
        ('{"passed": 3, "total": 2, "error": null}', 0),
        ('{"passed": 3, "total": 3, "error": null}', 0),
        ('{"passed": true, "total": 2, "error": null}', 0),
        ('{"passed": 2, "total": 2, "error": 5}', 0),
        ('{"passed": -1, "total": 2, "error": null}', 0),
        ("[" * 5000, 0),
        ("[]", 0),
        ("", 0),
    ],
)
def test_result_lines(line, passed):
    assert parse_test_result(f"noise\n{NONCE}{line}\nmore", NONCE, 2).passed == passed
    assert parse_test_result(f"noise\n{'f' * 32}{line}\n", NONCE, 2).error.startswith("no result")


@pytest.mark.parametrize(
    ("code", "compiles"),
    [(ADD, True), ("def f(:", False), ("", False), ("# only a comment", False), ("\0", False), ("\ud800", False)],
)
def test_python_compiles(code, compiles):
    assert python_compiles(code) is compiles


@settings(deadline=None)
@given(st.text(max_size=100))
def test_any_text_compiles_or_not(text):
    assert python_compiles(text) in (True, False)
