"""Messages, cache keys, arguments: the parts of the runtime without processes."""

import contextlib
import json
import pickle
import socket
import threading
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_grpo_ext.rewards.runtime import IsolatedReward, RewardRuntime
from trl_grpo_ext.rewards.runtime.arguments import pickled_state, replay_extra, replay_metrics, split_columns
from trl_grpo_ext.rewards.runtime.cache import ResultCache, row_key
from trl_grpo_ext.rewards.runtime.messages import (
    BadMessage,
    Channel,
    ChannelClosed,
    DeadlineExceeded,
    decode_reply,
)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def channels():
    left, right = socket.socketpair()
    pair = Channel(left, 1000), Channel(right, 1000)
    yield pair
    for channel in pair:
        channel.close()


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_messages_arrive_whole_and_in_order(messages):
    left, right = socket.socketpair()
    sender, receiver = Channel(left, 1000), Channel(right, 1000)
    for message in messages:
        sender.send(message)
    assert [receiver.receive(time.monotonic() + 5) for _ in messages] == messages
    sender.close()
    receiver.close()


def test_a_late_reader_still_gets_a_message_that_was_in_time(channels):
    channels[0].send(b"in time")
    assert channels[1].receive(time.monotonic() - 1) == b"in time"


def test_silence_ends_at_the_deadline(channels):
    with pytest.raises(DeadlineExceeded):
        channels[1].receive(time.monotonic() + 0.02)


def test_the_end_of_the_other_side_is_seen(channels):
    threading.Timer(0.02, channels[0].close).start()
    with pytest.raises(ChannelClosed):
        channels[1].receive(time.monotonic() + 5)


def test_a_message_beyond_the_limit_is_refused_before_it_is_read(channels):
    channels[0].send(b"x" * 1001)
    with pytest.raises(BadMessage, match="1001 bytes"):
        channels[1].receive(time.monotonic() + 5)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_hostile_replies_are_refused_or_dictionaries(data):
    with contextlib.suppress(BadMessage):
        assert isinstance(decode_reply(data), dict)


@pytest.mark.parametrize("data", [b"[" * 100_000, pickle.dumps({"rewards": [1]}), b"[1]", b"\xff"])
def test_replies_that_are_no_json_object(data):
    with pytest.raises(BadMessage):
        decode_reply(data)


@given(
    st.dictionaries(st.text(max_size=3), PLAIN, max_size=3), st.dictionaries(st.text(max_size=3), PLAIN, max_size=3)
)
def test_keys_differ_exactly_where_rows_differ(first, second):
    same = repr(sorted(first.items(), key=lambda item: item[0])) == repr(
        sorted(second.items(), key=lambda item: item[0])
    )
    assert (row_key("v", first) == row_key("v", second)) == same
    assert row_key("v", first) == row_key("v", json.loads(json.dumps(first)))
    assert row_key("v", first) != row_key("w", first)


def test_rows_with_objects_have_no_key():
    assert row_key("v", {"image": object()}) is None
    assert row_key("v", {"images": [{"a": object()}]}) is None


def test_the_cache_forgets_what_was_not_used_for_longest():
    cache = ResultCache(2)
    for key in "ab":
        cache.store(key, 1.0)
    cache.find("a")
    cache.store("c", None)
    assert [cache.find(key) for key in "abc"] == [(True, 1.0), (False, None), (True, None)]
    assert len(cache) == 2
    cache.store(None, 1.0)
    assert cache.find(None) == (False, None)


@dataclass
class State:
    global_step: int = 3
    log_history: list = field(default_factory=lambda: [{"loss": 0.5, "bad": object()}])
    live: object = object()


def test_the_state_is_reduced_to_plain_values():
    assert pickle.loads(pickled_state(State())) == {"global_step": 3, "log_history": [{"loss": 0.5}]}
    assert pickled_state(None) is None


def test_columns_need_one_value_per_completion():
    columns = split_columns(1, {"completions": ["a"], "x": [1], "log_metric": print, "prompts": None})
    assert columns == {"completions": ["a"], "x": [1]}
    for wrong, what in (([1, 2], "2 values"), ("a", "1 values"), (7, "int")):
        with pytest.raises(ValueError, match=f"'x' must be a list .*, not {what}"):
            split_columns(1, {"x": wrong})


def test_the_plain_prompt_is_what_functions_see():
    assert split_columns(1, {"prompts": ["lesson + q"], "plain_prompt": ["q"]})["prompts"] == ["q"]


def test_replayed_logs_are_merged_and_nonsense_is_dropped():
    calls = [({"extra": [["c", [1]], ["bad", [1, 2]], [3, [1]]]}, [0]), ({"extra": [["c", [2]]]}, [2]), ({}, [1])]
    seen = []
    replay_extra(calls, 3, lambda *arguments: seen.append(arguments))
    assert seen == [("c", [1, None, 2])]
    metrics = []
    replies = [{"metrics": [["m", 1.0], ["m", 2.0], ["bad", "x"], 5]}, {"metrics": 7}, {"metrics": [["m", 6.0]]}]
    replay_metrics(replies, lambda *arguments: metrics.append(arguments))
    assert metrics == [("m", 3.0)]


@pytest.mark.parametrize(
    "arguments",
    [{"workers": 0}, {"deadline": float("inf")}, {"memory_limit": 1.5}, {"cpu_limit": -1}, {"cache_size": -1}],
)
def test_wrong_limits_are_refused(arguments):
    with pytest.raises(ValueError, match=f"RewardRuntime: {next(iter(arguments))} must be"):
        RewardRuntime(**arguments)


def ones(completions, **kwargs):
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_error": "zero"}, "on_error must be"),
        ({"on_kill": float("nan")}, "on_kill must be"),
        ({"deadline": 0}, "deadline must be"),
        ({"in_process": True, "sandbox": True}, "in_process=True takes"),
        ({"in_process": True, "deadline": 1.0}, "in_process=True takes"),
    ],
)
def test_wrong_reward_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        IsolatedReward(ones, **arguments)


@pytest.mark.parametrize(
    ("spec", "message"),
    [("exact_mach", "exact_match"), ("no/such.py:f", "not exist"), ("no_such_module:f", "no module")],
)
def test_unknown_specs_are_refused_at_once(spec, message):
    with pytest.raises(ValueError, match=message):
        IsolatedReward(spec)
