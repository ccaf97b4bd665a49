r"""Mathematical equivalence: the answer is found, compared exactly, and only the rest goes to math-verify.

`fast_equal` decides most rows in the trainer's process and evaluates nothing. `symbolic_equal` is for a worker process
that a deadline can kill: sympy can run for ever on a short text, and holds the interpreter while it does.
"""

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trl_grpo_ext.rewards.extraction import last_answer_line, last_boxed, last_hashes
from trl_grpo_ext.rewards.math_values import fast_equal
from trl_grpo_ext.rewards.named import NamedReward
from trl_grpo_ext.rewards.numbers import final_number
from trl_grpo_ext.rewards.text import Completion, completion_text, ground_truth_texts

SymbolicPairs = Callable[[list[tuple[str, str]]], Sequence[bool | None]]
_FORMULA = re.compile(r"(?<!\\)\$([^$]+)(?<!\\)\$")


def marked_answer(text: str) -> str | None:
    r"""Return what stands in the last `\boxed{...}`, else after the last `####`, else after the last "Answer:"."""
    for find in (last_boxed, last_hashes, last_answer_line):
        found = find(text)
        if found:
            return found
    return None


def final_answer(text: str) -> str | None:
    """Return the marked answer, else the last `$formula$` or number of the text, whichever is later; None without."""
    marked = marked_answer(text)
    if marked is not None:
        return marked
    last = next(iter(deque(_FORMULA.finditer(text), maxlen=1)), None)
    if last is not None and not re.search(r"\d", text[last.end() :]):
        return last[1]
    number = final_number(text)
    return None if number is None else str(number)


def symbolic_equal(gold: str, answer: str) -> bool:
    r"""Return whether math-verify (>= 0.8) finds two answers equal. Only for a process that may be killed.

    math-verify parses with sympy, whose run time has no bound, and its own time limits don't hold; none are set here.
    Not symmetric: the gold's form decides what is accepted. Text that it can't parse is not equal to anything.

    Args:
        gold: the correct answer, without its `\boxed{...}`.
        answer: the given one.

    Raises:
        ImportError: math-verify is not installed.
    """
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise ImportError("symbolic_equal needs math-verify: pip install 'math-verify>=0.8'.") from error
    parsed = [parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (gold, answer)]
    return bool(verify(parsed[0], parsed[1], timeout_seconds=None))


@dataclass(frozen=True, kw_only=True)
class MathEqual(NamedReward):
    r"""1.0 where the completion's answer equals the solution's, else 0.0; None where `symbolic` gives None.

    The answer is that of `final_answer`; the solution's is its marked answer, else the whole solution. `fast_equal`
    compares them exactly in this process. Pairs that need algebra go to `symbolic`, all of a call at once. Range
    {0, 1}.

    Failure modes: without `symbolic`, an equal answer in another algebraic form ("x(x+1)" for "x^2+x") scores 0;
    units are dropped, so "3 m" equals "3 km"; a completion whose last number is not its answer is judged by it, which
    `strict` avoids; the last of several boxes counts, so a wrong one can be taken back.

    Args:
        strict: False by default. True wants a marked answer (`\boxed{...}`, `####` or "Answer:"), and compares units,
            percent signs, left sides and the case of words as they stand.
        symbolic: a function from a list of (gold, answer) to a verdict each: True, False, or None for a row that can't
            be judged (a deadline). It must run `symbolic_equal` in processes that can be killed. None (default): what
            `fast_equal` can't decide scores 0.
        name: `__name__`, under which TRL logs the reward.

    Raises:
        ValueError: a solution is None, NaN or empty; or `symbolic` gives another number of verdicts than it got pairs.
    """

    strict: bool = False
    symbolic: SymbolicPairs | None = None
    name: str = "math_equal"

    def _gold(self, row: int, text: str) -> str:
        gold = marked_answer(text) or text.strip()
        if not gold:
            raise ValueError(f"Column 'solution' is empty in row {row} of this reward call; drop the row, or fill it.")
        return gold

    def _verdict(self, gold: str, answer: str | None) -> bool | None:
        return False if answer is None else fast_equal(gold, answer, self.strict)

    def _decide(self, pairs: list[tuple[str, str]]) -> Sequence[bool | None]:
        if self.symbolic is None or not pairs:
            return [False] * len(pairs)
        verdicts = self.symbolic(pairs)
        if len(verdicts) != len(pairs):
            raise ValueError(
                f"{self.name}: symbolic must give one verdict per pair ({len(pairs)}), not {len(verdicts)}."
            )
        return verdicts

    def __call__(
        self, completions: Sequence[Completion], solution: Sequence[Any], **kwargs: Any
    ) -> list[float | None]:
        """Return one reward per completion; see the class."""
        texts = ground_truth_texts("solution", solution, len(completions))
        golds = [self._gold(row, text) for row, text in enumerate(texts)]
        find = marked_answer if self.strict else final_answer
        answers = [find(completion_text(completion)) for completion in completions]
        verdicts = [self._verdict(gold, answer) for gold, answer in zip(golds, answers, strict=True)]
        open_rows = [row for row, verdict in enumerate(verdicts) if verdict is None]
        decided = self._decide([(golds[row], answers[row] or "") for row in open_rows])
        for row, verdict in zip(open_rows, decided, strict=True):
            verdicts[row] = verdict
        return [None if verdict is None else float(verdict) for verdict in verdicts]


math_equal = MathEqual()
