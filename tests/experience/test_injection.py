"""Texts in prompts: where they stand, and that nothing that was handed in is changed."""

import copy
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_grpo_ext.experience.injection import (
    ACKNOWLEDGEMENT,
    POSITIONS,
    completion_text,
    inject,
    prompt_text,
)

TEXT = "Lesson {braces}"
USER = {"role": "user", "content": "why?"}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "because"}


@pytest.mark.parametrize("position", POSITIONS)
def test_before_a_string(position):
    assert inject("why?", TEXT, position) == "Lesson {braces}\n\nwhy?"


def test_a_new_system_message():
    assert inject([USER], TEXT) == [{"role": "system", "content": TEXT}, USER]


def test_before_the_system_message_that_is_there():
    assert inject([SYSTEM, USER], TEXT, "system") == [{"role": "system", "content": f"{TEXT}\n\nBe brief."}, USER]


def test_before_the_last_user_message():
    found = inject([USER, ANSWER, USER], TEXT, "user")
    assert found == [USER, ANSWER, {"role": "user", "content": f"{TEXT}\n\nwhy?"}]


@pytest.mark.parametrize("head", [[], [SYSTEM]])
def test_as_an_exchange_of_its_own(head):
    exchange = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": ACKNOWLEDGEMENT}]
    assert inject([*head, USER], TEXT, "prefix") == [*head, *exchange, USER]


def test_an_exchange_before_an_answer_is_answered_by_it():
    assert inject([ANSWER, USER], TEXT, "prefix") == [{"role": "user", "content": TEXT}, ANSWER, USER]


def test_template():
    assert inject("why?", TEXT, "user", "<<{experiences}>> {0}") == "<<Lesson {braces}>> {0}\n\nwhy?"


def test_text_blocks_stay_blocks():
    blocks = {"role": "user", "content": [{"type": "text", "text": "why?"}]}
    assert inject([blocks], TEXT, "user")[0]["content"] == [
        {"type": "text", "text": f"{TEXT}\n\n"},
        {"type": "text", "text": "why?"},
    ]
    assert inject([blocks], TEXT)[0] == {"role": "system", "content": [{"type": "text", "text": TEXT}]}


MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.text(max_size=5)}
    ),
    min_size=1,
    max_size=5,
)


@given(prompt=st.one_of(st.text(), MESSAGES), text=st.text(max_size=5), position=st.sampled_from(POSITIONS))
def test_nothing_is_changed_shared_or_lost(prompt, text, position):
    before = copy.deepcopy(prompt)
    if position == "user" and isinstance(prompt, list) and text and all(item["role"] != "user" for item in prompt):
        with pytest.raises(ValueError, match="role"):
            inject(prompt, text, position)
        return
    found = inject(prompt, text, position)
    assert prompt == before
    if isinstance(prompt, str):
        assert found.endswith(prompt) and text in found
        return
    assert not {id(item) for item in found} & {id(item) for item in prompt}
    texts = "".join(item["content"] for item in found)
    assert text in texts and all(item["content"] in texts for item in prompt)
    assert found == prompt or text


@given(prompt=MESSAGES)
def test_roles_still_alternate_where_they_did(prompt):
    turns = [item["role"] for item in prompt if item["role"] != "system"]
    if any(one == other for one, other in pairwise(turns)):
        return
    found = [item["role"] for item in inject(prompt, "text", "prefix") if item["role"] != "system"]
    if turns[:1] != ["tool"]:
        assert all(one != other for one, other in pairwise(found))


@pytest.mark.parametrize(
    "prompt",
    [None, [], [1], [{"content": "x"}], [{"role": "user", "content": [{"type": "image"}]}], {"role": "user"}],
)
def test_other_prompts_are_refused(prompt):
    with pytest.raises(TypeError, match="images and other blocks are not supported"):
        inject(prompt, TEXT)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (("top",), ValueError, "position must be one of system, user, prefix, not 'top'"),
        (("user", "no place"), ValueError, "once, where the text goes; it holds it 0 times"),
        (("user", "{experiences}{experiences}"), ValueError, "2 times"),
        (("user", 3), TypeError, "template must be a string"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        inject("why?", TEXT, *arguments)


def test_the_text_by_which_a_prompt_is_known():
    assert prompt_text("why?") == prompt_text([USER]) == prompt_text([SYSTEM, USER]) == "why?"
    assert prompt_text([USER, ANSWER, USER]) == "user: why?\nassistant: because\nuser: why?"
    assert prompt_text([{"role": "user", "content": [{"type": "text", "text": "why?"}]}]) == "why?"
    assert prompt_text([SYSTEM]) == "Be brief."


def test_the_text_of_a_completion():
    call = {"role": "assistant", "content": None, "tool_calls": []}
    assert completion_text("yes") == completion_text([{"role": "assistant", "content": "yes"}]) == "yes"
    assert completion_text([call, {"role": "tool", "content": "4"}, {"role": "assistant", "content": "yes"}]) == "yes"
