"""Runs a row's tests. The tests run here, the program in a process of its own that never sees them."""

import ast
import builtins
import contextlib
import math
import re
import subprocess
import sys
import tempfile
import time
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trl_grpo_ext.rewards.code.cases import Call, Case, Dialogue, Statement
from trl_grpo_ext.rewards.code.process import (
    MAX_REPLY_BYTES,
    CandidateProcess,
    candidate_arguments,
    end,
)

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d{1,3})?", re.IGNORECASE)
_TOLERANCE = 1e-9
_BUILT_IN = frozenset(dir(builtins))


@dataclass(frozen=True)
class CodeResult:
    """`passed` of `total` tests, and the first failure as "Type: message" or None."""

    passed: int
    total: int
    error: str | None = None

    @property
    def share(self) -> float:
        """The share of tests that passed, in [0, 1]."""
        return self.passed / self.total


def _same_token(got: str, expected: str) -> bool:
    if got == expected:
        return True
    numbers = all(len(token) <= 64 and _NUMBER.fullmatch(token) for token in (got, expected))
    # Two whole numbers are equal as they stand, or not at all.
    if not numbers or (got.lstrip("+-").isdigit() and expected.lstrip("+-").isdigit()):
        return False
    return math.isclose(float(got), float(expected), rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def same_output(got: str, expected: str) -> bool:
    """Return whether two outputs agree: line by line, token by token, without regard to spaces and final blank lines.

    Tokens agree as texts, or as numbers within 1e-9 where one of them has a decimal point or exponent.
    """
    lines, wanted = ([line.split() for line in text.rstrip().splitlines()] for text in (got, expected))
    return len(lines) == len(wanted) and all(
        len(line) == len(other) and all(map(_same_token, line, other))
        for line, other in zip(lines, wanted, strict=True)
    )


def _as_lists(value: Any) -> Any:
    """JSON has no tuples, so that an expected list may stand for one."""
    if isinstance(value, (list, tuple)):
        return [_as_lists(item) for item in value]
    return {key: _as_lists(item) for key, item in value.items()} if isinstance(value, dict) else value


def _names(tree: ast.AST) -> tuple[set[str], set[str], set[str]]:
    """Return all names of a test, those that it calls, and those whose attributes it reads."""
    nodes = list(ast.walk(tree))
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    owners = [node.value for node in nodes if isinstance(node, ast.Attribute)]
    return tuple({node.id for node in group if isinstance(node, ast.Name)} for group in (nodes, called, owners))  # type: ignore[return-value]


class Judge:
    """Runs the tests of one row against one program.

    Args:
        seconds_per_test: for all answers of the program to one test, and for each run of it with standard input.
        seconds: for all tests together; those that are not reached fail.
    """

    def __init__(self, seconds_per_test: float, seconds: float) -> None:
        self._code = ""
        self._end = time.monotonic() + seconds
        self._seconds_per_test = seconds_per_test
        self._candidate: CandidateProcess | None = None
        self._start_error: BaseException | None = None
        self._space: dict[str, Any] = {"__name__": "tests"}

    def use_setup(self, source: str) -> None:
        """Run Python of the data set whose names the tests may use: imports and helpers.

        Raises:
            ValueError: it fails.
        """
        try:
            exec(compile(source, "setup.py", "exec"), self._space)
        except Exception as error:
            raise ValueError(f"column 'test_setup_code' fails with {type(error).__name__}: {error}") from error

    def use_prompt(self, prompt: str, entry_point: str) -> None:
        """Let the tests use what a prompt defines beside the function that is asked for."""
        # One that imports what is not installed helps no test; its programs fail by themselves.
        with contextlib.suppress(Exception):
            exec(compile(prompt, "prompt.py", "exec"), self._space)
        self._space.pop(entry_point, None)

    def run(self, code: str, cases: Sequence[Case]) -> CodeResult:
        """Return how many tests the program passes."""
        self._code = code
        errors = [self._error_of(case) for case in cases]
        self._end_candidate()
        failures = [error for error in errors if error is not None]
        return CodeResult(len(cases) - len(failures), len(cases), failures[0] if failures else None)

    def _error_of(self, case: Case) -> str | None:
        left = self._end - time.monotonic()
        if left <= 0:
            return "TimeoutError: the time for all tests is over"
        try:
            passed = self._passes(case, min(left, self._seconds_per_test))
        except BaseException as failure:
            with contextlib.suppress(Exception):
                return f"{type(failure).__name__}: {failure}"[:200]
            return type(failure).__name__
        return None if passed else "AssertionError: another result"

    def _passes(self, case: Case, seconds: float) -> bool:
        if isinstance(case, Dialogue):
            return same_output(run_program(self._code, case.given, seconds), case.expected)
        candidate = self._running(seconds)
        if isinstance(case, Call):
            return self._returns(candidate, case)
        self._execute(candidate, case)
        # A test that catches everything also catches the end of the program.
        return not candidate.gone

    def _running(self, seconds: float) -> CandidateProcess:
        if self._candidate is None or self._candidate.gone:
            self._end_candidate()
            self._candidate = self._started(seconds)
        self._candidate.until = time.monotonic() + seconds
        return self._candidate

    def _started(self, seconds: float) -> CandidateProcess:
        """A program that does not get through its own top level is not started again for the next test."""
        if self._start_error is not None:
            raise self._start_error
        try:
            return CandidateProcess(self._code, time.monotonic() + seconds)
        except BaseException as error:
            self._start_error = error
            raise

    def _end_candidate(self) -> None:
        candidate, self._candidate = self._candidate, None
        if candidate is not None:
            candidate.close()

    def _returns(self, candidate: CandidateProcess, case: Call) -> bool:
        owners = candidate.defined([case.name, "Solution"])
        function = owners[case.name] if case.name in owners else getattr(owners["Solution"](), case.name)
        return bool(_as_lists(function(*case.arguments)) == _as_lists(case.expected))

    def _execute(self, candidate: CandidateProcess, case: Statement) -> None:
        tree = ast.parse(case.source)
        exec(compile(tree, "test.py", "exec"), self._space | self._names_for(candidate, tree))

    def _names_for(self, candidate: CandidateProcess, tree: ast.AST) -> dict[str, Any]:
        """Return what the test names and only the program can define, so that it can't replace `set` or `math`."""
        named, called, owners = _names(tree)
        modules = {name: __import__(name) for name in (owners - called) & sys.stdlib_module_names}
        types = {name: getattr(typing, name) for name in (named - called) & set(typing.__all__)}
        own = named - self._space.keys() - modules.keys() - types.keys()
        # A test that names nothing but built-ins is about a function with the name of one, such as MBPP's `sum`.
        found = candidate.defined(sorted(own - _BUILT_IN) or sorted(called))
        return found | modules | types


def run_program(code: str, given: str, seconds: float) -> str:
    """Run a program with standard input, and return its standard output.

    Raises:
        RuntimeError: it ended with an error, or wrote too much.
        TimeoutError: it did not end in time.
    """
    with tempfile.NamedTemporaryFile("wb", suffix=".py") as file, tempfile.TemporaryFile() as output:
        file.write(code.encode("utf-8", "surrogatepass"))
        file.flush()
        with tempfile.TemporaryFile() as source:
            source.write(given.encode("utf-8", "surrogatepass"))
            source.seek(0)
            arguments = candidate_arguments() | {"stdin": source, "stdout": output}
            process = subprocess.Popen([sys.executable, "-I", file.name], **arguments)
        try:
            code_of_exit = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"no result after {seconds:.3g} s") from error
        finally:
            end(process)
        if code_of_exit or output.seek(0, 2) > MAX_REPLY_BYTES:
            raise RuntimeError(f"the program ended with exit code {code_of_exit}, or wrote more than 16 MiB")
        output.seek(0)
        return output.read().decode("utf-8", "replace")
