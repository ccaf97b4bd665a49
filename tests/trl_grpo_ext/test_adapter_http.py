"""Rewards over HTTP, against a real server on loopback."""

import pickle
import socket
import time

import pytest
from adapter_service import service

from trl_grpo_ext import check_reward_columns
from trl_grpo_ext.rewards.adapters import HTTPReward, OpenRLHFEndpoint, RewardError, Service, ServiceError

SAID = [{"role": "assistant", "content": "777"}]
QUICK = {"timeout": 5.0, "backoff": 0.01}


def length(handler, request):
    handler.reply({"rewards": [len(row["completion"]) for row in request["rows"]]})


def test_rows_become_json_and_rewards_come_back():
    with service(length) as server:
        reward = HTTPReward(server.url, columns=["answer"])
        assert reward([[{"role": "user", "content": "hi"}], "p"], [SAID, "8"], answer=["a", 2], x=[object()] * 2) == [
            3,
            1,
        ]
        path, headers, body = server.requests[0]
    assert (path, headers["Content-Type"]) == ("/reward?v=1", "application/json")
    first = {"prompt": [{"role": "user", "content": "hi"}], "completion": "777", "answer": "a"}
    assert body == {"rows": [first, {"prompt": "p", "completion": "8", "answer": 2}]}


def test_plain_prompt_is_sent_and_null_is_no_reward():
    with service(lambda handler, request: handler.reply([None, 0.5])) as server:
        reward = HTTPReward(server.url)
        assert reward(["injected"] * 2, ["c"] * 2, plain_prompt=["plain"] * 2) == [None, 0.5]
        assert [row["prompt"] for row in server.requests[0][2]["rows"]] == ["plain", "plain"]
    assert (reward.errors, reward.skips) == (0, 1)


def test_batches_fail_one_by_one():
    def second_fails(handler, request):
        bad = request["rows"][0]["completion"] == "2"
        handler.reply({"detail": "bad row"} if bad else [1.0] * len(request["rows"]), 422 if bad else 200)

    with service(second_fails) as server:
        reward = HTTPReward(Service(server.url, **QUICK), batch_size=2, on_error="skip")
        assert reward(["p"] * 5, list("01234")) == [1, 1, None, None, 1]
        assert len(server.requests) == 3
        assert reward.errors == 2
        with pytest.raises(RewardError, match=r"row 2 of 5 .*status 422: '.*bad row.*attempt 1 of 4"):
            HTTPReward(Service(server.url, **QUICK), batch_size=2)(["p"] * 5, list("01234"))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_servers_are_asked_again(status):
    def third_time_lucky(handler, request):
        handler.reply([1.0], 200 if len(handler.server.requests) == 3 else status)

    with service(third_time_lucky) as server:
        start = time.monotonic()
        assert HTTPReward(Service(server.url, timeout=5, backoff=0.1))(["p"], ["c"]) == [1.0]
        # 0.1 s and then 0.2 s, each with up to half of it added.
        assert 0.3 <= time.monotonic() - start < 2
        assert len(server.requests) == 3


def test_a_service_that_asks_to_wait_is_given_the_time():
    def busy_once(handler, request):
        first = len(handler.server.requests) == 1
        handler.reply([1.0], 429 if first else 200, {"Retry-After": "1"} if first else {})

    with service(busy_once) as server:
        start = time.monotonic()
        assert HTTPReward(Service(server.url, timeout=5, backoff=0.0))(["p"], ["c"]) == [1.0]
        assert 1.0 <= time.monotonic() - start < 4


def test_a_service_that_is_down_is_not_asked_for_every_batch():
    with service(lambda handler, request: handler.reply({}, 503)) as server:
        reward = HTTPReward(Service(server.url, retries=1, backoff=0.0), batch_size=1, on_error="skip")
        assert reward(["p"] * 20, ["c"] * 20) == [None] * 20
        assert len(server.requests) == 3 * 2
        with pytest.raises(RewardError, match=r"row 0 of 20.*status 503"):
            HTTPReward(Service(server.url, retries=0), batch_size=1)(["p"] * 20, ["c"] * 20)


def test_single_failures_do_not_stop_the_others():
    def every_second(handler, request):
        handler.reply([1.0], 200 if len(handler.server.requests) % 2 else 503)

    with service(every_second) as server:
        reward = HTTPReward(Service(server.url, retries=0), batch_size=1, on_error="skip")
        assert reward(["p"] * 12, ["c"] * 12) == [1.0, None] * 6


def test_retries_are_bounded():
    with service(lambda handler, request: handler.reply({}, 503)) as server:
        with pytest.raises(ServiceError, match=r"status 503.*attempt 3 of 3"):
            Service(server.url, retries=2, **QUICK).post({})
        assert len(server.requests) == 3


@pytest.mark.parametrize("status", [302, 400, 401, 404, 501])
def test_final_statuses_are_final(status):
    with service(lambda handler, request: handler.reply({}, status, {"Location": "/x"})) as server:
        with pytest.raises(ServiceError, match=f"status {status}.*attempt 1 of 4"):
            Service(server.url, **QUICK).post({})
        assert len(server.requests) == 1


