"""The OpenAI-compatible backend against a real HTTP server with bad days."""

import threading
import time

import pytest

pytest.importorskip("httpx")

from trl_grpo_ext.training_free.backends.openai_backend import OpenAIBackend
from trl_grpo_ext.training_free.backends.retry import RetryPolicy
from trl_grpo_ext.training_free.backends.seeds import sampling_seed
from trl_grpo_ext.training_free.protocol import BackendError, ChatReply

from .endpoint_requests import GOOD, KEY, ask, in_turn, request
from .http_server import Answer, completion, echo, error, serving


def test_request_and_reply_on_the_wire():
    with serving(lambda body: Answer(body=completion("hé", "length", (11, 5)))) as endpoint:
        replies = ask(endpoint, request("2+2?", seed=2**31 + 5, temperature=0.3, max_tokens=9), api_key=KEY)
    assert replies == [ChatReply("hé", 11, 5, "length")]
    assert endpoint.paths == ["/v1/chat/completions"]
    assert endpoint.headers[0]["Authorization"] == f"Bearer {KEY}"
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2+2?"}]
    seed = sampling_seed(request("2+2?", seed=2**31 + 5))
    own = {"model": "m", "messages": messages, "temperature": 0.3, "max_tokens": 9, "seed": seed}
    assert endpoint.requests == [own]


def test_extra_fields_and_the_name_of_the_limit():
    with serving(echo) as endpoint:
        ask(endpoint, request(), extra_body={"top_p": 0.9}, limit_field="max_completion_tokens")
    assert endpoint.requests[0]["top_p"] == 0.9 and endpoint.requests[0]["max_completion_tokens"] == 512
    assert "max_tokens" not in endpoint.requests[0] and "Authorization" not in endpoint.headers[0]


def test_many_requests_are_answered_in_place_within_the_concurrency_limit():
    def slow(body):
        return Answer(body=completion(body["messages"][-1]["content"]), delay=0.02)

    with serving(slow) as endpoint:
        replies = ask(endpoint, *(request(f"q{n}") for n in range(60)), concurrency=7)
    assert [reply.text for reply in replies] == [f"q{n}" for n in range(60)]
    assert endpoint.most_under_way == 7 and len(endpoint.requests) == 60


def test_equal_prompts_are_sent_in_a_row():
    with serving(echo) as endpoint:
        ask(endpoint, *(request(text, seed) for seed in range(3) for text in "ab"), concurrency=1)
    assert [body["messages"][-1]["content"] for body in endpoint.requests] == list("aaabbb")


@pytest.mark.parametrize(
    "bad",
    [
        Answer(500, error("oops")),
        Answer(503, b"<html>starting</html>"),
        Answer(429, error("slow down")),
        Answer(drop=True),
        Answer(drop=True, body=completion()),
        Answer(200, b"{not json"),
        Answer(200, {"choices": []}),
        Answer(200, {"choices": [{"message": {"content": 5}}]}),
        Answer(200, b"[" * 50_000),
        Answer(200, b"null"),
    ],
    ids=lambda bad: f"{bad.status}-{'drop' if bad.drop else str(bad.body)[:12]}",
)
def test_what_may_pass_is_asked_again(bad):
    with serving(in_turn(bad, bad, GOOD)) as endpoint:
        assert ask(endpoint, request()) == [ChatReply("hello", 7, 3, "stop")]
    assert len(endpoint.requests) == 3


def test_retries_end_and_the_error_says_what_happened():
    with serving(lambda body: Answer(502, error("upstream is down"))) as endpoint:
        found = ask(endpoint, request())[0]
    assert isinstance(found, BackendError) and found.retryable and len(endpoint.requests) == 4
    assert "HTTP status 502: upstream is down" in str(found) and "after 4 attempts" in str(found)


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_what_will_not_pass_is_asked_once_and_the_others_go_on(status):
    def picky(body):
        return Answer(status, {"detail": "not this"}) if body["messages"][-1]["content"] == "bad" else GOOD

    with serving(picky) as endpoint:
        found = ask(endpoint, request("bad"), request("good"), concurrency=1)
    assert isinstance(found[0], BackendError) and not found[0].retryable and "not this" in str(found[0])
    assert found[1].text == "hello" and len(endpoint.requests) == 2


