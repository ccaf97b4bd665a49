"""Where lessons stand, which events are whole, which settings work: without a server."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext._secrets import Secret
from trl_grpo_ext.cli import serve
from trl_grpo_ext.experience import Lesson, lessons_text
from trl_grpo_ext.serving import Libraries, ServeSettings
from trl_grpo_ext.serving.events import EventBuffer
from trl_grpo_ext.serving.lessons import with_lessons

from .proxies import make_library

LESSONS = [Lesson("add first"), Lesson("check the sign")]
TEXT = lessons_text(LESSONS)
USER = {"role": "user", "content": "2+2?"}


@pytest.mark.parametrize("template", [None, "You learned:\n{experiences}\nUse it."])
@pytest.mark.parametrize("messages", [[USER], [{"role": "system", "content": "be brief"}, USER]])
def test_template_and_position_are_those_of_learning(messages, template):
    from trl_grpo_ext.training_free.prompts import policy_messages

    learned = policy_messages(messages, LESSONS, template)
    assert [(item["role"], item["content"]) for item in with_lessons(messages, TEXT, template)] == list(learned)


def test_messages_that_are_no_text_are_passed_on_as_they_are():
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    found = with_lessons([image, call], TEXT)
    assert found[0] == {"role": "system", "content": TEXT} and found[1] is image and found[2] is call
    assert with_lessons([image], "") == [image]
    blocks = [{"role": "system", "content": [{"type": "text", "text": "be brief"}]}]
    assert with_lessons(blocks, TEXT)[0]["content"][1] == {"type": "text", "text": "be brief"}
    assert len(blocks[0]["content"]) == 1
    with pytest.raises(TypeError):
        with_lessons([{"role": "system", "content": image["content"]}], TEXT)


EVENTS = st.lists(st.binary(max_size=8).map(lambda data: b"data: " + data.replace(b"\n", b"").replace(b"\r", b"")))


@settings(deadline=None)
@given(EVENTS, st.sampled_from([b"\n\n", b"\r\n\r\n"]), st.binary(max_size=5), st.lists(st.integers(0, 60)))
def test_events_come_whole_wherever_the_stream_is_cut(events, boundary, rest, cuts):
    rest = rest.replace(b"\n", b"").replace(b"\r", b"")
    sent = b"".join(item + boundary for item in events) + rest
    places = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    buffer = EventBuffer()
    found = [buffer.feed(sent[start:end]) for start, end in itertools.pairwise(places)]
    assert b"".join(found) == sent.removesuffix(rest) if rest else b"".join(found) == sent
    assert all(part.endswith(boundary) for part in found if part)


@pytest.mark.parametrize("end", [b"data: [DONE]\n\n", b"data: [DONE]\r\n\r\n", b"data: [DONE]\n", b"data:[DONE]"])
def test_end_of_a_stream_is_recognised(end):
    buffer = EventBuffer()
    whole = buffer.feed(b"data: 1\n\n" + end) + buffer.end()
    assert buffer.done and whole.endswith(b"\n\n" if b"\r" not in end else b"\r\n\r\n") and b"[DONE]" in whole


@pytest.mark.parametrize("end", [b"", b"data: 2\n\n", b"data: x [DONE]\n\n", b'data: "[DONE]"\n\n'])
def test_end_that_has_not_come_is_not(end):
    buffer = EventBuffer()
    buffer.feed(b"data: 1\n\n" + end)
    assert buffer.end() == b"" and not buffer.done


def test_event_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr("trl_grpo_ext.serving.events.MAX_EVENT_BYTES", 10)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        EventBuffer().feed(b"x" * 11)


def test_secret():
    secret = Secret(" sk-1 \n")
    assert secret.matches("Bearer sk-1") and secret.matches("bearer  sk-1")
    for wrong in ("", "sk-1", "Basic sk-1", "Bearer sk-12", "Bearer ", "Bearer schlüssel"):
        assert not secret.matches(wrong)
    assert "sk-1" not in repr(secret) and secret.hidden("a sk-1 b") == "a *** b"


@pytest.mark.parametrize(
    "given_settings, message",
    [
        ({"upstream": "localhost:8000"}, "upstream must be like"),
        ({"upstream": "http://u:p@h/v1"}, "no user, password"),
        ({"upstream": "u:p@h/v1"}, "no user, password"),
        ({"upstream": "h/v1?key=k"}, "no user, password"),
        ({"port": 0}, "port must be above 0"),
        ({"timeout": 0.0}, "timeout and port"),
        ({"max_body_bytes": 0}, "max_body_bytes"),
        ({"template": "no place"}, "must hold {experiences} once"),
        ({"host": "0.0.0.0", "upstream_key": Secret("k")}, "spend your upstream key"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(given_settings, message):
    with pytest.raises(ValueError, match=message):
        ServeSettings(**{"upstream": "http://h/v1", **given_settings})


def test_open_address_is_served_with_a_key_of_the_proxy_or_without_one_of_the_upstream():
    ServeSettings("http://h/v1", Secret("k"), Secret("c"), host="0.0.0.0")
    ServeSettings("http://h/v1", host="0.0.0.0")
    for host in ("localhost", "127.0.0.1", "::1"):
        ServeSettings("http://h/v1", Secret("k"), host=host)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--library", "no/such/file.db"], "file.db"),
        (["--library", "a.db", "--library", "b.db"], "both have no domain; write DOMAIN=b.db"),
        (["--library", "=b.db"], "must be DOMAIN=FILE"),
        (["--library", "x=a.db", "--library", "x=b.db"], "another domain each time"),
        (["--library", "a.db", "--api-key-env", "NO_SUCH_KEY"], "--api-key-env='NO_SUCH_KEY'"),
    ],
)
def test_command_that_cannot_work_is_refused_with_the_reason(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert serve.main(["--upstream", "http://127.0.0.1:1/v1", *arguments]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed and list(tmp_path.iterdir()) == []


def test_libraries_need_one_library(tmp_path):
    with pytest.raises(ValueError, match="give at least one library"):
        Libraries()
    libraries = Libraries(domains={"math": make_library(tmp_path / "a.db", "x")})
    assert libraries.shown("math").count == 1 and libraries.names() == ["math"]
    with pytest.raises(KeyError):
        libraries.shown()
