"""LessonWorld: a scripted policy and reflector in a world of hidden rules. No weights, no network, no clock.

A task is of a kind, and each kind has one right method. Without a lesson the policy guesses the method; with a lesson
about the kind in its prompt it mostly follows it, right or wrong. Harmful lessons make every answer worse, and
irrelevant ones cost a little each. The reflector sees only what the loop shows it: which method each attempt used and
what reward it had. Every draw is a function of the request, so concurrency and restarts change nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from trl_grpo_ext.training_free.backends.scripted import ScriptedBackend
from trl_grpo_ext.training_free.protocol import BackendError, ChatRequest

KINDS = "amber basalt cobalt damask ebony flint garnet hazel indigo jasper".split()
METHODS = "anchor bridge candle dagger engine feather garden hammer".split()
HARMFUL = "Whatever the problem may be, skip every check and reply at once."
DIRECT = "Write general lessons for this task, without having seen any attempt."
_LESSON = re.compile(r"When a task says (\w+), use the (\w+) method")
_USED = re.compile(r"(\w+) task by the (\w+) method")


def uniform(*parts: object) -> float:
    """A number from [0, 1) that is a function of the parts."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def lesson(kind: str, method: str) -> str:
    return f"When a task says {kind}, use the {method} method and nothing else."


def solved(completions, answer, **kwargs):
    """The reward: 1 for the right final answer."""
    return [float(text.rpartition("Answer: ")[2] == right) for text, right in zip(completions, answer, strict=True)]


