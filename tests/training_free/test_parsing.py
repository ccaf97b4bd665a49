"""Replies of a model: well-formed, malformed, hostile. Nothing escapes, and nothing is half understood."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.experience import ExperienceLibrary, Lesson
from trl_grpo_ext.training_free.operations import KINDS, Operation, Rules, apply_operations, validated
from trl_grpo_ext.training_free.parsing import ParseError, parse_operations, parse_summary, without_thoughts

LESSONS = {"0123456789abcdef" * 2: "When units meet, convert first.", "fedcba9876543210" * 2: "Check the sign last."}
FIRST, SECOND = LESSONS
ADD = {"operation": "add", "text": "When lost, draw a picture."}


def test_a_plain_list():
    text = json.dumps(
        [
            ADD,
            {"operation": "update", "id": FIRST[:8], "text": "Convert units before anything else."},
            {"operation": "merge", "ids": [FIRST[:8], SECOND[:8]], "text": "Units first, signs last."},
            {"operation": "delete", "id": SECOND[:8]},
            {"operation": "none"},
        ]
    )
    assert parse_operations(text, LESSONS) == [
        Operation("add", "When lost, draw a picture."),
        Operation("update", "Convert units before anything else.", (FIRST,)),
        Operation("merge", "Units first, signs last.", (FIRST, SECOND)),
        Operation("delete", "", (SECOND,)),
    ]


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{json.dumps([ADD])}\n```",
        f"<think>maybe [1], or {{}}</think>I see. {json.dumps([ADD])} That is all.",
        json.dumps({"operations": [ADD]}),
        json.dumps(ADD),
        json.dumps([{"option": "ADD", "experience": "[G0]. When lost, draw a picture."}]),
        f"First I thought:\n```json\n[]\n```\nBut then:\n```json\n{json.dumps([ADD])}\n```",
        f"As in [1] and [G3], so: {json.dumps([ADD])}",
        json.dumps([{**ADD, "text": "When lost,\n  draw\ta \x00 picture."}]),
    ],
)
def test_forms_that_models_use(text):
    assert parse_operations(text, LESSONS) == [Operation("add", "When lost, draw a picture.")]


@pytest.mark.parametrize("text", ["[]", '[{"operation": "none"}]', '{"operation": "NONE"}', "Nothing to do: []"])
def test_no_operation_is_an_answer(text):
    assert parse_operations(text, LESSONS) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no JSON list"),
        ("I would add a lesson about units.", "no JSON list"),
        ('[{"operation": "add", "text": "whole"}, {"operation": "delete", "id"', "cut off"),
        ('{"operations": [{"operation": "add", "text": "whole"}, {"operation', "cut off"),
        ('[{"operation": "explode"}]', "must be add, update"),
        ('[{"text": "no kind"}]', "must be add, update"),
        ('[{"operation": ["add"], "text": "x"}]', "must be add, update"),
        ('[{"operation": "add"}]', 'needs the lesson as "text"'),
        ('[{"operation": "add", "text": 3}]', 'needs the lesson as "text"'),
        ('[{"operation": "update", "text": "x"}]', 'needs the "id"'),
        ('[{"operation": "delete", "id": {"a": 1}}]', "must be the id"),
        ('[{"operation": "delete", "ids": ["a", "b"]}]', 'one "id"'),
        ('["add a lesson"]', "must be a JSON object"),
        ("<think>" + json.dumps([ADD]), "no JSON list"),
        ("[" * 3000, "malformed"),
        ("{" * 3000, "no JSON list"),
        (json.dumps([ADD, ADD | {"text": "Another one."}]), "at most 1"),
        (f"{json.dumps(ADD)}\n{json.dumps(ADD)}", "at most 1"),
    ],
)
def test_what_can_not_be_used_says_why(text, says):
    with pytest.raises(ParseError, match=says) as caught:
        parse_operations(text, LESSONS, most=1)
    assert len(str(caught.value)) < 400


def test_objects_one_after_the_other_are_one_answer():
    text = "\n".join(json.dumps(item) for item in (ADD, {"operation": "delete", "id": FIRST}))
    assert [item.kind for item in parse_operations(text, LESSONS)] == ["add", "delete"]


def test_a_number_that_begins_a_lesson_stays():
    text = json.dumps([{"operation": "add", "text": "3 or more unknowns need 3 equations."}])
    assert parse_operations(text, {})[0].text == "3 or more unknowns need 3 equations."


def test_a_handle_that_two_lessons_share_is_unknown():
    lessons = {"a" * 8 + "1": "one", "a" * 8 + "2": "two"}
    (found,) = parse_operations(json.dumps([{"operation": "delete", "id": "a" * 8}]), lessons)
    assert found.ids == ("a" * 8,)


def test_summaries_lose_their_thoughts():
    assert parse_summary("<think>hm</think> It  failed\nat the end.") == "It failed at the end."
    with pytest.raises(ParseError, match="empty"):
        parse_summary("<think>never finished")
    assert without_thoughts("a<thinking>b</thinking>c") == "ac"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([FIRST[:8], *KINDS]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["operation", "op", "text", "id", "ids", "content", "operations"]) | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
pieces = st.lists(
    st.text(max_size=30)
    | st.sampled_from(["```json\n", "```", "<think>", "</think>", "[", "]", "{", "}", '"', ",", "\ud800", "\x00"])
    | json_values.map(lambda value: json.dumps(value)),
    max_size=12,
).map("".join)
half_right = st.builds(
    lambda kind, text, names: json.dumps([{"operation": kind, "text": text, "ids": names}]),
    st.sampled_from([*KINDS, "none", "modify", "x"]),
    st.text(max_size=60),
    st.lists(st.sampled_from([FIRST[:8], SECOND[:8], FIRST, "nobody"]), max_size=3),
)


def make_library():
    library = ExperienceLibrary()
    library.add(Lesson("When units meet, convert first.", 0.0), Lesson("Check the sign last.", 0.0))
    return library


@settings(max_examples=300, deadline=None)
@given(pieces | half_right | st.text())
def test_any_text_is_operations_or_a_parse_error(text):
    try:
        found = parse_operations(text, LESSONS, 3)
    except ParseError as error:
        assert str(error)
        return
    assert len(found) <= 3
    for operation in found:
        assert operation.kind in KINDS
        assert bool(operation.text) == (operation.kind != "delete")
        assert operation.text.isprintable()


@settings(max_examples=150, deadline=None)
@given(half_right | pieces)
def test_any_reply_leaves_the_library_changed_whole_or_as_it_was(text):
    library = make_library()
    before = {item.id: item.record.text for item in library.records("lesson")}
    try:
        found = parse_operations(text, before)
    except ParseError:
        return
    kept, rejected = validated(found, Rules(before, 32))
    assert len(kept) + len(rejected) == len(found)
    with library.transaction("step", 1):
        apply_operations(library, kept, 1)
    after = {item.id: item.record.text for item in library.records("lesson")}
    gone = {name for item in kept for name in (item.ids if item.kind == "delete" else item.ids[1:])}
    added = [item for item in kept if item.kind == "add"]
    assert len(after) == len(before) - len(gone) + len(added)
    assert {item.text for item in kept if item.text} <= set(after.values())
    assert all(len(held.split()) <= 32 for held in after.values())


@settings(max_examples=200, deadline=None)
@given(st.text() | pieces)
def test_any_text_is_a_summary_or_a_parse_error(text):
    try:
        assert parse_summary(text).strip()
    except ParseError as error:
        assert str(error)
