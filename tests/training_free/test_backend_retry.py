"""Back-off and the headers of rate limits."""

import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.training_free.backends.retry import RetryPolicy, backoff, duration, may_retry, server_wait

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@settings(deadline=None)
@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_doubles_up_to_the_cap_with_full_jitter(attempt, uniform):
    policy = RetryPolicy(base=0.5, cap=8.0)
    limit = 8.0 if attempt > 5 else 0.5 * 2 ** (attempt - 1)
    assert backoff(policy, attempt, uniform) == uniform * limit


@pytest.mark.parametrize("status, expected", [(429, True), (500, True), (503, True), (408, True), (529, True)])
def test_what_may_pass_is_tried_again(status, expected):
    assert may_retry(status) is expected


@pytest.mark.parametrize("status", [200, 301, 400, 401, 403, 404, 413, 422, 600])
def test_what_will_not_pass_is_not(status):
    assert not may_retry(status)


@pytest.mark.parametrize(
    "text, seconds",
    [("2", 2), ("0.5s", 0.5), ("120ms", 0.12), ("6m0s", 360), ("1h2m3s", 3723), (" 7 ", 7), ("1d", 86400)],
)
def test_durations(text, seconds):
    assert duration(text) == pytest.approx(seconds)


@settings(deadline=None)
@given(st.text(max_size=20))
def test_any_text_is_a_duration_or_none(text):
    found = duration(text)
    assert found is None or (math.isfinite(found) and found >= 0)


@pytest.mark.parametrize(
    "headers, seconds",
    [
        ({}, 0),
        ({"retry-after": "3"}, 3),
        ({"retry-after": format_datetime(NOW + timedelta(seconds=40), usegmt=True)}, 40),
        ({"retry-after": format_datetime(NOW - timedelta(seconds=40), usegmt=True)}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "-5"}, 0),
        ({"retry-after": "9", "retry-after-ms": "250"}, 0.25),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m30s"}, 90),
        ({"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "1m30s"}, 0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}, 0.02),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(NOW.timestamp()) + 12)}, 12),
        ({"x-ratelimit-remaining-requests": "0"}, 0),
        ({"retry-after": "1", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "4s"}, 4),
    ],
)
def test_servers_are_understood(headers, seconds):
    assert server_wait(headers, NOW) == pytest.approx(seconds)


NAMES = ["retry-after", "retry-after-ms", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=30) | st.sampled_from(["0", "Sat, 99 Foo 2026"])))
def test_headers_that_cannot_be_read_ask_for_nothing(headers):
    found = server_wait(headers, NOW)
    assert math.isfinite(found) and found >= 0


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"base": -1.0}, {"cap": math.nan}, {"max_wait": math.inf}])
def test_policies_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RetryPolicy(**wrong)