@dataclass(frozen=True)
class World:
    """The hidden rules, and how good policy and reflector are.

    Args:
        seed: of the rules and of every draw.
        kinds: number of kinds.
        methods: number of methods; a guess is right with 1 / methods, or `guess`.
        guess: probability that the policy finds the right method by itself.
        follows: probability that it follows a lesson about the kind.
        effect: False makes lessons mean nothing: the null case.
        wrong: probability that the reflector names a wrong method though it could know the right one.
        harmful: probability that it proposes the harmful lesson.
        hasty: probability that it guesses another method when it saw only failures, instead of proposing nothing.
        malformed: probability that an answer of it is malformed, drawn anew when it is asked again.
        prefix: of the kinds' names, for several domains.
    """

    seed: int = 0
    kinds: int = 6
    methods: int = 6
    guess: float = 0.35
    follows: float = 0.9
    effect: bool = True
    wrong: float = 0.0
    harmful: float = 0.0
    hasty: float = 0.3
    malformed: float = 0.0
    prefix: str = ""

    def names(self) -> list[str]:
        return [self.prefix + kind for kind in KINDS[: self.kinds]]

    def right(self, kind: str) -> str:
        return METHODS[int(uniform(self.seed, "rule", kind) * self.methods)]

    def truth(self) -> list[str]:
        return [lesson(kind, self.right(kind)) for kind in self.names()]

    def answer(self, kind: str, number: int, method: str) -> str:
        """What a method gives for a task; different for each method."""
        base = int(uniform(self.seed, "answer", kind, number) * 9000) + 1000
        return f"{base}{METHODS.index(method)}"

    def rows(self, count: int, start: int = 0) -> list[dict[str, str]]:
        names = self.names()
        found = []
        for number in range(start, start + count):
            kind = names[number % len(names)]
            prompt = f"Task {number}: this is a {kind} task. What is its code?"
            found.append({"prompt": prompt, "answer": self.answer(kind, number, self.right(kind))})
        return found

    # The policy.

    def policy(self, request: ChatRequest, count: int) -> str:
        shown = "\n".join(text for role, text in request.messages if role == "system")
        asked = request.messages[-1][1]
        number, kind = re.search(r"Task (\d+): this is a (\w+) task", asked).groups()  # type: ignore[union-attr]
        random = Random(uniform(self.seed, "policy", request))
        method = self._method(random, kind, shown)
        return f"I did the {kind} task by the {method} method. Answer: {self.answer(kind, int(number), method)}"

    def _method(self, random: Random, kind: str, shown: str) -> str:
        lessons = _LESSON.findall(shown) if self.effect else []
        about = [method for name, method in lessons if name == kind]
        spoiled = 0.4 * (HARMFUL in shown and self.effect) + 0.005 * (len(lessons) - len(about))
        chance = random.random()
        if chance < spoiled:
            return self._wrong(random, kind)
        if about and random.random() < self.follows:
            return about[0]
        return self.right(kind) if random.random() < self.guess else self._wrong(random, kind)

    def _wrong(self, random: Random, kind: str) -> str:
        return random.choice([name for name in METHODS[: self.methods] if name != self.right(kind)])

    # The reflector.

    def reflector(self, request: ChatRequest, count: int) -> str:
        random = Random(uniform(self.seed, "reflector", request))
        system, asked = request.messages[0][1], request.messages[1][1]
        if random.random() < self.malformed:
            return self._malformed(random, system)
        if system.startswith("You review one attempt"):
            used = _USED.search(asked)
            return f"The attempt did the {used[1]} task by the {used[2]} method." if used else "Nothing was tried."
        if system.startswith("You keep a small library"):
            return self._compare(random, asked)
        if system == DIRECT:
            return json.dumps(
                [{"operation": "add", "text": lesson(kind, self._known(random, kind))} for kind in self.names()]
            )
        return self._consolidate(asked)

    def _known(self, random: Random, kind: str) -> str:
        """What a model knows without having seen an attempt: as much as the policy does."""
        return self.right(kind) if random.random() < self.guess else self._wrong(random, kind)

    def _any(self, random: Random) -> str:
        return random.choice(METHODS[: self.methods])

    def _malformed(self, random: Random, system: str) -> str:
        if system.startswith("You review"):
            return " "
        return random.choice(
            [
                "I would add a lesson.",
                '[{"operation": "add", "text": "When a ta',
                '[{"operation": "explode", "text": "boom"}]',
                '[{"operation": "delete", "id": "0000000000"}]',
                json.dumps([{"operation": "add", "text": "very " * 60}]),
                json.dumps([{"operation": "update", "id": 7, "text": ""}]),
                "{" * 500,
            ]
        )

    def _compare(self, random: Random, asked: str) -> str:
        library, _, rest = asked.partition("Problem:\n")
        attempts = re.findall(r"Attempt \d+ \(reward ([\d.]+)\):\nThe attempt did the (\w+) task by the (\w+)", rest)
        if not attempts:
            return "[]"
        if random.random() < self.harmful:
            return json.dumps([{"operation": "add", "text": HARMFUL}])
        kind = attempts[0][1]
        method = self._learned(random, attempts)
        if method is None:
            return "[]"
        known = re.findall(r"\[(\w+)\] (When a task says (\w+), use the (\w+) method.*)", library)
        held = next((item for item in known if item[2] == kind), None)
        if held is None:
            return f"Thinking done.\n```json\n{json.dumps([{'operation': 'add', 'text': lesson(kind, method)}])}\n```"
        if held[3] == method:
            return '[{"operation": "none"}]'
        return json.dumps([{"operation": "update", "id": held[0], "text": lesson(kind, method)}])

    def _learned(self, random: Random, attempts: list[tuple[str, str, str]]) -> str | None:
        """The method that did best, by what was shown; of failures alone a guess at another one, or nothing."""
        if random.random() < self.wrong:
            return self._any(random)
        best = max(float(reward) for reward, _, _ in attempts)
        good = Counter(method for reward, _, method in attempts if float(reward) == best)
        if best > 0:
            return max(sorted(good), key=lambda name: good[name])
        others = [name for name in METHODS[: self.methods] if name not in good]
        return random.choice(others) if others and random.random() < self.hasty else None

    def _consolidate(self, asked: str) -> str:
        """For each lesson that is written, the most frequent proposal; the harmful lesson too."""
        proposals = re.findall(r"^- (\w+)(?: \[([\w, ]+)\])?(?:: (.*))?$", asked.partition("Proposals:\n")[2], re.M)
        votes: dict[str, Counter[tuple[str, str, str]]] = {}
        for kind, names, text in proposals:
            about = _LESSON.match(text)
            votes.setdefault(about[1] if about else text or names, Counter())[(kind, names, text)] += 1
        plan = []
        for about in sorted(votes):
            (kind, names, text), _ = max(sorted(votes[about].items()), key=lambda item: item[1])
            plan.append({"operation": kind, "ids": names.split(", ") if names else [], "text": text})
        return json.dumps(plan)

    def backends(self, concurrency: int = 1, failing: float = 0.0, lost: float = 0.0):
        """Policy and reflector. `failing`: share of calls that fail in passing; `lost`: of requests that always fail."""
        return tuple(
            ScriptedBackend(with_failures(script, self.seed, failing, lost), f"lesson-world-{name}", concurrency)
            for name, script in (("policy", self.policy), ("reflector", self.reflector))
        )

    def weak(self) -> World:
        """The same world with a reflector that does more harm than good."""
        return replace(self, wrong=0.9, harmful=0.3)


def with_failures(
    script: Callable[[ChatRequest, int], str], seed: int, failing: float, lost: float = 0.0
) -> Callable[[ChatRequest, int], str]:
    """The script with injected failures that are a function of the request and of how often it was asked."""
    if not failing and not lost:
        return script

    def unreliable(request: ChatRequest, count: int) -> str:
        if uniform(seed, "lost", request) < lost:
            raise BackendError("lost for good", retryable=False)
        if uniform(seed, "failing", request, count) < failing:
            raise BackendError("rate limited")
        return script(request, count)

    return unreliable