@pytest.mark.parametrize("status, code", [(401, None), (404, "model_not_found"), (429, "insufficient_quota")])
def test_what_is_true_of_all_requests_ends_them_all(status, code):
    with serving(lambda body: Answer(status, error("no", code))) as endpoint:
        found = ask(endpoint, *(request(str(n)) for n in range(50)), concurrency=2)
    assert len(endpoint.requests) <= 2
    assert all(isinstance(answer, BackendError) and not answer.retryable for answer in found)


def test_retry_after_is_waited_for_by_all_requests():
    limited = Answer(429, error("slow down"), {"Retry-After": "1"})
    with serving(in_turn(limited, GOOD)) as endpoint:
        replies = ask(endpoint, *(request(str(n)) for n in range(6)), concurrency=1)
    assert all(isinstance(reply, ChatReply) for reply in replies)
    # A lower bound of what must be waited, not a measurement.
    assert endpoint.times[1] - endpoint.times[0] >= 0.95


def test_exhausted_limit_of_a_good_answer_pauses_the_next_request():
    headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "400ms"}
    with serving(in_turn(Answer(body=completion(), headers=headers), GOOD)) as endpoint:
        ask(endpoint, request("a"), request("b"), concurrency=1)
    assert endpoint.times[1] - endpoint.times[0] >= 0.38


def test_server_that_asks_for_too_long_a_wait_gets_no_further_attempt():
    with serving(lambda body: Answer(429, error("tomorrow"), {"Retry-After": "86400"})) as endpoint:
        found = ask(endpoint, request())[0]
    assert len(endpoint.requests) == 1 and found.retryable and "asks to wait 86400 s" in str(found)


@pytest.mark.parametrize("slow", [Answer(body=completion(), delay=2.0), Answer(body=completion(), drip=0.05)])
def test_slow_answers_are_cut_off_also_those_that_drip(slow):
    with serving(in_turn(slow, GOOD)) as endpoint:
        assert ask(endpoint, request(), timeout=0.4)[0].text == "hello"
    assert len(endpoint.requests) == 2


def test_nobody_listening():
    with serving(echo) as endpoint:
        pass
    found = ask(endpoint, request())[0]
    assert isinstance(found, BackendError) and found.retryable and "ConnectError" in str(found)


def test_server_that_starts_again_is_found_again():
    with serving(echo) as first:
        port = int(first.url.split(":")[2].split("/")[0])
    answers = []
    backend = OpenAIBackend(first.url, "m", retry=RetryPolicy(attempts=100, base=0.05, cap=0.1))
    client = threading.Thread(target=lambda: backend.complete([request("back")], lambda i, a: answers.append(a)))
    client.start()
    time.sleep(0.3)
    with serving(echo, port):
        client.join(timeout=20)
    assert [answer.text for answer in answers] == ["back"]


def test_texts_that_are_no_utf8_neither_stop_the_run_nor_reach_the_store():
    with serving(lambda body: Answer(body=b'{"choices": [{"message": {"content": "a\\ud800b"}}]}')) as endpoint:
        reply = ask(endpoint, request("half \ud800 a pair"))[0]
    assert reply.text == "a?b" and endpoint.requests[0]["messages"][-1]["content"] == "half \ud800 a pair"


def test_tokens_that_are_not_counted_are_estimated_and_content_may_be_blocks_or_missing():
    blocks = {"choices": [{"message": {"content": [{"type": "text", "text": "abcdef"}]}}], "usage": None}
    nothing = {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}
    with serving(in_turn(Answer(body=blocks), Answer(body=nothing))) as endpoint:
        first, second = ask(endpoint, request("x" * 22), request("x" * 22), concurrency=1)
    assert (first.text, first.prompt_tokens, first.completion_tokens) == ("abcdef", 10, 2)
    assert (second.text, second.completion_tokens, second.finish_reason) == ("", 0, "stop")


def test_no_request_needs_no_server():
    OpenAIBackend("http://127.0.0.1:1/v1", "m").complete([], lambda index, answer: pytest.fail("called"))
