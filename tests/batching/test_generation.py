"""Shared prefill: with the same random numbers the tokens of plain `generate`, and each prompt encoded once."""

import warnings

import pytest
import torch
from accelerate import Accelerator
from transformers import GenerationConfig

from tests.batching.models import ARCHITECTURES, SIZES, UNSUPPORTED, build, make
from trl_grpo_ext.batching import SharedPrefill, generation

# Three prompts, the second of one token, for five rows that are not sorted.
OWNERS = [0, 1, 0, 2, 0]
PROMPTS = torch.tensor([[0, 0, 3, 4, 5], [0, 0, 0, 0, 6], [7, 8, 9, 3, 2]])
CALL = {"input_ids": PROMPTS[OWNERS], "attention_mask": (PROMPTS != 0).long()[OWNERS]}
SAMPLED = GenerationConfig(max_new_tokens=6, do_sample=True, pad_token_id=0, eos_token_id=1)
GREEDY = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=1)


def prefill(asked=True, **kwargs):
    return SharedPrefill(Accelerator(cpu=True), True, asked, **kwargs)


def generated(model, config, sharing=None, **call):
    """Two generations one after another, from one state of the random numbers."""
    torch.manual_seed(3)
    call = CALL | {"generation_config": config} | call
    if sharing is None:
        return [model.generate(**call).tolist() for _ in range(2)]
    with sharing.during(model):
        return [model.generate(**call).tolist() for _ in range(2)]


def shapes_of(model):
    seen = []
    embedding = model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape)))
    return seen


@pytest.mark.parametrize("config", [SAMPLED, GREEDY], ids=["sampled", "greedy"])
@pytest.mark.parametrize("kind", [*ARCHITECTURES, "gpt_neox"])
def test_tokens_of_plain_generate(kind, config):
    model = build(kind, ARCHITECTURES.get(kind) or UNSUPPORTED[kind])
    if kind == "gpt_neox":
        model.config.attention_dropout = 0.0
    plain, seen = generated(model, config), shapes_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generated(model, config, prefill()) == plain
    # The check of the first generation, and then each prompt once and the last token of every row.
    assert seen[:3] == [(5, 5), (3, 4), (5, 1)]
    assert seen.count((3, 4)) == 3 and seen.count((5, 5)) == 1
    assert "generate" not in model.__dict__


def test_lora(monkeypatch):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(build("qwen2", SIZES), lora)
    plain = generated(model, SAMPLED)
    seen = shapes_of(model)
    assert generated(model, SAMPLED, prefill()) == plain
    assert seen.count((3, 4)) == 3
    with model.disable_adapter():
        assert generated(model, SAMPLED) != plain


def test_prompts_that_all_differ_are_left_to_generate():
    model = build("qwen2", SIZES)
    call = {name: value[[0, 3]] for name, value in CALL.items()}
    plain, seen = generated(model, SAMPLED, **call), shapes_of(model)
    assert generated(model, SAMPLED, prefill(), **call) == plain
    assert seen.count((2, 4)) == 1


def test_prompts_of_one_token():
    model = build("qwen2", SIZES)
    call = {name: value[:, -1:] for name, value in CALL.items()}
    assert generated(model, SAMPLED, prefill(), **call) == generated(model, SAMPLED, **call)


def adapted(kind):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(
        build("llama", SIZES), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )


def dropping(kind):
    return build("llama", SIZES | {"attention_dropout": 0.1}).train()


REFUSED = {
    "beams": ("llama", {"num_beams": 2}, "num_beams=2"),
    "returns": ("llama", {"num_return_sequences": 2}, "num_return_sequences=2"),
    "no_cache": ("llama", {"use_cache": False}, "use_cache=False"),
    "static": ("llama", {"cache_implementation": "static"}, "cache_implementation='static'"),
    "chunks": ("llama", {"prefill_chunk_size": 2}, "prefill_chunk_size=2"),
    "sliding": ("mistral", {}, "does not keep every token"),
    "hybrid": ("gemma2", {}, "does not keep every token"),
    "virtual_tokens": (adapted, {}, "virtual tokens"),
    "dropout": (dropping, {}, "it has dropout"),
}


@pytest.mark.parametrize("asked", [True, False], ids=["asked", "default"])
@pytest.mark.parametrize("case", REFUSED)
def test_refusals_leave_generate_alone(case, asked):
    kind, options, says = REFUSED[case]
    model = kind(None) if callable(kind) else build(kind, UNSUPPORTED.get(kind, SIZES))
    config = GenerationConfig(**{**SAMPLED.to_diff_dict(), **options})
    plain = generated(model, config)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert generated(model, config, prefill(asked)) == plain
    ours = [str(item.message) for item in caught if "shared_prefill" in str(item.message)]
    assert len(ours) == asked and all(says in text for text in ours)


@pytest.mark.parametrize("engine", ["use_vllm", "use_transformers_paged"])
def test_another_engine(engine):
    with pytest.warns(UserWarning, match=f"shared_prefill is not used: {engine} generates"):
        sharing = prefill(other_engine=engine)
    model = build("llama", SIZES)
    with sharing.during(model):
        assert "generate" not in model.__dict__


def test_further_inputs_are_refused():
    assert "position_ids" in generation.no_prefill_because(build("llama", SIZES), CALL | {"position_ids": None})
    assert "no attention_mask" in generation.no_prefill_because(build("llama", SIZES), {"input_ids": None})


def test_a_cache_that_is_wrong_falls_back_loudly(monkeypatch):
    model, exact = build("qwen2", SIZES), generation.prefilled
    plain = generated(model, SAMPLED)
    monkeypatch.setattr(generation, "prefilled", lambda model, ids, mask: exact(model, ids.flip(0), mask))
    with pytest.warns(UserWarning, match="in the first generation, for the first token, its log-probabilities differ"):
        assert generated(model, SAMPLED, prefill(asked=False)) == plain


def test_a_model_that_keeps_no_cache_is_left_alone():
    """transformers drops the cache of a layer under gradient checkpointing."""
    model = build("llama", SIZES).train()
    model.gradient_checkpointing_enable()
    plain = generated(model, SAMPLED)
    assert generated(model, SAMPLED, prefill()) == plain


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_a_run_has_the_completions_of_stock(kind, tmp_path):
    def completions(extended, **options):
        seen, model = [], build(kind, ARCHITECTURES[kind])

        def reward(completion_ids, **kwargs):
            seen.append(completion_ids)
            return [float(len(ids) + sum(ids) % 5) for ids in completion_ids]

        trainer, shapes = make(extended, model, tmp_path, reward=reward, **options), shapes_of(model)
        trainer.train()
        return seen, {shape[0] for shape in shapes if shape[1] > 1}

    theirs, rows = completions(False)
    ours, shared = completions(True, shared_prefill=True, shared_prompt=False)
    assert ours == theirs and len(ours) == 3
    # Eight rows of two prompts; four to a micro-batch.
    assert rows == {8, 4} and shared == {8, 4, 2}
