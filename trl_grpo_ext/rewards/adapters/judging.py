"""What the judges share: the service, how it is asked, the last line of its reply, and answers it is never shown."""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from trl_grpo_ext.rewards.adapters.base import ErrorPolicy, RewardAdapter
from trl_grpo_ext.rewards.adapters.calls import attempt
from trl_grpo_ext.rewards.adapters.http_json import Breaker, Service, ServiceError

# Answers without content that judges, frontier models among them, take for right ones: arXiv 2507.08794.
MASTER_KEYS = frozenset(
    {"thought process", "let's solve this problem step by step", "solution", "解", "かいせつ", "respuesta"}
)
_EMPTY_MARKUP = re.compile(
    r"</?(?:think|thinking|thought|reasoning|answer|solution|response|output)>|\\(?:boxed|fbox)\b", re.IGNORECASE
)
_PART_ENDS = re.compile(r"[.:;,!?。:]+|\n")


def _is_content(character: str) -> bool:
    # Not "$", "`" or "=", which stand in markup, but the symbols that can be an answer: ∞, ∅, →.
    symbol = ord(character) > 127 and unicodedata.category(character) in ("Sm", "So")
    return character.isalnum() or symbol


def _plain(part: str) -> str:
    kept = "".join(character for character in part if _is_content(character) or character in " '")
    return " ".join(kept.casefold().split()).strip("' ")


def says_nothing(answer: str) -> bool:
    """Whether an answer holds nothing but master keys (arXiv 2507.08794): known empty phrases, and punctuation.

    Tags of a format (`<think>`, `<answer>`, ...) and an empty box are nothing too. Full-width letters, case, emphasis
    and invisible characters make no difference.
    """
    text = unicodedata.normalize("NFKC", _EMPTY_MARKUP.sub(" ", answer)).replace("’", "'")
    return all(not plain or plain in MASTER_KEYS for plain in map(_plain, _PART_ENDS.split(text)))


def last_line(reply: str) -> str:
    """Return the last line of a reply that holds anything.

    Only there a verdict counts: further up a judge may quote one that the answer suggested to it.
    """
    return reply.strip().rpartition("\n")[2]


def ask(service: Service | Breaker, model: str, system: str, material: Mapping[str, Any]) -> str:
    """Ask once, at temperature 0, and return the text of the reply.

    Raises:
        ServiceError: no answer, or one without `choices[0].message.content`.
    """
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": json.dumps(material, ensure_ascii=False)},
    ]
    answer = service.post({"model": model, "messages": messages, "temperature": 0.0})
    try:
        content = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        content = None
    if not isinstance(content, str):
        raise ServiceError(f"{service.shown}: no text in choices[0].message.content of {str(answer)[:200]!r}")
    return content


def run_all(tasks: Sequence[Callable[[], Any]], concurrency: int) -> list[Any]:
    """Run the tasks in threads and return the result, or the exception, of each. An interrupt waits for none of them."""
    pool = ThreadPoolExecutor(max_workers=concurrency)
    try:
        return list(pool.map(attempt, tasks))
    finally:
        pool.shutdown(wait=False)


class JudgeAdapter(RewardAdapter):
    """Base of the rewards that ask a language model behind an OpenAI-compatible API.

    Args:
        name, on_error, required: see `RewardAdapter`.
        service: the full URL of chat completions (".../v1/chat/completions"), or a `Service`.
        model: the model's name in requests.
        instructions: the system message.
        concurrency: requests at the same time.

    Raises:
        ValueError: not a URL, `concurrency` below 1, or `on_error` is no policy.
    """

    def __init__(
        self,
        name: str,
        on_error: ErrorPolicy,
        required: Sequence[str],
        *,
        service: str | Service,
        model: str,
        instructions: str,
        concurrency: int,
    ) -> None:
        super().__init__(name, on_error, required)
        self.service = Service(service) if isinstance(service, str) else service
        self.model = model
        self.instructions = instructions
        if concurrency < 1:
            raise ValueError(f"concurrency of reward {name!r} must be 1 or more, not {concurrency}.")
        self.concurrency = concurrency

    def replies(self, materials: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Ask about each and return the text of the reply, or the exception, of each."""
        service = Breaker(self.service)

        def task(material: Mapping[str, Any]) -> Callable[[], str]:
            return lambda: ask(service, self.model, self.instructions, material)

        return run_all([task(material) for material in materials], self.concurrency)