@pytest.mark.parametrize("with_length", [True, False])
@pytest.mark.parametrize("first_byte", [True, False])
def test_a_deadline_ends_an_answer_that_never_ends(with_length, first_byte):
    def drip(handler, request):
        try:
            if first_byte:
                handler.send_response(200)
                handler.send_header("Content-Length", "1000") if with_length else None
                handler.end_headers()
            for _ in range(100):
                handler.wfile.write(b"1" if first_byte else b"")
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            handler.close_connection = True

    with service(drip) as server:
        start = time.monotonic()
        with pytest.raises(ServiceError, match=r"no answer within 0.3 s \(attempt 1 of 1\)"):
            Service(server.url, timeout=0.3, retries=0).post({})
        assert 0.25 < time.monotonic() - start < 1.5


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    with pytest.raises(RewardError, match=r"all 2 rows.*ConnectionRefusedError.*attempt 2 of 2"):
        HTTPReward(Service(url, timeout=2, retries=1, backoff=0))(["p"] * 2, ["c"] * 2)


def test_wrong_number_of_rewards_is_refused():
    with service(lambda handler, request: handler.reply({"rewards": [1.0] * 3})) as server:
        reward = HTTPReward(server.url, on_error="skip")
        with pytest.raises(ValueError, match="'http_reward' returned 3 rewards for 2 completions"):
            reward(["p"] * 2, ["c"] * 2)


@pytest.mark.parametrize(
    "answer", [b"<html>", b"\xff\xfe", b"[" * 100_000, {"scores": [1]}, "1", 1, {"rewards": "11"}]
)
def test_answers_that_are_no_rewards_are_errors_of_the_rows(answer):
    with service(lambda handler, request: handler.reply(answer)) as server:
        reward = HTTPReward(server.url, on_error="skip")
        assert reward(["p"] * 2, ["c"] * 2) == [None, None]
        assert len(server.requests) == 1
    assert reward.errors == 2


@pytest.mark.parametrize("answer", [b"<html>", b"\xff\xfe", b"[" * 100_000], ids=["text", "bytes", "deep"])
def test_an_answer_that_is_no_json_names_its_start(answer):
    with service(lambda handler, request: handler.reply(answer)) as server:
        with pytest.raises(ServiceError, match=r"the answer is not JSON: '[^']"):
            Service(server.url, **QUICK).post({})
        assert len(server.requests) == 1


def test_an_answer_without_end_is_cut_and_refused(monkeypatch):
    monkeypatch.setattr("trl_grpo_ext.rewards.adapters.http_json.MAX_RESPONSE_BYTES", 1000)
    too_long = pytest.raises(ServiceError, match=r"more than 1000 bytes.*attempt 1 of 4")
    with service(lambda handler, request: handler.reply([1.0] * 1000)) as server, too_long:
        Service(server.url, **QUICK).post({})


def test_nan_from_a_service_is_an_error():
    with service(lambda handler, request: handler.reply(b'{"rewards": [NaN, 1]}')) as server:
        assert HTTPReward(server.url, on_error="skip")(["p"] * 2, ["c"] * 2) == [None, 1.0]


def test_a_column_that_is_no_json_is_an_error_before_anything_is_sent():
    with service(length) as server:
        with pytest.raises(RewardError, match="TypeError: Object of type object is not JSON"):
            HTTPReward(server.url, columns=["x"])(["p"], ["c"], x=[object()])
        assert server.requests == []


def test_the_token_is_sent_and_not_stored(monkeypatch):
    with service(length) as server:
        reward = HTTPReward(Service(server.url, headers={"X-Team": "a"}, token_variable="REWARD_TOKEN"))
        monkeypatch.setenv("REWARD_TOKEN", "secret")
        assert b"secret" not in pickle.dumps(reward)
        assert pickle.loads(pickle.dumps(reward))(["p"], ["c"]) == [1.0]
        headers = server.requests[0][1]
        assert (headers["Authorization"], headers["X-Team"]) == ("Bearer secret", "a")
        monkeypatch.delenv("REWARD_TOKEN")
        with pytest.raises(RewardError, match=r"environment variable 'REWARD_TOKEN'.*is unset"):
            reward(["p"], ["c"])


def test_openrlhf_endpoint():
    def answer(handler, request):
        handler.reply({"rewards": [float(q[len(p) :] == a) for q, p, a in zip(*request.values(), strict=True)]})

    with service(answer) as server:
        reward = pickle.loads(pickle.dumps(OpenRLHFEndpoint(server.url, label_column="gold")))
        assert reward(["ask "] * 2, [SAID, "8"], gold=["777", "9"]) == [1.0, 0.0]
        assert server.requests[0][2] == {
            "query": ["ask 777", "ask 8"],
            "prompts": ["ask ", "ask "],
            "labels": ["777", "9"],
        }
    with pytest.raises(ValueError, match="needs the argument 'gold'"):
        check_reward_columns(reward, ["prompt"])


@pytest.mark.parametrize("url", ["ftp://host/x", "file:///etc/passwd", "host:80", "http://", "", "http://host:99999/"])
def test_other_urls_are_refused(url):
    with pytest.raises(ValueError, match="url must be http"):
        HTTPReward(url)


def test_a_password_in_the_url_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="must not hold a user name or password") as caught:
        Service("http://me:secret@host/x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [{"timeout": 0}, {"timeout": float("nan")}, {"retries": -1}, {"retries": 1.5}, {"backoff": -0.1}],
)
def test_other_limits_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Service("http://127.0.0.1/", **wrong)


def test_other_settings_are_refused():
    with pytest.raises(ValueError, match="batch_size of reward 'http_reward' must be 1 or more"):
        HTTPReward("http://127.0.0.1/", batch_size=0)
    with pytest.raises(ValueError, match="must not name 'prompt' or 'completion'"):
        HTTPReward("http://127.0.0.1/", columns=["prompt"])
