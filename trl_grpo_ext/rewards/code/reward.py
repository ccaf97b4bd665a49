"""`code_tests` and `python_compiles` as rewards in worker processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trl_grpo_ext.rewards.code.cases import Case, cases_of_row
from trl_grpo_ext.rewards.code.judge import CodeResult, Judge
from trl_grpo_ext.rewards.code.programs import complete_program, defines, extract_code, python_compiles
from trl_grpo_ext.rewards.named import NamedReward, check_finite
from trl_grpo_ext.rewards.runtime import IsolatedReward, RewardRuntime
from trl_grpo_ext.rewards.text import Completion, completion_text

# Ended before the runtime's own deadline, which would take the tests that passed along.
_MARGIN = 0.9


@dataclass(frozen=True, kw_only=True)
class CodeTests(NamedReward):
    """The function behind `code_tests_reward`, in TRL's convention: runs the model's programs, so only in a sandbox.

    Args:
        all_or_nothing, seconds_per_test, name: see `code_tests_reward`.
        seconds: for all tests of a row.
    """

    all_or_nothing: bool = False
    seconds_per_test: float = 5.0
    seconds: float = 27.0
    name: str = "code_tests"

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        *,
        test: Sequence[Any] | None = None,
        entry_point: Sequence[Any] | None = None,
        tests: Sequence[Any] | None = None,
        test_cases: Sequence[Any] | None = None,
        test_list: Sequence[Any] | None = None,
        input_output: Sequence[Any] | None = None,
        test_setup_code: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """Return one reward per completion; see `code_tests_reward`."""
        columns = {
            "test": test,
            "entry_point": entry_point,
            "tests": tests,
            "test_cases": test_cases,
            "test_list": test_list,
            "input_output": input_output,
        }
        rows = zip(prompts, completions, test_setup_code or [None] * len(completions), strict=True)
        return [
            self._reward(cases_of_row(columns, row), prompt, completion_text(completion), setup, entry)
            for row, ((prompt, completion, setup), entry) in enumerate(
                zip(rows, entry_point or [None] * len(completions), strict=True)
            )
        ]

    def _reward(self, cases: Sequence[Case], prompt: Any, text: str, setup: str | None, name: str | None) -> float:
        judge = Judge(self.seconds_per_test, self.seconds)
        judge.use_setup(setup or "")
        code = extract_code(text)
        if code is None:
            return 0.0
        if name and isinstance(prompt, str) and defines(prompt, name):
            judge.use_prompt(prompt, name)
            code = complete_program(code, prompt, name)
        return self._score(judge.run(code, cases))

    def _score(self, result: CodeResult) -> float:
        return float(result.passed == result.total) if self.all_or_nothing else result.share


@dataclass(frozen=True, kw_only=True)
class PythonCompiles(NamedReward):
    """The function behind `python_compiles_reward`, in TRL's convention: only for a process that may crash."""

    name: str = "python_compiles"

    def __call__(self, completions: Sequence[Completion], **kwargs: Any) -> list[float]:
        """Return one reward per completion; see `python_compiles_reward`."""
        codes = [extract_code(completion_text(completion)) for completion in completions]
        return [float(code is not None and python_compiles(code)) for code in codes]


def code_tests_reward(
    *,
    all_or_nothing: bool = False,
    seconds_per_test: float = 5.0,
    deadline: float = 30.0,
    allow_unsandboxed: bool = False,
    runtime: RewardRuntime | None = None,
    name: str = "code_tests",
) -> IsolatedReward:
    """Python code against unit tests, in a sandbox. Range [0, 1]: the share of the tests that pass.

    The code is the last closed fenced block of the completion, or all of a completion without a fence. The tests are
    in exactly one of these columns:

    - `test` and `entry_point` (HumanEval; one test). Where `prompts` holds HumanEval's own prompt (a string), the
      completion may be the body that continues it, and the tests use the prompt's helpers, not the completion's.
    - `tests`, `test_cases` or `test_list`: Python sources such as asserts (MBPP), or pairs `{"input": ..., "output":
      ...}` of standard input and output (LiveCodeBench), or of arguments and result with `fn_name`.
    - `input_output`, or the same form in any of these: `{"inputs": [...], "outputs": [...]}`, `fn_name` for functions
      (APPS). Each may be JSON text.

    `test_setup_code` holds Python for the tests of a row: imports and helpers.

    The program runs in a process of its own that gets calls and arguments, never tests or expected results, and that
    answers with data: so it can't forge a verdict by printing, by `sys.exit`, by replacing built-ins or by objects
    that equal everything. Outputs are compared by tokens; numbers with a decimal point within 1e-9.

    Failure modes: a program can recognise known inputs, and read files that the user can read, such as a downloaded
    data set. Results of types other than Python's own plain ones (numpy arrays, for example) stay in the program's
    process and equal nothing in a test. A test that hands over a function fails. The memory limit holds for each
    process.

    Args:
        all_or_nothing: 1 where every test passes, else 0.
        seconds_per_test: a program that takes longer fails that test, and is started anew for the next.
        deadline: seconds per row; tests not reached after nine tenths of it fail, and the row's processes are killed.
        allow_unsandboxed: run also where the kernel grants no namespaces. The model's programs can then write files,
            reach the network and signal processes; only limits and deadlines hold.
        runtime: the workers; by default those that all such rewards of this process share.
        name: `__name__`, under which TRL logs the reward.

    Raises:
        ValueError: an argument is not a positive number of seconds.
        SandboxUnavailable: no sandbox is to be had here.
        RewardError: in a call: a row has no tests, or they can't be read.
    """
    for argument, value in (("seconds_per_test", seconds_per_test), ("deadline", deadline)):
        check_finite("code_tests", argument, value, at_least=0.01)
    function = CodeTests(
        all_or_nothing=all_or_nothing,
        seconds_per_test=seconds_per_test,
        seconds=deadline * _MARGIN,
        name=name,
    )
    return IsolatedReward(
        function,
        runtime=runtime,
        on_error="raise",
        on_kill=0.0,
        deadline=deadline,
        imports=["trl_grpo_ext.rewards.code.reward"],
        sandbox=True,
        allow_unsandboxed=allow_unsandboxed,
    )


def python_compiles_reward(
    *, deadline: float = 5.0, runtime: RewardRuntime | None = None, name: str = "python_compiles"
) -> IsolatedReward:
    """1.0 where the completion's code is a Python program that compiles, else 0.0. Range {0, 1}; nothing is executed.

    The code is the last closed fenced block of the completion, or all of a completion without a fence: a plain word is
    a program too, so ask for a fence with `tag_format`, or weight this low. Compiling runs in a worker, because hostile
    source can crash the compiler or exhaust memory; such a row scores 0.

    Args:
        deadline: seconds per row.
        runtime: the workers; by default those that all such rewards of this process share.
        name: `__name__`, under which TRL logs the reward.
    """
    return IsolatedReward(PythonCompiles(name=name), runtime=runtime, on_error="raise", on_kill=0.0, deadline=deadline)
