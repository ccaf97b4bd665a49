"""The transformers backend with real models: same text in any batch, each distinct prompt encoded once."""

import json
import shutil
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.training_free.backends.prompts import Encoded, batches
from trl_grpo_ext.training_free.backends.sampling import inverse_cdf, uniforms
from trl_grpo_ext.training_free.backends.seeds import sampling_seed
from trl_grpo_ext.training_free.backends.transformers_backend import TransformersBackend
from trl_grpo_ext.training_free.protocol import BackendError, ChatRequest

from .tiny_models import STORIES, TEMPLATE, make_model, make_tokenizer

needs_stories = pytest.mark.skipif(not STORIES.is_dir(), reason="../shared/models/stories260K is not here")


def request(text="abc", seed=0, **given):
    return ChatRequest((("system", "be 0"), ("user", text)), seed=seed, **{"max_tokens": 12, **given})


def ask(backend, *requests):
    found = {}
    backend.complete(requests, lambda index, reply: found.setdefault(index, reply))
    assert sorted(found) == list(range(len(requests)))
    return [found[index] for index in range(len(requests))]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model(tokenizer):
    return make_model(tokenizer)


@pytest.fixture
def backend(model, tokenizer):
    return TransformersBackend(model, tokenizer)


TEXTS = ("a", "abc 123?", "0 1 2 3 4 5 6 7 8 9 a b c d e f", "abc")
MIXED = [
    request(text, seed, temperature=temperature, max_tokens=limit)
    for seed, (text, temperature, limit) in enumerate(
        (text, temperature, limit) for text in TEXTS for temperature, limit in ((1.0, 12), (0.7, 12), (0.0, 5))
    )
]


def test_text_of_a_request_is_the_same_in_any_batch(model, tokenizer):
    alone = [ask(TransformersBackend(model, tokenizer, batch_tokens=1), item)[0] for item in MIXED]
    assert len({reply.text for reply in alone}) > 6
    for budget in (1, 90, 10_000):
        backend = TransformersBackend(model, tokenizer, batch_tokens=budget)
        assert ask(backend, *MIXED) == alone
        assert ask(backend, *reversed(MIXED)) == alone[::-1]


def test_global_random_numbers_are_neither_used_nor_moved(backend):
    torch.manual_seed(1)
    first, state = ask(backend, request()), torch.get_rng_state()
    torch.manual_seed(2)
    assert ask(backend, request()) == first
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_seeds_and_prompts_draw_numbers_of_their_own(backend):
    assert len({reply.text for reply in ask(backend, *(request(seed=seed) for seed in range(8)))}) > 4
    assert not torch.equal(uniforms(request("a")), uniforms(request("b")))
    assert not torch.equal(uniforms(request(seed=1)), uniforms(request(seed=2)))
    assert torch.equal(uniforms(request(max_tokens=3)), uniforms(request(max_tokens=9))[:3])
    assert 0 <= sampling_seed(request()) < 2**31


def test_temperature_zero_is_what_generate_finds_greedily(backend, model, tokenizer):
    reply = ask(backend, request("abc", temperature=0.0, max_tokens=6))[0]
    ids = tokenizer("s be 0\nu abc\na ", add_special_tokens=False, return_tensors="pt")["input_ids"]
    found = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
    assert reply.prompt_tokens == ids.shape[1]
    assert reply.text == tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)


