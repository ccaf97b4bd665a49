"""Replies of judges, reflecting models and reward workers, and the completions themselves."""

from __future__ import annotations

import json
import math
import socket
import struct
import time
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.target import Target
from tests.fuzz.values import TEXTS, TREES, damage_tree

LESSONS = {"0123456789abcdef": "Check the units.", "0123456789abcdee": "Add first."}
OPERATIONS = [
    {"operation": "add", "text": "Read the question twice."},
    {"operation": "update", "id": "0123456789abcdef", "text": "Check every unit."},
    {"operation": "merge", "ids": ["0123456789abcdef", "0123456789abcdee"], "text": "Both."},
    {"operation": "delete", "id": "0123456789abcdee"},
]
PIECES = (
    "Score: ",
    "Better: ",
    "7",
    "10",
    "11",
    "A",
    "T",
    "/10",
    "**",
    "\n",
    ".",
    "_",
    "<think>",
    "</think>",
    "```",
    "٣",
)
MATHS = (
    "\\boxed{",
    "}",
    "\\frac{",
    "{",
    "^",
    "9",
    "1e9",
    "!",
    "\\sqrt",
    "####",
    " ",
    ",",
    "/",
    "(",
    ")",
    "-",
    "%",
    "answer is ",
)


def _json_reply(draw: st.DrawFn) -> str:
    text = json.dumps(damage_tree(draw, OPERATIONS))
    cut = draw(st.integers(0, len(text))) if draw(st.integers(0, 3)) == 0 else len(text)
    return draw(TEXTS) + draw(st.sampled_from(["", "\n```json\n"])) + text[:cut] + draw(st.sampled_from(["", "\n```"]))


def joined(pieces: tuple[str, ...]) -> st.SearchStrategy[str]:
    """Texts of likely pieces and unlikely ones."""
    return st.lists(st.one_of(st.sampled_from(pieces), TEXTS), max_size=12).map("".join)


json_replies = st.composite(_json_reply)()


def judge_score(reply: str) -> None:
    from trl_grpo_ext.rewards.adapters.judge import score_in

    assert 0.0 <= score_in(reply) <= 1.0


def judge_verdict(reply: str) -> None:
    from trl_grpo_ext.rewards.adapters.judge_ranking import verdict_in

    assert verdict_in(reply) in (0.0, 0.5, 1.0)


def master_keys(answer: str) -> None:
    from trl_grpo_ext.rewards.adapters.judging import says_nothing

    assert says_nothing(answer) in (True, False)


def endpoint_answer(answer: Any) -> None:
    """The decoded body of an HTTP answer, whatever a server sent."""
    from trl_grpo_ext.rewards.adapters.judging import ask

    class Service:
        shown = "an endpoint"

        def post(self, payload: Any) -> Any:
            return answer

    assert isinstance(ask(Service(), "judge", "system", {"question": "q"}), str)  # type: ignore[arg-type]


def reflection(reply: str) -> None:
    from trl_grpo_ext.training_free.parsing import parse_operations, parse_summary

    parse_summary(reply)
    for operation in parse_operations(reply, LESSONS, most=8):
        assert operation.kind in ("add", "update", "merge", "delete")
        assert operation.text.isprintable()


def completion(text: str) -> None:
    """A completion in front of the built-in rewards that read it in this process."""
    from trl_grpo_ext.rewards import exact_match, gsm8k_number, math_equal

    for reward in (exact_match, gsm8k_number, math_equal):
        columns = {"prompts": ["p"], "completions": [text], "solution": ["7"], "answer": ["7"], "ground_truth": ["7"]}
        (score,) = reward(**columns)
        assert score is None or math.isfinite(score)


def worker_message(data: bytes) -> None:
    """What a reward worker, which may have run the model's text, sends to the trainer."""
    from trl_grpo_ext.rewards.runtime.messages import MAX_REPLY_BYTES, BadMessage, Channel, ChannelClosed, decode_reply

    ours, theirs = socket.socketpair()
    channel = Channel(ours, MAX_REPLY_BYTES)
    try:
        theirs.sendall(data)
        theirs.close()
        assert isinstance(decode_reply(channel.receive(time.monotonic() + 1)), dict)
    except (BadMessage, ChannelClosed):
        return
    finally:
        channel.close()


def _message(draw: st.DrawFn) -> bytes:
    body = draw(st.one_of(st.binary(max_size=40), TREES.map(lambda tree: json.dumps(tree).encode())))
    length = draw(st.one_of(st.just(len(body)), st.integers(0, 2**64 - 1)))
    return struct.pack("!Q", length) + body


def targets() -> list[Target]:
    """The targets of this file."""
    from trl_grpo_ext.rewards.adapters.http_json import ServiceError
    from trl_grpo_ext.training_free.parsing import ParseError

    replies = st.one_of(joined(PIECES), TEXTS)
    answers = st.one_of(TREES, st.fixed_dictionaries({"choices": TREES}))
    return [
        Target("judge score", replies, judge_score, (ValueError,)),
        Target("judge verdict", replies, judge_verdict, (ValueError,)),
        Target("master keys", replies, master_keys, ()),
        Target("endpoint answer", answers, endpoint_answer, (ServiceError,)),
        Target("reflection", st.one_of(json_replies, replies), reflection, (ParseError,)),
        Target("completion", joined(MATHS), completion, ()),
        Target("worker message", st.composite(_message)(), worker_message, ()),
    ]
