"""Prompts are rendered by LLaMA-Factory's Template, as its own inference renders them."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafactory_plugin.rendering import PromptRenderer, from_messages, to_messages
from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.prepared import prepare
from tests.llamafactory_plugin.tiny import build_tokenizer

TEMPLATES = [
    "qwen",
    "qwen3",
    "llama3",
    "alpaca",
    "default",
    "deepseekr1",
    "gemma",
    "gemma2",
    "mistral",
    "glm4",
    "phi4",
]
WEATHER = {
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOLS = json.dumps([WEATHER])
CALL = json.dumps({"name": "weather", "arguments": {"city": "Rome"}})
QUESTION = [{"role": "user", "content": "red or blue?"}]
CHAT = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\ntwo"},
    {"role": "user", "content": "three"},
]
TOOL_CHAT = [
    {"role": "user", "content": "Is it warm in Rome?"},
    {"role": "function", "content": CALL},
    {"role": "observation", "content": '{"degrees": 30}'},
]
CONVERSATIONS = {
    "question": (QUESTION, None, None),
    "system": (QUESTION, "Be short.", None),
    "chat": (CHAT, "Be short.", None),
    "tools": (QUESTION, None, TOOLS),
    "tool turns": (TOOL_CHAT, "Be short.", TOOLS),
}


@pytest.fixture(autouse=True)
def own_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaMA-Factory writes `default_system` and the thinking switches into its one object per template."""
    from llamafactory.data import template

    monkeypatch.setattr(template, "TEMPLATES", copy.deepcopy(template.TEMPLATES))


def renderer_of(name: str, **data_arguments: Any) -> PromptRenderer:
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    tokenizer = build_tokenizer()
    return PromptRenderer(
        get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name, **data_arguments)), tokenizer
    )


def ids_of_llamafactorys_chat(renderer: PromptRenderer, turns: Any, system: Any, tools: Any) -> list[int]:
    """What `llamafactory-cli chat` gives to the model."""
    import torch
    from llamafactory.chat.hf_engine import HuggingfaceEngine
    from llamafactory.hparams import GeneratingArguments

    gen_kwargs, _ = HuggingfaceEngine._process_args(
        SimpleNamespace(device=torch.device("cpu"), config=SimpleNamespace(model_type="qwen2")),  # type: ignore[arg-type]
        renderer.tokenizer,
        None,
        renderer.template,
        GeneratingArguments().to_dict(),
        copy.deepcopy(turns),
        system,
        tools,
        input_kwargs={},
    )
    return gen_kwargs["inputs"][0].tolist()


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_llamafactorys_chat(name: str, conversation: str) -> None:
    turns, system, tools = CONVERSATIONS[conversation]
    renderer = renderer_of(name)
    messages = to_messages(turns, system)
    before = copy.deepcopy(messages)
    ids = renderer.encode(messages, tools)
    assert ids == ids_of_llamafactorys_chat(renderer, turns, system, tools)
    assert messages == before
    assert all(turn["content"][:3] in renderer.decode(ids) for turn in turns if turn["role"] == "user")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "qwen",
            "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nred or blue?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "llama3",
            "<|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nred or blue?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        ("alpaca", "Be short.### Instruction:\nred or blue?\n\n### Response:\n"),
        ("default", "System: Be short.<|im_end|>\nHuman: red or blue?<|im_end|>\nAssistant:"),
    ],
)
def test_the_rendered_text(name: str, expected: str) -> None:
    renderer = renderer_of(name)
    text = renderer.decode(renderer.encode(to_messages(QUESTION, "Be short.")))
    assert text.removeprefix("<|begin_of_text|>") == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_tokenizers_own_chat_template_is_not_read(name: str) -> None:
    renderer = renderer_of(name)
    expected = renderer.encode(to_messages(CHAT, "Be short."))
    for chat_template in (None, "{{ raise_exception('read') }}", "{% for m in messages %}{{ m }}{% endfor %}"):
        renderer.tokenizer.chat_template = chat_template
        assert renderer.encode(to_messages(CHAT, "Be short.")) == expected


