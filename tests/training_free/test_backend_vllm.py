"""The vLLM backend against a stand-in of the few names of vLLM that it uses; and those names, where vLLM is."""

import importlib.util
import inspect
import sys
from types import ModuleType, SimpleNamespace

import pytest

from trl_grpo_ext.training_free.backends.seeds import sampling_seed
from trl_grpo_ext.training_free.backends.vllm_backend import VLLMBackend
from trl_grpo_ext.training_free.protocol import BackendError, ChatReply, ChatRequest

from .tiny_models import TEMPLATE, make_tokenizer


class SamplingParams(SimpleNamespace):
    pass


class LLM:
    """Answers with the number of prompt tokens."""

    def __init__(self, model, **options):
        self.options, self.calls = options, []
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=64, model=model))

    def get_tokenizer(self):
        return make_tokenizer()

    def generate(self, prompts, sampling_params=None, use_tqdm=True):
        assert not use_tqdm and len(prompts) == len(sampling_params) > 0
        self.calls.append((prompts, sampling_params))
        return [SimpleNamespace(outputs=[self.output(*pair)]) for pair in zip(prompts, sampling_params, strict=True)]

    def output(self, prompt, parameters):
        size = len(prompt["prompt_token_ids"])
        finish = "length" if parameters.max_tokens < 5 else "stop"
        return SimpleNamespace(text=f"{size} tokens", token_ids=[2, 3], finish_reason=finish)


@pytest.fixture
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def request(text="abc", seed=0, **given):
    return ChatRequest((("user", text),), seed=seed, **given)


def test_requests_reach_the_engine_in_slices_with_seeds_of_their_own(vllm):
    engine, found = LLM("folder"), {}
    backend = VLLMBackend(engine, slice_size=2)
    requests = [
        request("abc", 1, temperature=0.7),
        request("abc", 2, max_tokens=3),
        request("a" * 80),
        request("b" * 52),
    ]
    backend.complete(requests, found.__setitem__)
    size = len("u abc\na ")
    assert found[0] == ChatReply(f"{size} tokens", size, 2, "stop") and found[1].finish_reason == "length"
    assert isinstance(found[2], BackendError) and "max_model_len is 64" in str(found[2]) and not found[2].retryable
    assert [len(prompts) for prompts, _ in engine.calls] == [2, 1]
    first, second = engine.calls[0][1]
    assert (first.temperature, first.max_tokens, first.seed) == (
        0.7,
        64 - size,
        sampling_seed(requests[0]),
    )
    assert first.seed != second.seed and engine.calls[1][1][0].max_tokens == 64 - 57


def test_engine_is_made_from_a_folder_with_its_options(vllm):
    backend = VLLMBackend("folder", gpu_memory_utilization=0.5)
    assert backend._engine.options == {"gpu_memory_utilization": 0.5}
    assert backend.name == "vllm:folder" and VLLMBackend("folder", label="ours").name == "vllm:ours"
    assert VLLMBackend("folder", chat_template_kwargs={"a": 1}).name != backend.name
    with pytest.raises(ValueError, match="gpu_memory_utilization: options of an engine"):
        VLLMBackend(LLM("folder"), gpu_memory_utilization=0.5)
    with pytest.raises(ValueError, match="slice_size must be"):
        VLLMBackend("folder", slice_size=0)


def test_templates_that_refuse_are_errors(vllm, monkeypatch):
    strict = make_tokenizer("{{ raise_exception('roles must alternate') }}" + TEMPLATE)
    monkeypatch.setattr(LLM, "get_tokenizer", lambda self: strict)
    found = {}
    VLLMBackend("folder").complete([request()], found.__setitem__)
    assert "roles must alternate" in str(found[0]) and not found[0].retryable


def test_what_on_reply_raises_ends_the_run_after_its_slice(vllm):
    engine = LLM("folder")

    def on_reply(index, reply):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        VLLMBackend(engine, slice_size=1).complete([request(), request()], on_reply)
    assert len(engine.calls) == 1


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_refusal_says_the_way_out():
    with pytest.raises(ImportError, match=r"trl-grpo-ext\[vllm\].*`vllm serve` to OpenAIBackend"):
        VLLMBackend("folder")


def test_names_of_vllm_that_are_used():
    vllm = pytest.importorskip("vllm", reason="vLLM is not installed")
    assert {"prompts", "sampling_params", "use_tqdm"} <= inspect.signature(vllm.LLM.generate).parameters.keys()
    assert {"temperature", "max_tokens", "seed"} <= inspect.signature(vllm.SamplingParams).parameters.keys()
    assert hasattr(vllm.LLM, "get_tokenizer")
