"""The scripted backend keeps the protocol; the cache and the caller are tested on it."""

import threading
import time

import pytest

from trl_grpo_ext.training_free import Backend, BackendError, Budget, BudgetReached, ChatReply, ChatRequest
from trl_grpo_ext.training_free.backends.scripted import ScriptedBackend
from trl_grpo_ext.training_free.budget import Meter
from trl_grpo_ext.training_free.cache import CallCache, request_key
from trl_grpo_ext.training_free.calls import Caller


def request(text, **more):
    return ChatRequest((("user", text),), **more)


def caller(backend: Backend, cache=None, attempts=3, **budget):
    meter = Meter(Budget(**budget))
    return Caller(backend, cache or CallCache(), meter, attempts), meter


@pytest.mark.parametrize("concurrency", [1, 8])
def test_each_request_is_answered_once_in_the_callers_thread(concurrency):
    backend, seen = ScriptedBackend(lambda asked, count: asked.messages[0][1].upper(), concurrency=concurrency), {}

    def on_reply(index, reply):
        assert threading.current_thread() is threading.main_thread() and index not in seen
        seen[index] = reply

    backend.complete([request(str(number) + "a b") for number in range(50)], on_reply)
    assert [seen[number].text for number in range(50)] == [f"{number}A B" for number in range(50)]
    assert seen[0] == ChatReply("0A B", 2, 2, "stop")


@pytest.mark.parametrize("concurrency", [1, 8])
def test_what_on_reply_raises_cancels_the_rest(concurrency):
    backend = ScriptedBackend(lambda asked, count: time.sleep(0.002) or "x", concurrency=concurrency)

    def stop(index, reply):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backend.complete([request(str(number)) for number in range(1000)], stop)
    assert backend.calls < 1000


def test_equal_requests_are_one_call_and_known_ones_none():
    backend = ScriptedBackend(lambda asked, count: "x")
    ask, meter = caller(backend)
    assert len(ask.complete([request("a"), request("a"), request("b")])) == 3
    assert backend.calls == meter.spent.calls == 2
    ask.complete([request("a"), request("b")])
    assert backend.calls == meter.spent.calls == 2


def test_requests_differ_by_everything_that_changes_the_answer():
    base = request("a")
    others = [request("b"), request("a", temperature=0.5), request("a", max_tokens=5), request("a", seed=1)]
    keys = {request_key("m", item) for item in [base, *others]} | {request_key("n", base)}
    assert len(keys) == 6
    assert request_key("m", request("a", temperature=1)) == request_key("m", base)


def test_passing_failures_are_asked_again_and_others_are_not():
    def script(asked, count):
        text = asked.messages[0][1]
        if text == "never" or (text == "later" and count < 2):
            raise BackendError(text, retryable=text == "later")
        return "x"

    backend = ScriptedBackend(script)
    ask, meter = caller(backend)
    found = ask.complete([request("later"), request("never")])
    assert found[0].text == "x" and isinstance(found[1], BackendError)
    assert backend.asked == {request("later"): 3, request("never"): 1}
    assert (meter.spent.calls, meter.spent.failures) == (4, 3)


def test_a_backend_that_forgets_a_request_is_found_out():
    class Forgetful:
        name = "forgetful"

        def complete(self, requests, on_reply):
            on_reply(0, ChatReply("x", 1, 1, "stop"))

    found = caller(Forgetful())[0].complete([request("a"), request("b")])
    assert isinstance(found[1], BackendError) and "without an answer" in str(found[1])


def test_replies_of_a_stopped_batch_are_kept(tmp_path):
    backend = ScriptedBackend(lambda asked, count: "one two")
    ask, _ = caller(backend, CallCache(tmp_path / "run.db"), max_tokens=30)
    with pytest.raises(BudgetReached, match=r"max_tokens=30 \(30 used\)"):
        ask.complete([request(str(number)) for number in range(20)])
    assert backend.calls == 10
    cache = CallCache(tmp_path / "run.db")
    assert cache.spent(Budget()).tokens == 30
    caller(backend, cache)[0].complete([request(str(number)) for number in range(20)])
    assert backend.calls == 20


def test_half_surrogate_pairs_are_the_same_now_and_from_the_cache():
    ask, _ = caller(ScriptedBackend(lambda asked, count: "a\ud800b"))
    first, second = (ask.complete([request("q")])[0].text for _ in range(2))
    assert first == second == "a?b"


def test_a_script_that_breaks_is_an_error_of_the_test():
    def script(asked, count):
        raise ZeroDivisionError

    for concurrency in (1, 4):
        with pytest.raises(ZeroDivisionError):
            ScriptedBackend(script, concurrency=concurrency).complete([request("a")], lambda index, reply: None)


def test_concurrency_is_checked():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        ScriptedBackend(lambda asked, count: "", concurrency=0)