def test_first_tokens_follow_the_model_at_the_temperature(backend, model, tokenizer):
    """2000 draws of one token against softmax(logits / T): total variation as small as chance makes it."""
    ids = tokenizer("s be 0\nu abc\na ", add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = (model(ids).logits[0, -1].double() / 2.0).softmax(-1)
    draws = ask(backend, *(request("abc", seed, temperature=2.0, max_tokens=1) for seed in range(2000)))
    counts = Counter(reply.text for reply in draws if reply.finish_reason == "length")
    visible = {text: float(expected[token]) for text, token in tokenizer.get_vocab().items() if token > 1}
    distance = sum(abs(counts[text] / 2000 - share) for text, share in visible.items()) / 2
    assert distance < 0.06


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.floats(0.05, 5), st.floats(0, 1, exclude_max=True))
def test_drawn_token_is_possible_and_is_the_quantile(seed, temperature, uniform):
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(seed)) * 3
    logits[0, seed % 50 :: 3] = -torch.inf
    token = int(inverse_cdf(logits, torch.tensor([temperature]), torch.tensor([uniform], dtype=torch.float64)))
    shares = (logits[0].double() / torch.tensor(temperature).double()).softmax(-1)
    below = float(shares[:token].sum())
    assert shares[token] > 0 and below - 1e-9 <= uniform <= below + float(shares[token]) + 1e-9


def test_random_number_that_is_rounded_up_to_one_draws_the_last_possible_token():
    """Where there is no float64, a number just below 1 becomes 1."""
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    assert int(inverse_cdf(logits, torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64))) == 1


def test_model_settings_of_generation_are_left_out_and_left_alone(model, tokenizer):
    plain = ask(TransformersBackend(model, tokenizer), *MIXED)
    theirs = model.generation_config
    theirs.update(repetition_penalty=5.0, no_repeat_ngram_size=1, max_length=3, min_new_tokens=11)
    theirs.update(do_sample=True, temperature=0.1, top_k=1, top_p=0.2, num_beams=3)
    model.train()
    assert ask(TransformersBackend(model, tokenizer), *MIXED) == plain
    assert model.generation_config is theirs and theirs.repetition_penalty == 5.0 and model.training


def test_each_distinct_prompt_of_a_batch_is_encoded_once(model, tokenizer, monkeypatch):
    shapes, own = [], model.forward

    def forward(*args, **kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        return own(*args, **kwargs)

    requests = [request(text, seed) for text in ("a", "bcd") for seed in range(5)]
    plain = [ask(TransformersBackend(model, tokenizer, batch_tokens=1), item)[0] for item in requests]
    backend = TransformersBackend(model, tokenizer)
    monkeypatch.setattr(model, "forward", forward)
    assert ask(backend, *requests) == plain
    width = len("s be 0\nu bcd\na ")
    assert shapes[0] == (2, width - 1)
    assert set(shapes[1:]) == {(10, 1)}


def test_finish_reasons_and_counts(model, tokenizer):
    with torch.no_grad():
        model.lm_head.weight.zero_()
    backend = TransformersBackend(model, tokenizer)
    replies = ask(backend, *(request(seed=seed, max_tokens=40) for seed in range(40)))
    # Uniform over the vocabulary: some stop, some are cut.
    assert {reply.finish_reason for reply in replies} == {"stop", "length"}
    for reply in replies:
        assert (reply.completion_tokens == 40) or reply.finish_reason == "stop"
        assert len(reply.text) <= reply.completion_tokens and "<eos>" not in reply.text


def test_prompts_without_room_are_errors_and_the_rest_is_answered(backend):
    found = ask(backend, request("a" * 200), request("ab"), request("a" * 105, max_tokens=50))
    assert isinstance(found[0], BackendError) and not found[0].retryable and "128 positions" in str(found[0])
    assert found[1].completion_tokens > 0
    assert found[2].prompt_tokens + found[2].completion_tokens <= 128


def test_batch_that_does_not_fit_into_memory_is_halved(backend, model, monkeypatch):
    plain, own, sizes = ask(backend, *MIXED), model.generate, []

    def generate(input_ids, **kwargs):
        sizes.append(len(input_ids))
        if len(input_ids) > 2 or len(input_ids[0]) > 50:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return own(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model, "generate", generate)
    found = ask(backend, *MIXED, request("a" * 60))
    assert found[:-1] == plain and max(sizes) > 2
    assert isinstance(found[-1], BackendError) and "one request alone" in str(found[-1])


def test_messages_that_the_template_refuses_are_errors(model):
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
    found = ask(TransformersBackend(model, make_tokenizer(template)), request())[0]
    assert isinstance(found, BackendError) and not found.retryable and "no system" in str(found)


def test_without_a_chat_template_texts_stand_below_one_another(model):
    tokenizer = make_tokenizer(None)
    reply = ask(TransformersBackend(model, tokenizer), request("abc"))[0]
    assert reply.prompt_tokens == len("be 0\n\nabc")


def test_what_on_reply_raises_ends_the_run_after_its_batch(model, tokenizer):
    calls = []

    def on_reply(index, reply):
        calls.append(index)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TransformersBackend(model, tokenizer, batch_tokens=1).complete([request(), request("b")], on_reply)
    assert len(calls) == 1


def test_name_is_that_of_the_weights_and_the_template_and_not_of_the_folder(model, tokenizer, tmp_path):
    name = TransformersBackend(model, tokenizer).name
    for folder in (tmp_path / "a", tmp_path / "b"):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        assert TransformersBackend(str(folder)).name == name
    assert TransformersBackend(make_model(tokenizer, seed=1), tokenizer).name != name
    assert TransformersBackend(model, make_tokenizer(TEMPLATE + " ")).name != name
    assert TransformersBackend(model, tokenizer, chat_template_kwargs={"a": 1}).name != name


def test_model_behind_an_adapter(model, tokenizer):
    peft = pytest.importorskip("peft")
    plain = ask(TransformersBackend(model, tokenizer), *MIXED)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM"))
    backend = TransformersBackend(adapted, tokenizer)
    assert ask(backend, *MIXED) == plain
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    assert ask(backend, *MIXED) != plain


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (("no/such/folder",), FileNotFoundError, "no directory"),
        ((object(),), ValueError, "tokenizer is missing"),
    ],
)
def test_what_is_no_model_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        TransformersBackend(*arguments)


