"""Questions to the reflector that need an answer of a certain form: asked again with the parser's error, never lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from trl_grpo_ext.training_free.calls import Caller, derived_seed
from trl_grpo_ext.training_free.operations import Rejected
from trl_grpo_ext.training_free.parsing import ParseError
from trl_grpo_ext.training_free.prompts import Messages, asked_again
from trl_grpo_ext.training_free.protocol import BackendError, ChatRequest

Answer = TypeVar("Answer")


class Refused(ParseError):
    """Every operation of an answer was refused by the library's rules.

    Args:
        rejected: the operations and the reasons.
    """

    def __init__(self, rejected: Sequence[Rejected]) -> None:
        super().__init__("; ".join(f"{item.operation.kind}: {item.reason}" for item in rejected) + ".")
        self.rejected = list(rejected)


@dataclass(frozen=True)
class Question(Generic[Answer]):
    """One question.

    Args:
        messages: what is asked.
        seed: parts that the requests' seeds are derived from.
        parse: makes the answer of the reply's text; raises ParseError.
    """

    messages: Messages
    seed: tuple[object, ...]
    parse: Callable[[str], Answer]


@dataclass(frozen=True)
class Unanswered:
    """A question without an answer of use.

    Args:
        error: the last error, of the call or of the parser.
        rejected: operations that the rules refused, where that was the error.
        understood: whether the last reply was of the right form.
    """

    error: str
    rejected: tuple[Rejected, ...] = ()
    understood: bool = False


def ask_all(
    questions: Sequence[Question[Answer]], reflector: Caller, temperature: float, max_tokens: int, max_reasks: int
) -> list[Answer | Unanswered]:
    """Return the answer to each question, or why there is none. All are asked at once, round by round.

    Raises:
        BudgetReached: see `Caller.complete`.
    """
    answers: list[Answer | Unanswered] = [Unanswered("not asked") for _ in questions]
    messages = [question.messages for question in questions]
    waiting = list(range(len(questions)))
    for attempt in range(max_reasks + 1):
        requests = [
            ChatRequest(messages[n], temperature, max_tokens, derived_seed(*questions[n].seed, attempt))
            for n in waiting
        ]
        again = []
        for n, outcome in zip(waiting, reflector.complete(requests), strict=True):
            if isinstance(outcome, BackendError):
                answers[n] = Unanswered(f"the call failed: {outcome}")
                continue
            try:
                answers[n] = questions[n].parse(outcome.text)
            except ParseError as error:
                answers[n] = _unanswered(error)
                messages[n] = asked_again(questions[n].messages, outcome.text, str(error))
                again.append(n)
        waiting = again
        if not waiting:
            break
    return answers


def _unanswered(error: ParseError) -> Unanswered:
    if isinstance(error, Refused):
        return Unanswered(str(error), tuple(error.rejected), understood=True)
    return Unanswered(str(error))
