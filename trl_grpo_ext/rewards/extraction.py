r"""Where the answer of a completion stands: `\boxed{...}`, `####`, "Answer:", `<answer>`, the last fenced block.

Each function looks for the last occurrence of a fixed string and goes on from there: time is linear in the text, and
nothing is evaluated.
"""

import re

_BOXED = re.compile(r"\\(?:boxed|fbox)[ \t]*\{")
# A heading ("## Answer", "**Final answer:**"), or a sentence ("the answer is"); the text after it is the answer.
_ANSWER = re.compile(r"\banswer\b(?:[ \t]+is\b|[ \t*]*[:=])[ \t*:]*", re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]{0,3}```([^`\n]*)$", re.MULTILINE)


def _closing_brace(text: str, start: int) -> int:
    """Return where the group opened just before `start` closes; the end of the text when it doesn't."""
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return end
    return len(text)


def last_boxed(text: str) -> str | None:
    r"""Return what the last `\boxed{...}` or `\fbox{...}` holds, nested braces included; None without one.

    One that is not closed (a truncated completion) holds everything up to the end of the text.
    """
    start = None
    for match in _BOXED.finditer(text):
        start = match.end()
    return None if start is None else text[start : _closing_brace(text, start)].strip()


def last_hashes(text: str) -> str | None:
    """Return the rest of the line after the last `####`, as GSM8K writes its answers; None without one."""
    _, mark, rest = text.rpartition("####")
    return rest.split("\n", 1)[0].strip() if mark else None


def last_answer_line(text: str) -> str | None:
    """Return the rest of the line after the last "Answer:" or "answer is", or the next line when that is empty.

    Emphasis (`**`) around it is removed. None without such a mark.
    """
    end = None
    for match in _ANSWER.finditer(text):
        end = match.end()
    if end is None:
        return None
    return text[end:].strip().split("\n", 1)[0].strip(" \t*")


def last_tagged(text: str, tag: str) -> str | None:
    """Return what the last `<tag>...</tag>` holds, up to the end of the text when it is not closed; None without one."""
    _, mark, rest = text.rpartition(f"<{tag}>")
    return rest.split(f"</{tag}>", 1)[0].strip() if mark else None


def last_fenced_block(text: str) -> str | None:
    """Return the content of the last closed fenced block (three backquotes on lines of their own); None without one.

    A fence opened last and never closed (a truncated completion) doesn't count.
    """
    block, start = None, None
    for fence in _FENCE.finditer(text):
        if start is None:
            start = fence.end() + 1
        elif not fence[1].strip():
            block, start = text[start : fence.start()], None
    return block
