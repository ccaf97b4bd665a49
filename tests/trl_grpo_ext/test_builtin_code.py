"""Code answers: from text to program, the tests of data sets, and programs that try to choose their own verdict.

The judge runs in this process here, the programs in real ones of their own; the sandbox is tested in
`test_code_reward.py`.
"""

import json
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.rewards.code import CodeTests, extract_code, python_compiles
from trl_grpo_ext.rewards.code.candidate import decode, encode
from trl_grpo_ext.rewards.code.cases import Call, Dialogue, Statement, cases_of_row, parse_cases
from trl_grpo_ext.rewards.code.judge import CodeResult, Judge, same_output
from trl_grpo_ext.rewards.code.programs import complete_program

ADD = "def add(a, b):\n    return a + b\n"
TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]


def judge(code, tests, setup="", seconds_per_test=5.0, seconds=20.0):
    judge = Judge(seconds_per_test, seconds)
    judge.use_setup(setup)
    return judge.run(code, parse_cases("tests", tests))


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


def test_a_completion_goes_on_where_its_prompt_ends_or_stands_for_itself():
    prompt = 'from math import floor\ndef f(x):\n    """Doc."""\n'
    for completion in ("    return floor(x)\n", "def f(x):\n    return floor(x)\n"):
        space = {}
        exec(complete_program(completion, prompt, "f"), space)
        assert space["f"](2.5) == 2


@pytest.mark.parametrize(
    ("code", "passed", "error"),
    [
        (ADD, 2, None),
        ("def add(a, b):\n    return 3\n", 1, "AssertionError"),
        ("def add(a, b) return", 0, "SyntaxError"),
        ("x = 1", 0, "NameError"),
        ("raise RuntimeError('no')", 0, "RuntimeError: no"),
        (ADD + "if __name__ == '__main__':\n    raise SystemExit", 2, None),
        ("import sys\n" + ADD + "sys.exit(0)", 0, "CandidateError: SystemExit"),
        ("import os\n" + ADD + "os._exit(0)", 0, "CandidateGone"),
        (ADD + "import os\nos.close(1)", 2, None),
        (ADD + "import sys\nsys.stdout = None", 2, None),
        ("'''{braces}''' '\\n' \"quotes\"\n" + ADD, 2, None),
        (ADD + "import sys\nprint('noise' * 100_000, flush=True)", 2, None),
    ],
)
def test_programs_in_a_real_process(code, passed, error):
    result = judge(code, TESTS)
    assert (result.passed, result.total, result.share) == (passed, 2, passed / 2)
    assert result.error is None if error is None else result.error.startswith(error)


