"""Code answers: the code is found, a test program is built around it, and the program's result is read.

Nothing here runs what a model wrote. `build_test_program` gives a text for a sandboxed process, `parse_test_result`
reads what that process printed, and `python_compiles` is itself meant for a process that may crash.
"""

import ast
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from trl_grpo_ext.rewards.extraction import last_fenced_block

_NONCE = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# The candidate is compiled in its own namespace, so that it neither sees nor replaces the program's names, and it is
# not `__main__`, so that its own main guard stays shut. `report` keeps the real standard output for itself.
_PROGRAM = """\
def run():
    import json, os
    write, descriptor = os.write, os.dup(1)
    passed, error = 0, None

    def report():
        line = json.dumps({{"passed": passed, "total": len(TESTS), "error": error}})
        write(descriptor, ("\\n" + NONCE + line + "\\n").encode())

    space = {{"__name__": "candidate"}}
    try:
        exec(compile(CODE, "candidate.py", "exec"), space)
        for test in TESTS:
            try:
                exec(compile(test, "test.py", "exec"), dict(space) if ISOLATED else space)
                passed += 1
            except BaseException as failure:
                error = error or (type(failure).__name__ + ": " + str(failure))[:200]
    except BaseException as failure:
        error = (type(failure).__name__ + ": " + str(failure))[:200]
    report()

NONCE = {nonce!r}
CODE = {code!r}
TESTS = {tests!r}
ISOLATED = {isolated!r}
run()
"""


@dataclass(frozen=True)
class CodeResult:
    """What a test program reported: `passed` of `total` tests, and the first error as "Type: message" or None."""

    passed: int
    total: int
    error: str | None = None

    @property
    def share(self) -> float:
        """The share of tests that passed, in [0, 1]; 0 when there are none."""
        return self.passed / self.total if self.total else 0.0


def extract_code(text: str) -> str | None:
    """Return the last closed fenced block of a completion; the whole text when it has no fence at all.

    None for a text whose only fence was never closed (a truncated completion) and for one without code.
    """
    block = last_fenced_block(text)
    if block is None:
        block = None if "```" in text else text
    return block if block and block.strip() else None


def humaneval_test(test: str, entry_point: str) -> list[str]:
    """Return HumanEval's `test` column as the tests of `build_test_program`: its `check` called on the function.

    Raises:
        ValueError: `entry_point` is not a name.
    """
    if not _NAME.fullmatch(entry_point):
        raise ValueError(f"humaneval_test: entry_point must be the name of a function, not {entry_point!r}.")
    return [f"{test}\n\ncheck({entry_point})\n"]


def build_test_program(code: str, tests: Sequence[str], isolated: bool = True) -> tuple[str, str]:
    """Return a Python program that runs tests against code, and the nonce by which its result line is known.

    Run the program as a file or with `python -c`, in a sandbox. Its last act is to print the nonce and a JSON result
    on a line of its own, for `parse_test_result`; a program that was killed or left early prints none, which counts as
    no test passed.

    Failure modes: the code runs in the same process as its tests. It can't print a result by accident or without
    looking for the nonce, but code written to search this process (frames, its own source file) can forge one: the
    sandbox guards the machine, not the score.

    Args:
        code: the candidate's source, such as `extract_code` gives.
        tests: Python source of each test; one passes when it raises nothing. MBPP's `test_list` fits as it is, for
            HumanEval see `humaneval_test`.
        isolated: True (default) gives every test its own copy of the candidate's namespace (mutable objects in it are
            still shared).

    Returns:
        (program, nonce).

    Raises:
        ValueError: there is no test, or `tests` is one string.
    """
    if isinstance(tests, str) or not tests:
        raise ValueError(
            f"build_test_program: tests must be a non-empty list of Python sources, not {tests!r:.80}; drop the rows "
            "without tests."
        )
    nonce = secrets.token_hex(16)
    return _PROGRAM.format(nonce=nonce, code=code, tests=list(tests), isolated=isolated), nonce


def parse_test_result(output: str, nonce: str, total: int) -> CodeResult:
    """Return what a test program reported on its standard output.

    Args:
        output: everything the process printed; of several result lines, the last counts.
        nonce: the nonce of that program.
        total: the number of its tests.

    Returns:
        The result; no test passed, with an error, where there is no result line or one that does not fit `total`.

    Raises:
        ValueError: `nonce` is not one of `build_test_program`'s.
    """
    if not _NONCE.fullmatch(nonce):
        raise ValueError(f"parse_test_result: nonce must be 32 hexadecimal digits, not {nonce!r:.80}.")
    _, found, rest = output.rpartition("\n" + nonce)
    if not found:
        return CodeResult(0, total, "no result: the program was stopped or left early")
    try:
        result = json.loads(rest.split("\n", 1)[0][:2000])
        passed, error = result["passed"], result["error"]
        valid = (
            type(passed) is int and 0 <= passed <= total == result["total"] and isinstance(error, (str, type(None)))
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        valid = False
    return CodeResult(passed, total, error) if valid else CodeResult(0, total, "a result line that can't be read")


def python_compiles(code: str) -> bool:
    """Return whether a text is Python without syntax errors. Only for a process that may crash; nothing is executed.

    Deeply nested source can exhaust the compiler's memory or stack, so run this in a worker process with a memory limit.
    False for an empty text: no code at all is not code that compiles.
    """
    try:
        return bool(ast.parse(code).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
