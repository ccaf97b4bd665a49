"""What the policy and the reflector are told. Pure text functions; a change here changes PROMPTS_VERSION.

Lessons stand before the problem, in the system message, in learning as in serving: the order is stable, so that a
prompt cache can keep them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from trl_grpo_ext.experience import Lesson, inject, lessons_text
from trl_grpo_ext.training_free.operations import Operation, handle

PROMPTS_VERSION = 1

Messages: TypeAlias = tuple[tuple[str, str], ...]

_FORM = """Answer with a JSON list only. Each element is one of
{"operation": "add", "text": "..."}
{"operation": "update", "id": "...", "text": "..."}
{"operation": "merge", "ids": ["...", "..."], "text": "..."}
{"operation": "delete", "id": "..."}
and an empty list means that nothing needs to change."""


def system_prompt(lessons: Sequence[Lesson], template: str | None = None) -> str:
    """Return the system message that carries the lessons: what to paste into any chat client; empty without lessons."""
    text = lessons_text(lessons)
    return template.replace("{experiences}", text) if text and template is not None else text


def policy_messages(prompt: Any, lessons: Sequence[Lesson], template: str | None = None) -> Messages:
    """Return the messages of a rollout: the lessons in the system message, then the prompt.

    Args:
        prompt: a string, which becomes the user's message, or a list of messages.
        lessons: what the policy is shown.
        template: see `TrainingFreeConfig`.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    shown = inject(messages, lessons_text(lessons), "system", template)
    return tuple((message["role"], _content(message)) for message in shown if isinstance(message, dict))


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def shortened(text: str, most: int) -> str:
    """Return a text of at most about `most` characters: of a longer one the middle is left out."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


def listed(lessons: Mapping[str, str]) -> str:
    """Return the lessons as the reflector sees them: one line each, by the id that operations name."""
    return "\n".join(f"[{handle(name)}] {text}" for name, text in lessons.items()) or "(none yet)"


def summary_messages(
    objective: str, problem: str, trajectory: str, reward: float, answer: str | None, lessons: Sequence[str]
) -> Messages:
    """Return the request for a summary of one rollout."""
    system = (
        "You review one attempt at a task. Say step by step what was done, which lesson was used, and where it went "
        f"wrong or what made it succeed. Be brief and do not solve the task anew.\nThe task: {objective}"
    )
    parts = [f"Problem:\n{problem}"]
    if lessons:
        parts.append("Lessons that were given:\n" + "\n".join(f"- {text}" for text in lessons))
    parts.append(f"Attempt:\n{trajectory}")
    parts.append(f"Reward: {reward:g}")
    if answer is not None:
        parts.append(f"Correct answer: {answer}")
    return (("system", system), ("user", "\n\n".join(parts)))


def comparison_messages(
    objective: str,
    learning_objective: str,
    problem: str,
    attempts: Sequence[tuple[str, float]],
    answer: str | None,
    lessons: Mapping[str, str],
    most: int,
    max_words: int,
) -> Messages:
    """Return the request that compares the attempts at one problem and asks for operations on the library."""
    system = (
        "You keep a small library of lessons for a model that can't be trained. Compare the attempts at one problem "
        "and find what the better ones did that the worse ones did not. A lesson is general: it begins with when it "
        f"applies, says what to do, has at most {max_words} words, and contains neither this problem nor its answer.\n"
        f"The task: {objective}"
    )
    if learning_objective:
        system += f"\nLessons are to be about: {learning_objective}"
    system += f"\nPropose at most {most} operation{'s' if most > 1 else ''} on the library. {_FORM}"
    shown = "\n\n".join(f"Attempt {n} (reward {reward:g}):\n{text}" for n, (text, reward) in enumerate(attempts, 1))
    parts = [f"Library:\n{listed(lessons)}", f"Problem:\n{problem}", shown]
    if answer is not None:
        parts.append(f"Correct answer: {answer}")
    return (("system", system), ("user", "\n\n".join(parts)))


def consolidation_messages(lessons: Mapping[str, str], operations: Sequence[Operation], max_words: int) -> Messages:
    """Return the request that makes one plan of the operations that the groups of a batch proposed."""
    system = (
        "Several reviewers proposed operations on one library of lessons. Make one consistent plan of them: join "
        "proposals that say the same, drop what contradicts or is too special, and invent nothing. A lesson has at "
        f"most {max_words} words. {_FORM}"
    )
    shown = "\n".join(_proposal(operation) for operation in operations)
    return (("system", system), ("user", f"Library:\n{listed(lessons)}\n\nProposals:\n{shown}"))


def _proposal(operation: Operation) -> str:
    names = ", ".join(handle(name) for name in operation.ids)
    return f"- {operation.kind}{f' [{names}]' if names else ''}{f': {operation.text}' if operation.text else ''}"


def asked_again(messages: Messages, reply: str, error: str) -> Messages:
    """Return the conversation that asks again after an answer that could not be used."""
    again = f"This answer can't be used: {error} Give the whole answer again, in the form asked for."
    return (*messages, ("assistant", reply or "(empty)"), ("user", again))
