"""From a completion to a program. Nothing here runs what a model wrote."""

import ast
import warnings

from trl_grpo_ext.rewards.extraction import last_fenced_block

_ERRORS = (SyntaxError, ValueError, RecursionError, MemoryError)


def extract_code(text: str) -> str | None:
    """Return the last closed fenced block of a completion; the whole text when it has no fence at all.

    None for a text whose only fence was never closed (a truncated completion) and for one without code.
    """
    block = last_fenced_block(text)
    if block is None:
        block = None if "```" in text else text
    return block if block and block.strip() else None


def _parsed(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(code)
    except _ERRORS:
        return None


def defines(code: str, name: str) -> bool:
    """Return whether a text is Python whose top level defines a function, class or variable of this name."""
    tree = _parsed(code)
    for node in tree.body if tree else []:
        targets = node.targets if isinstance(node, ast.Assign) else []
        names = [getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)]
        if name in names:
            return True
    return False


def complete_program(code: str, prompt: str, entry_point: str) -> str:
    """Return the program that a completion of a HumanEval prompt stands for.

    Args:
        code: the completion's code: the body that goes on where the prompt ends, or the whole function.
        prompt: the row's prompt, Python that defines `entry_point`.
        entry_point: the function that is tested.

    Returns:
        The prompt with the body; or the prompt for its imports and helpers, and then the whole function.
    """
    return f"{prompt}\n{code}" if defines(code, entry_point) else prompt + code


def python_compiles(code: str) -> bool:
    """Return whether a text is a Python program that compiles. Only for a process that may crash; nothing is executed.

    Deeply nested source can exhaust the compiler's memory or stack, so run this in a worker process with a memory limit.
    False for a text without a statement: no code at all is not code that compiles.
    """
    tree = _parsed(code)
    if tree is None or not tree.body:
        return False
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(tree, "completion.py", "exec", dont_inherit=True)
    except _ERRORS:
        return False
    return True
