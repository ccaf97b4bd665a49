"""Putting a text into a prompt, and the plain text of a prompt. Pure functions; standard library only.

A prompt is a string, or a list of messages: {"role": ..., "content": ...} with a string or text blocks as content.
Nothing that is handed in is changed, and nothing that is returned shares a list or dictionary with it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeAlias

Prompt: TypeAlias = str | list[dict[str, Any]]

POSITIONS = ("system", "user", "prefix")
PLACEHOLDER = "{experiences}"
# Between the injected text and what was there before.
SEPARATOR = "\n\n"
# The other half of the exchange that "prefix" puts before a conversation, so that roles still alternate: the chat
# templates of several model families refuse two user turns in a row.
ACKNOWLEDGEMENT = "Understood."


def check_position(position: Any) -> None:
    """Refuse a position that there is not.

    Raises:
        ValueError: not one of POSITIONS.
    """
    if position not in POSITIONS:
        raise ValueError(f"position must be one of {', '.join(POSITIONS)}, not {position!r}.")


def check_template(template: Any) -> None:
    """Refuse a template that the experiences have no place in; None is the text alone.

    Raises:
        TypeError: not a string.
        ValueError: `{experiences}` is not in it exactly once.
    """
    if template is None:
        return
    if not isinstance(template, str):
        raise TypeError(f"template must be a string with {PLACEHOLDER} in it, not {type(template).__name__}.")
    if template.count(PLACEHOLDER) != 1:
        found = template.count(PLACEHOLDER)
        raise ValueError(f"template must hold {PLACEHOLDER} once, where the text goes; it holds it {found} times.")


def filled(text: str, template: str | None = None) -> str:
    """Return the template with the text in place of `{experiences}`; other braces are left alone."""
    return text if template is None else template.replace(PLACEHOLDER, text)


def inject(prompt: Prompt, text: str, position: str = "system", template: str | None = None) -> Prompt:
    """Return the prompt with a text in it; an empty text gives a copy of the prompt.

    Args:
        prompt: a string or messages.
        text: what to put in.
        position: of messages, "system": before the text of the first message if that is a system message, else as a
            new system message (a chat template's default system text then gives way to it); "user": before the text of
            the last user message; "prefix": as an exchange of its own (user: the text, assistant: ACKNOWLEDGEMENT)
            before the first turn. Before a string in all three cases.
        template: what surrounds the text, with `{experiences}` in its place.

    Raises:
        TypeError: a prompt of another kind, or a template that is no string.
        ValueError: an unknown position, a template without `{experiences}`, or "user" where no user speaks.
    """
    check_position(position)
    check_template(template)
    check_prompt(prompt)
    if isinstance(prompt, str):
        return filled(text, template) + SEPARATOR + prompt if text else prompt
    # One by one: two turns may be one object.
    messages = [copy.deepcopy(message) for message in prompt]
    return _PLACES[position](messages, filled(text, template)) if text else messages


def check_prompt(prompt: Any) -> None:
    """Refuse what is neither a string nor messages of text.

    Raises:
        TypeError: something else; images too.
    """
    if isinstance(prompt, str):
        return
    if not isinstance(prompt, list) or not prompt or not all(_is_message(message) for message in prompt):
        raise TypeError(
            "experiences go into prompts that are strings or non-empty lists of messages with a role and a text as "
            f"content; images and other blocks are not supported. This prompt is {str(prompt)[:200]!r}."
        )


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict) or "role" not in message:
        return False
    content = message.get("content", "")
    if isinstance(content, list):
        return all(isinstance(block, dict) and isinstance(block.get("text"), str) for block in content)
    # A turn that only calls a tool may have None.
    return content is None or isinstance(content, str)


def _before(message: dict[str, Any], text: str) -> None:
    content = message.get("content") or ""
    if isinstance(content, list):
        message["content"] = [{"type": "text", "text": text + SEPARATOR}, *content]
    else:
        message["content"] = text + SEPARATOR + content if content else text


def _like(text: str, messages: Sequence[dict[str, Any]]) -> Any:
    """The content of a new message, in the form that the others have: one data set column has one form."""
    blocks = any(isinstance(message.get("content"), list) for message in messages)
    return [{"type": "text", "text": text}] if blocks else text


def _as_system(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": _like(text, messages)}, *messages]
    _before(messages[0], text)
    return messages


def _as_user(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    last = next((message for message in reversed(messages) if message["role"] == "user"), None)
    if last is None:
        raise ValueError(
            'position="user" needs a message of the role "user" in every prompt; use "system" or "prefix".'
        )
    _before(last, text)
    return messages


def _as_prefix(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    place = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    exchange = [{"role": "user", "content": _like(text, messages)}]
    if place == len(messages) or messages[place]["role"] != "assistant":
        exchange.append({"role": "assistant", "content": _like(ACKNOWLEDGEMENT, messages)})
    return [*messages[:place], *exchange, *messages[place:]]


_PLACES = {"system": _as_system, "user": _as_user, "prefix": _as_prefix}


def _text_of(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return "".join(block["text"] for block in content) if isinstance(content, list) else content


def prompt_text(prompt: Prompt) -> str:
    """Return the text by which the library knows a prompt.

    A string is itself. Of messages, system messages are left out, being the same for all prompts as a rule; one
    message that is left is its text, several are lines of "role: text".
    """
    if isinstance(prompt, str):
        return prompt
    turns = [message for message in prompt if message["role"] != "system"] or prompt
    if len(turns) == 1:
        return _text_of(turns[0])
    return "\n".join(f"{message['role']}: {_text_of(message)}" for message in turns)


def completion_text(completion: Prompt) -> str:
    """Return the text of a completion: of messages, the assistant's turns."""
    if isinstance(completion, str):
        return completion
    spoken = [_text_of(message) for message in completion if message["role"] == "assistant"]
    return "\n".join(text for text in spoken if text)
