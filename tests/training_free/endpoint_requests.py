"""Requests to the OpenAI-compatible backend, and its answers."""

import itertools
import threading

from trl_grpo_ext.training_free.backends.openai_backend import OpenAIBackend
from trl_grpo_ext.training_free.backends.retry import RetryPolicy
from trl_grpo_ext.training_free.protocol import ChatRequest

from .http_server import Answer, completion

KEY = "sk-very-secret-0123456789"
FAST = RetryPolicy(attempts=4, base=0.02, cap=0.05, max_wait=3.0)


def request(text="hi", seed=0, **settings):
    return ChatRequest((("system", "be brief"), ("user", text)), seed=seed, **settings)


def ask(endpoint, *requests, retry=FAST, **settings):
    """The answers in the order of the requests; every one of them exactly once, in this thread."""
    found, thread = {}, threading.get_ident()

    def on_reply(index, answer):
        assert index not in found and threading.get_ident() == thread
        found[index] = answer

    OpenAIBackend(endpoint.url, "m", retry=retry, **settings).complete(requests, on_reply)
    assert sorted(found) == list(range(len(requests)))
    return [found[index] for index in range(len(requests))]


def in_turn(*answers):
    """Give these answers one after the other, and the last one from then on."""
    left, lock = itertools.chain(answers, itertools.repeat(answers[-1])), threading.Lock()

    def answer(body):
        with lock:
            return next(left)

    return answer


GOOD = Answer(body=completion())
