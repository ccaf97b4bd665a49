"""LLaMA Board by the keyboard alone: Tab to a field or button, arrows and Enter in a list, Enter or Space on a button."""

from __future__ import annotations

from tests.board.board_page import BUTTON, FIELD, Board, label_of

CONTROL = 2  # DevTools' bit of the key
# What a screen reader would say of what has the focus; empty when nothing in the page has it.
FOCUSED = """(() => {
  const node = document.activeElement, block = node.closest(".block");
  const label = node.tagName !== "BUTTON" && block && block.querySelector('[data-testid="block-info"]');
  return node === document.body ? "" : ((label || node).innerText || node.ariaLabel || node.tagName).trim();
})()"""
ACTIVE = "(document.querySelector('li[role=option].active') || {}).ariaLabel"


class Keyboard:
    """The keys of a user who has no mouse; every control is reached from the one before, as Tab goes."""

    def __init__(self, board: Board) -> None:
        self.board, self.page = board, board.page

    def choose(self, label: str, choice: str, search: bool = False) -> None:
        """Open a list by reaching it, walk to a choice by the arrow, and take it by Enter."""
        self._reach(label_of(FIELD, label), label)
        if search:
            self._type(choice)
        passed: list[str] = []
        while (active := self.page.value(ACTIVE)) != choice:
            assert len(passed) < 40, f"the arrow never comes to {choice!r}, only to {passed}"
            passed.append(active)
            self.page.press("ArrowDown")
        self.page.press("Enter")
        self.page.idle()

    def write(self, label: str, text: str) -> None:
        """Write a text in place of what a field has."""
        self._reach(label_of(FIELD, label), label)
        self.page.press("a", CONTROL, ("selectAll",))
        self._type(text)
        assert self.board.shown(label) == text

    def press(self, button: str, key: str) -> None:
        """Press a button, or open what is folded."""
        self._reach(label_of(BUTTON, button), button)
        self.page.press(key)
        self.page.idle()

    def _reach(self, target: str, name: str) -> None:
        passed: list[str] = []
        while not self.page.value(f"document.activeElement === {target}"):
            passed.append(self.page.value(FOCUSED))
            assert len(passed) < 120, f"Tab never comes to {name!r}, only to {passed}"
            self.page.press("Tab")
        # Some fields ask the server for their choices when they get the focus.
        self.page.idle()

    def _type(self, text: str) -> None:
        for character in text:
            self.page.press(character)
        self.page.idle()