def test_budget_below_one_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="batch_tokens must be at least 1"):
        TransformersBackend(model, tokenizer, batch_tokens=0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=40), st.integers(1, 200))
def test_batches_hold_every_request_once_and_keep_the_budget(sizes, budget):
    items = [Encoded(i, request(max_tokens=limit), (0,) * length, limit) for i, (length, limit) in enumerate(sizes)]
    found = list(batches(items, budget))
    assert sorted(item.index for batch in found for item in batch) == list(range(len(items)))
    for batch in found:
        longest = max(len(item.ids) for item in batch) + max(item.limit for item in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget


@needs_stories
def test_real_model_tells_the_same_story_in_any_batch():
    backend, alone = TransformersBackend(STORIES), TransformersBackend(STORIES, batch_tokens=1)
    texts = ("Once upon a time", "Lily and Tom", "The cat")
    requests = [ChatRequest((("user", text),), 0.8, 24, seed) for text in texts for seed in range(3)]
    assert ask(backend, *requests) == ask(alone, *requests)
    greedy = ask(backend, ChatRequest((("user", "Once upon a time"),), 0.0, 10))[0]
    assert greedy.text.startswith(", there was a")


@needs_stories
def test_real_chat_template(tmp_path):
    tokenizers = STORIES.parent / "tokenizers" / "minimind"
    if not tokenizers.is_dir():
        pytest.skip("../shared/models/tokenizers/minimind is not here")
    shutil.copytree(tokenizers, tmp_path / "model")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizers)
    make_model(tokenizer).save_pretrained(tmp_path / "model")
    reply = ask(TransformersBackend(tmp_path / "model"), request("What is 2+2?", max_tokens=4))[0]
    text = tokenizer.apply_chat_template(
        request("What is 2+2?").as_messages(), tokenize=False, add_generation_prompt=True
    )
    assert reply.prompt_tokens == len(tokenizer(text)["input_ids"]) and "<|im_start|>" in text
    assert json.dumps(reply.text)