EVERYTHING = """
class Everything:
    def __eq__(self, other): return True
    __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __contains__ = __eq__
    def __hash__(self): return 0
    def __bool__(self): return True
"""
FORGERIES = {
    "an object equal to everything": EVERYTHING + "def add(a, b): return Everything()",
    "a number equal to everything": EVERYTHING
    + "class Number(int):\n    __eq__ = Everything.__eq__\ndef add(a, b): return Number(7)",
    "a list of such objects": EVERYTHING + "def add(a, b): return [Everything()]",
    "printed verdicts": "print('passed', {'rewards': [1.0]})\ndef add(a, b):\n    print('1.0')\n    return 9",
    "a clean exit": "import sys\ndef add(a, b): sys.exit(0)",
    "a hard exit": "import os\ndef add(a, b): os._exit(0)",
    "an exit at the end": "import atexit, os\ndef add(a, b): return 9\natexit.register(os._exit, 0)",
    "other built-ins": "import builtins\nbuiltins.AssertionError = SystemExit\nbuiltins.exec = builtins.compile = print\n"
    "abs = len = set = sorted = isinstance = lambda *a: True\ndef add(a, b): return 9",
    "an exception that tests may expect": "def add(a, b): raise AssertionError",
    "frames and collected objects": """
import gc, sys
def add(a, b):
    frame = sys._getframe()
    while frame:
        for name, value in list(frame.f_locals.items()):
            if 'assert' in repr(value): return 3 if a == 1 else 0
        frame = frame.f_back
    for thing in gc.get_objects():
        if isinstance(thing, (list, dict)) and 'assert add' in repr(thing)[:10000]: return 3 if a == 1 else 0
    return 9
""",
    "replies written by hand": """
import os, socket
def add(a, b):
    for fd in range(3, 64):
        try: os.write(fd, b'{"value": 3}\\n{"value": 0}\\n{"rewards": [1.0]}\\n')
        except OSError: pass
    return 9
""",
    "nonsense on the line": "import os\ndef add(a, b):\n    os.write(3, b'}{\\n' * 10); os.write(4, b'}{\\n' * 10)",
    "deep nesting": "def add(a, b):\n    value = []\n    for _ in range(100_000): value = [value]\n    return value",
    "itself": "def add(a, b):\n    value = []\n    value.append(value)\n    return value",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_program_can_not_choose_its_verdict(name):
    tests = [
        "assert add(1, 2) == 3",
        "assert 3 == add(1, 2) and not add(1, 2) != 3",
        "assert add(-1, 1) in (0, 1)",
        "assert isinstance(add(1, 2), int) and abs(add(1, 2) - 3) < 1e-6",
        "try:\n    add(1, 2)\nexcept ValueError:\n    pass\nelse:\n    assert sorted([add(1, 2)]) == [3]",
        "assert {add(1, 2)} == {3}",
    ]
    result = judge(FORGERIES[name], tests)
    # One that knows its arguments can always answer for them: the hand-written reply is such an answer.
    allowed = 1 if name == "replies written by hand" else 0
    assert result.passed <= allowed, result


@pytest.mark.skipif(sys.platform != "linux", reason="the judge's memory is hidden by Linux")
def test_the_judge_can_be_neither_read_nor_written():
    """In a process of its own, hidden as the workers are: the program's parent is the judge."""
    attack = """
import os
def add(a, b):
    found = 0
    for name in ('mem', 'environ', 'maps', 'fd/0', 'fd/3', 'cwd'):
        try:
            path = f'/proc/{os.getppid()}/{name}'
            found += bool(os.readlink(path) if name == 'cwd' else open(path, 'rb').fileno())
        except OSError:
            pass
    return found
"""
    script = f"""
import sys
from trl_grpo_ext.rewards.code.judge import Judge
from trl_grpo_ext.rewards.code.cases import Statement
from trl_grpo_ext.rewards.runtime import kernel
if sys.argv[1] == "hidden":
    kernel.hide_memory()
kernel.drop_privileges()
print(Judge(5, 20).run({attack!r}, [Statement("assert add(1, 2) == 0")]).passed)
"""
    passed = {
        mode: subprocess.run([sys.executable, "-c", script, mode], capture_output=True, text=True, timeout=30).stdout
        for mode in ("hidden", "open")
    }
    assert passed == {"hidden": "1\n", "open": "0\n"}


def test_tests_see_neither_each_others_names_nor_a_replaced_helper():
    assert judge(ADD, ["add = None", "assert add(1, 2) == 3"]).passed == 2
    helped = "def close(a, b):\n    return True\n" + ADD.replace("a + b", "9")
    assert judge(helped, ["assert close(add(1, 2), 3)"], setup="def close(a, b):\n    return a == b").passed == 0
    # MBPP has functions with the names of built-ins and modules, and tests that use math and typing.
    assert judge("def sum(a, b):\n    return a + b", ["assert sum(10, 15) == 25"]).passed == 1
    blind = "def add(a, b):\n    return []\nset = lambda *a: 0"
    assert judge(blind, ["assert set(add(1, 2)) == set((3,))"]).passed == 0
    assert judge("def bisect(a):\n    return a", ["assert bisect(3) == 3"]).passed == 1
    uses = "x: List[int] = [1]\nassert math.isclose(add(1, 2), 3)"
    assert judge(ADD + "from typing import List\nclass math:\n    isclose = lambda *a: True", [uses]).passed == 1


def test_objects_changes_and_exceptions_cross_over():
    code = """
class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item)
    def __len__(self): return len(self.items)
    def __getitem__(self, key): return self.items[key]
class Solution:
    def twice(self, values): return tuple(2 * value for value in values)
class Mine(Exception): pass
def sort(values): values.sort()
def fill(table, *, key): table[key] = {1, 2}
def count(n):
    yield from range(n)
def fails(kind): raise Mine('x') if kind else KeyError('y')
def pair(): return Pair(1, 2)
from collections import Counter, namedtuple
Pair = namedtuple('Pair', 'a b')
def letters(word): return Counter(word)
def early(n):
    return 3 if n else count(2)
"""
    tests = [
        "s = Stack(); s.push(1); s.push('a'); assert len(s) == 2 and s[1] == 'a' and list(s) == [1, 'a'] and s.items == [1, 'a']",
        "assert Solution().twice([1, 2]) == (2, 4)",
        "v = [3, 1]; sort(v); assert v == [1, 3]",
        "t = {}; fill(t, key='k'); assert t == {'k': {1, 2}}",
        "assert list(count(3)) == [0, 1, 2] and sum(count(4)) == 6",
        "try:\n    fails(False)\nexcept KeyError as error:\n    assert 'y' in str(error)\nelse:\n    assert False",
        "try:\n    fails(True)\nexcept KeyError:\n    assert False\nexcept Exception as error:\n    assert 'Mine' in str(error)",
        "assert pair() == (1, 2)",
        "assert letters('aab') == {'a': 2, 'b': 1}",
        "assert early(1) == 3",
    ]
    assert judge(code, tests) == CodeResult(len(tests), len(tests))
    refused = judge(ADD, ["add(lambda: 0, 1)"])
    assert refused.passed == 0
    assert "a test hands over a function" in refused.error


def test_a_test_that_hangs_or_ends_the_program_costs_that_test_only():
    code = "import os, time\ndef f(n):\n    if n == 1: time.sleep(60)\n    if n == 2: os._exit(0)\n    return n\n"
    tests = [f"assert f({n}) == {n}" for n in range(5)] + ["try:\n    f(1)\nexcept:\n    pass"]
    result = judge(code, tests, seconds_per_test=0.5)
    assert (result.passed, result.total) == (3, 6)
    # All tests together have an end too, and a program that hangs at its top level is not started twice.
    assert judge("while True: pass", ["f(1)"] * 50, seconds_per_test=0.3, seconds=9).passed == 0
    assert judge(code, ["f(1)"] * 50, seconds_per_test=0.3, seconds=0.8).error.startswith("CandidateGone")


ECHO = "import sys\na, b = map(int, sys.stdin.read().split())\nprint(a + b)\nprint(a / b)\n"


@pytest.mark.parametrize(
    ("code", "passed"),
    [
        (ECHO, 2),
        (f"if __name__ == '__main__':\n    exec({ECHO!r})", 2),
        (ECHO + "raise SystemExit(1)", 0),
        ("print(3)\nprint(0.5)", 1),
        ("print(3)", 0),
        ("import time\ntime.sleep(30)", 0),
        ("for _ in range(20): print('3' * 10**6)", 0),
    ],
)
def test_standard_input_and_output(code, passed):
    tests = {"inputs": ["1 2\n", "3\n2\n"], "outputs": ["3\n0.5\n", ["5", "1.5000"]]}
    assert judge(code, tests, seconds_per_test=0.7).passed == passed


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        ("1 2\n", "1  2", True),
        ("1\n2", "1 2", False),
        ("1.0", "1", True),
        ("0.30000000000000004", "0.3", True),
        ("12345678901234567890", "12345678901234567891", False),
        ("nan", "nan", True),
        ("inf", "nan", False),
        ("", "0", False),
        ("1e99", "1e99999", False),
        ("YES", "yes", False),
    ],
)
def test_outputs_are_compared_by_tokens(got, expected, same):
    assert same_output(got, expected) is same