def test_the_templates_default_system_text() -> None:
    own = "You are Qwen, created by Alibaba Cloud."
    assert own in renderer_of("qwen").decode(renderer_of("qwen").encode(to_messages(QUESTION, None)))
    assert own not in renderer_of("qwen").decode(renderer_of("qwen").encode(to_messages(QUESTION, "Be short.")))
    replaced = renderer_of("qwen", default_system="Be kind.")
    assert "Be kind." in replaced.decode(replaced.encode(to_messages(QUESTION, None)))


@pytest.mark.parametrize(("enable_thinking", "has_empty_thought"), [(True, False), (False, True), (None, True)])
@pytest.mark.parametrize("name", ["qwen3", "deepseekr1"])
def test_the_thinking_switch(name: str, enable_thinking: bool | None, has_empty_thought: bool) -> None:
    renderer = renderer_of(name, enable_thinking=enable_thinking)
    text = renderer.decode(renderer.encode(to_messages(QUESTION, None)))
    assert text.endswith("<think>\n\n</think>\n\n") is has_empty_thought
    assert renderer.encode(to_messages(QUESTION, None)) == ids_of_llamafactorys_chat(renderer, QUESTION, None, None)


@pytest.mark.parametrize(("preserve", "is_kept"), [(True, True), (False, False)])
def test_earlier_thoughts(preserve: bool, is_kept: bool) -> None:
    renderer = renderer_of("qwen3", preserve_thinking=preserve)
    assert ("hm" in renderer.decode(renderer.encode(to_messages(CHAT, None)))) is is_kept


def test_tools_stand_in_the_prompt() -> None:
    renderer = renderer_of("qwen3")
    with_tools = renderer.decode(renderer.encode(to_messages(QUESTION, None), TOOLS))
    assert "The weather of a city." in with_tools
    for none in (None, ""):
        assert "weather" not in renderer.decode(renderer.encode(to_messages(QUESTION, None), none))
    turns = renderer.decode(renderer.encode(to_messages(TOOL_CHAT, None), TOOLS))
    assert turns.index("<tool_call>", turns.index("Is it warm")) < turns.index('{"degrees": 30}')


@pytest.mark.parametrize(
    ("name", "words"), [("llama3", {"<|eot_id|>", "<|eom_id|>"}), ("qwen", {"<|im_end|>"}), ("default", set())]
)
def test_stop_tokens_are_all_of_the_template(name: str, words: set[str]) -> None:
    renderer = renderer_of(name)
    stops = {renderer.tokenizer.convert_ids_to_tokens(token) for token in renderer.stop_token_ids()}
    assert words | {renderer.tokenizer.eos_token} == stops


def test_the_trainer_gets_the_renderer_of_the_run(workspace: Workspace) -> None:
    run = prepare(workspace.arguments(template="llama3"))
    row = run.train[0]
    ids = run.renderer.encode(row["prompt"])
    assert "<|start_header_id|>user" in run.renderer.decode(ids)
    assert ids == ids_of_llamafactorys_chat(run.renderer, [{"role": "user", "content": row["prompt"][0]["content"]}], None, None)  # fmt: skip


class TestMessages:
    texts = st.text(max_size=20)
    asking = st.sampled_from(["user", "observation"])
    answering = st.sampled_from(["assistant", "function"])

    @given(
        roles=st.lists(st.tuples(asking, answering), max_size=4),
        last=asking,
        system=st.none() | st.text(min_size=1, max_size=20),
        data=st.data(),
    )
    def test_they_are_inverse(self, roles: Any, last: str, system: str | None, data: Any) -> None:
        flat = [role for pair in roles for role in pair] + [last]
        turns = [{"role": role, "content": data.draw(self.texts)} for role in flat]
        messages = to_messages(turns, system)
        assert from_messages(messages) == (turns, system)
        assert to_messages(*from_messages(messages)) == messages

    def test_roles_are_those_of_transformers(self) -> None:
        roles = [message["role"] for message in to_messages(TOOL_CHAT, "Be short.")]
        assert roles == ["system", "user", "function", "tool"]

    @pytest.mark.parametrize("system", [None, ""])
    def test_no_system_message_without_a_text(self, system: str | None) -> None:
        assert to_messages(QUESTION, system) == QUESTION
        assert from_messages(QUESTION) == (QUESTION, None)
