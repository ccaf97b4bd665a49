"""Does one answer win at many different prompts? The sign of a policy that says the same whatever it is asked."""

from collections import OrderedDict
from collections.abc import Callable


class ModeWindow:
    """The answers that won at the latest different prompts, and the share of them that one answer holds.

    Args:
        size: how many prompts are remembered; the one asked longest ago is forgotten first.
        minimum: below this many prompts no share is given.
    """

    def __init__(self, size: int, minimum: int) -> None:
        self.size, self.minimum = size, minimum
        self._winners: OrderedDict[str, str] = OrderedDict()

    def add(self, prompt: str, answer: str) -> None:
        """Note the winner at a prompt, in place of an earlier one of the same prompt."""
        self._winners.pop(prompt, None)
        self._winners[prompt] = answer
        while len(self._winners) > self.size:
            self._winners.popitem(last=False)

    def share(self, answer: str, equal: Callable[[str, str], bool]) -> float:
        """Return the share of the remembered prompts that `answer` won; 0.0 while there are fewer than `minimum`."""
        if len(self._winners) < max(self.minimum, 1):
            return 0.0
        same = sum(winner == answer or equal(winner, answer) for winner in self._winners.values())
        return same / len(self._winners)

    def clear(self) -> None:
        """Forget every prompt."""
        self._winners.clear()