def test_the_forms_of_data_sets():
    apps = {"inputs": [[[1, 2]]], "outputs": [[3]], "fn_name": "add"}
    assert parse_cases("input_output", json.dumps(apps)) == [Call("add", [[1, 2]], 3)]
    lcb = [
        {"input": "1\n[2]", "output": "[3]", "testtype": "functional", "fn_name": "f"},
        {"input": "1", "output": "2", "testtype": "stdin"},
    ]
    assert parse_cases("test_cases", json.dumps(lcb)) == [Call("f", [1, [2]], [3]), Dialogue("1", "2")]
    assert parse_cases("test_list", TESTS) == [Statement(source) for source in TESTS]
    assert judge("class Solution:\n    def f(self, a, b): return (a + b[0],)", [lcb[0]]).passed == 1
    humaneval = cases_of_row({"test": ["def check(f): pass"], "entry_point": ["add"]}, 0)
    assert humaneval == [Statement("def check(f): pass\n\ncheck(add)\n")]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "none of them"),
        ({"test": ["x"]}, "exactly one of"),
        ({"tests": [TESTS], "test_list": [TESTS]}, "tests, test_list"),
        ({"test": ["x"], "entry_point": ["f()"]}, "name of a function, not 'f\\(\\)'"),
        ({"tests": [[]]}, "no test"),
        ({"tests": ["assert True"]}, "not JSON"),
        ({"tests": [[{"input": "1"}]]}, "KeyError"),
        ({"tests": [[{"input": "1", "output": "1", "testtype": "functional"}]]}, "fn_name"),
        ({"input_output": [{"inputs": ["1"], "outputs": []}]}, "1 inputs and 0 outputs"),
        ({"tests": [[1]]}, "holds no tests"),
    ],
)
def test_rows_without_usable_tests_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        CodeTests()(["p"], ["x = 1"], **columns)
    with pytest.raises(ValueError, match="'test_setup_code' fails with ZeroDivisionError"):
        CodeTests()(["p"], ["x = 1"], tests=[TESTS], test_setup_code=["1 / 0"])


