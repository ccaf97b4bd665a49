"""Operations on a library of lessons: checked before anything is done, and done by the library's own transactions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from trl_grpo_ext.experience import ExperienceLibrary, Lesson

Kind: TypeAlias = Literal["add", "update", "merge", "delete"]
KINDS: tuple[Kind, ...] = ("add", "update", "merge", "delete")
# Lessons whose sets of words overlap to this degree are one lesson.
NEAR_JACCARD = 0.85
# A run of so many words out of a problem gives the problem away.
RUN = 13
# Answers shorter than this are also ordinary numbers; they give something away only beside a word for "answer".
SHORT_ANSWER = 3
HANDLE = 8
# Per word allowed: for scripts without spaces, and for words without an end.
CHARACTERS = 12

_WORD = re.compile(r"\w+(?:[.,/:^]\w+)*")
_ANSWER_WORD = re.compile(r"\b(answers?|results?|solutions?|equals?|outputs?)\b|=", re.IGNORECASE)


@dataclass(frozen=True)
class Operation:
    """One change of the library.

    Args:
        kind: "add" a lesson; "update" the text of one; "merge" several into the first; "delete" one.
        text: of add, update and merge.
        ids: of the lessons that it touches; none for add, at least two for merge.
    """

    kind: Kind
    text: str = ""
    ids: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the operation as JSON has it."""
        return {**asdict(self), "ids": list(self.ids)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Operation:
        """Return what `as_dict` returned."""
        return cls(values["kind"], values["text"], tuple(values["ids"]))


@dataclass(frozen=True)
class Rejected:
    """An operation that is refused, and why."""

    operation: Operation
    reason: str


@dataclass(frozen=True)
class Source:
    """A problem that lessons were learned from: its words and its answer must not be in them."""

    text: str
    answer: str | None = None


def words(text: str) -> list[str]:
    """Return the words and numbers of a text, in lower case."""
    return _WORD.findall(text.lower())


def handle(name: str) -> str:
    """Return the short form of a lesson's id that the reflector sees."""
    return name[:HANDLE]


def same_lesson(one: str, other: str) -> bool:
    """Return whether two texts are one lesson: equal words, or sets of words with a Jaccard index of 0.85 or more."""
    first, second = set(words(one)), set(words(other))
    return first == second or len(first & second) >= NEAR_JACCARD * len(first | second)


def leak(text: str, sources: Iterable[Source]) -> str:
    """Return what a lesson gives away of the problems that it was learned from; empty when nothing.

    The final answer, as words in a row, or 13 words in a row of a problem. An answer of one or two characters counts
    only where the lesson speaks of an answer, a result or an equality.
    """
    said = words(text)
    for source in sources:
        answer = words(final_part(source.answer))
        if answer and _contains(said, answer) and (len("".join(answer)) >= SHORT_ANSWER or _ANSWER_WORD.search(text)):
            return f"gives away the answer {' '.join(answer)!r}"
        asked = words(source.text)
        if any(_contains(asked, said[start : start + RUN]) for start in range(len(said) - RUN + 1)):
            return f"repeats {RUN} words of a problem"
    return ""


def final_part(answer: str | None) -> str:
    """Return the final answer of an answer column: what follows GSM8K's "####", else the whole text."""
    return "" if answer is None else answer.rpartition("####")[2]


def _contains(text: Sequence[str], part: Sequence[str]) -> bool:
    size = len(part)
    return any(list(text[start : start + size]) == list(part) for start in range(len(text) - size + 1))


@dataclass(frozen=True)
class Rules:
    """What operations are checked against.

    Args:
        lessons: text by id, of the library at hand.
        max_words: the most words of a lesson.
        sources: the problems that they may give away.
        harmful: texts that were retired as harmful.
        elsewhere: text by id of the lessons of other domains, which one library can hold once only.
    """

    lessons: Mapping[str, str]
    max_words: int
    sources: Sequence[Source] = ()
    harmful: Sequence[str] = ()
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    def problem(self, operation: Operation) -> str:
        """Return why an operation can't be done on this library; empty when it can."""
        unknown = next((name for name in operation.ids if name not in self.lessons), None)
        if unknown is not None:
            return f"there is no lesson {unknown!r}"
        if operation.kind == "delete":
            return ""
        return self._text_problem(operation)

    def _text_problem(self, operation: Operation) -> str:
        text, count = operation.text, len(operation.text.split())
        if not words(text):
            return "the lesson has no text"
        if count > self.max_words:
            return f"the lesson has {count} words, {self.max_words} are allowed"
        if len(text) > self.max_words * CHARACTERS:
            return f"the lesson has {len(text)} characters, {self.max_words * CHARACTERS} are allowed"
        others = {name: held for name, held in self.lessons.items() if name not in operation.ids}
        twin = next((name for name, held in others.items() if same_lesson(held, text)), None)
        if twin is not None:
            return f"it repeats lesson {handle(twin)}"
        if operation.kind == "update" and self.lessons[operation.ids[0]] == text:
            return "it changes nothing"
        if Lesson(text, 0.0).id in others:
            return f"it is an earlier wording of lesson {handle(Lesson(text, 0.0).id)}"
        if Lesson(text, 0.0).id in self.elsewhere or text in self.elsewhere.values():
            return "another domain has this lesson"
        if any(same_lesson(text, harmful) for harmful in self.harmful):
            return "it was retired as harmful before"
        return leak(text, self.sources)


def validated(operations: Iterable[Operation], rules: Rules) -> tuple[list[Operation], list[Rejected]]:
    """Return the operations that can be done together, and the others with their reasons.

    Deletions come first: of two operations on one lesson the deletion wins, else the first. Of two operations that
    write the same lesson the first wins.
    """
    kept: list[Operation] = []
    rejected: list[Rejected] = []
    for operation in sorted(operations, key=lambda item: item.kind != "delete"):
        reason = rules.problem(operation) or _conflict(operation, kept)
        if reason:
            rejected.append(Rejected(operation, reason))
        else:
            kept.append(operation)
    return kept, rejected


def _conflict(operation: Operation, kept: Sequence[Operation]) -> str:
    touched = {name: other.kind for other in kept for name in other.ids}
    again = next((name for name in operation.ids if name in touched), None)
    if again is not None:
        return f"lesson {handle(again)} has another operation in this step ({touched[again]})"
    if operation.text and any(other.text and same_lesson(other.text, operation.text) for other in kept):
        return "another operation of this step writes the same lesson"
    return ""


def apply_operations(
    library: ExperienceLibrary, operations: Sequence[Operation], step: int, metadata: Mapping[str, Any] | None = None
) -> None:
    """Do validated operations in the order: delete, update and merge, add. Call it within a transaction.

    A merged lesson keeps the id, and the record of use, of the first. The time of a text is the step: the same run
    gives the same library to the byte.
    """
    for operation in operations:
        gone = operation.ids if operation.kind == "delete" else operation.ids[1:]
        if gone:
            library.retire(*gone, cause=operation.kind, step=step)
    for operation in operations:
        if operation.kind in ("update", "merge"):
            library.reword(operation.ids[0], operation.text, cause=operation.kind, step=step, timestamp=float(step))
    added = [operation.text for operation in operations if operation.kind == "add"]
    if added:
        library.add(
            *(Lesson(text, float(step), {**(metadata or {}), "step": step}) for text in added),
            cause="add",
            step=step,
            now=float(step),
        )