def test_share_or_all_or_nothing():
    wrong = "def add(a, b):\n    return 3\n"
    columns = {"prompts": ["p"] * 3, "completions": [ADD, wrong, "```python\ncut"], "tests": [TESTS] * 3}
    assert CodeTests()(**columns) == [1.0, 0.5, 0.0]
    assert CodeTests(all_or_nothing=True)(**columns) == [1.0, 0.0, 0.0]


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers().map(lambda n: n << 100)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.fractions().map(Fraction)
    | st.decimals(allow_nan=False)
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=3)
        | st.frozensets(st.integers() | st.text(max_size=3), max_size=3)
    ),
    max_leaves=10,
)


def no_reference(value):
    raise TypeError(type(value).__name__)


def same_types(first, second):
    if isinstance(first, (list, tuple)):
        return type(first) is type(second) and all(map(same_types, first, second))
    return type(first) is type(second)


@settings(deadline=None)
@given(plain)
def test_values_survive_the_way(value):
    result = decode(json.loads(json.dumps(encode(value, no_reference))), no_reference)
    assert result == value
    assert same_types(result, value)


def test_subclasses_travel_as_what_they_are_based_on():
    assert encode(Counter("a"), no_reference) == {"dict": [["a", 1]]}
    assert encode(True, no_reference) is True
    assert decode({"Decimal": "1.50"}, no_reference) == Decimal("1.50")
    with pytest.raises(TypeError, match="object"):
        encode(object(), no_reference)


@pytest.mark.parametrize(
    ("code", "compiles"),
    [
        (ADD, True),
        ("def f(:", False),
        ("", False),
        ("# only a comment", False),
        ("\0", False),
        ("\ud800", False),
        ("return 1", False),
        ("x = (" * 5000, False),
    ],
)
def test_python_compiles(code, compiles):
    assert python_compiles(code) is compiles


@settings(deadline=None)
@given(st.text(max_size=100))
def test_any_text_compiles_or_not(text):
    assert python_compiles(text) in (True, False)
