"""The library's logits processors in `model.generate`: what they let through, and that no rollout of a trainer uses them."""

import copy

import pytest
import torch
from transformers import LogitsProcessor

from tests.conformance.runs import build_model, stock, tokenizer
from trl_grpo_ext import ExtendedGRPOConfig
from trl_grpo_ext.experience import Episode, ExperienceLibrary, Lesson, PatternConstraint, SuccessTokenBias


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def characters():
    return tokenizer()


@pytest.fixture
def model(folder):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def library():
    """Two families of prompts without a word in common."""
    with ExperienceLibrary(seed=0) as opened:
        opened.add(Episode("7 1 a", "77", 1.0), Episode("7 s a", "7.1", 0.5), Episode("7 y", "1111", -1.0))
        opened.add(Episode("say ssa", "yas", 2.0), Lesson("a lesson"))
        yield opened


PROMPTS = ["7 17", "say yes yas saa"]


def batch(characters, prompts=PROMPTS):
    return characters(list(prompts), return_tensors="pt", padding=True, padding_side="left")


def generate(model, characters, processors, prompts=PROMPTS, **options):
    given = batch(characters, prompts)
    options = {"max_new_tokens": 8, "do_sample": False} | options
    found = model.generate(**given, logits_processor=processors, **options)
    return found[:, given["input_ids"].shape[1] :]


def texts(characters, rows):
    return [characters.decode(row, skip_special_tokens=True) for row in rows.tolist()]


def width(characters, prompts=PROMPTS):
    return batch(characters, prompts)["input_ids"].shape[1]


class TestBias:
    def test_the_equation(self, library, characters):
        processor = SuccessTokenBias(library, characters, PROMPTS, strength=2.0, smoothing=0.5)
        scores = torch.randn(4, len(characters))
        added = processor(torch.zeros(4, 3, dtype=torch.long), scores) - scores
        # "77" with advantage 1 and "71" (the point does not count) with 0.5; "1111" was worse than its group.
        seven, one = (1.0 + 0.5 * 0.5) / 1.5, 0.5 * 0.5 / 1.5
        smoothed = torch.log1p(torch.tensor([seven, one]) / 0.5)
        expected = torch.zeros(len(characters))
        expected[characters.convert_tokens_to_ids(["7", "1"])] = 2.0 * smoothed / smoothed[0]
        torch.testing.assert_close(added[:2], expected.expand(2, -1), atol=1e-6, rtol=0)
        other = torch.zeros(len(characters))
        other[characters.convert_tokens_to_ids(["y", "a", "s"])] = 2.0
        torch.testing.assert_close(added[2:], other.expand(2, -1), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
    def test_each_row_leans_towards_its_own_prompts_episodes(self, model, library, characters, options):
        processor = SuccessTokenBias(library, characters, PROMPTS, strength=50.0)
        rows = texts(characters, generate(model, characters, [processor], **options))
        half = len(rows) // 2
        # Beams beside the best one have to differ from it somewhere.
        assert all(set(text) <= set("71") and "7" in text for text in rows[:half]), rows
        assert all(set(text) <= set("yas") for text in rows[half:]), rows

    def test_several_samples_of_a_prompt(self, model, library, characters):
        processor = SuccessTokenBias(library, characters, PROMPTS, strength=50.0)
        rows = generate(model, characters, [processor], do_sample=True, num_return_sequences=5)
        found = texts(characters, rows)
        assert [set(text) <= {"7"} for text in found] == [True] * 5 + [False] * 5

    def test_a_padded_batch_is_its_rows(self, model, library, characters):
        processors = [SuccessTokenBias(library, characters, PROMPTS, strength=1.5)]
        together = texts(characters, generate(model, characters, processors))
        alone = [
            texts(
                characters,
                generate(model, characters, [SuccessTokenBias(library, characters, [text], strength=1.5)], [text]),
            )[0]
            for text in PROMPTS
        ]
        assert together == alone

    def test_strength_zero_and_an_empty_library_change_nothing(self, model, library, characters):
        plain = generate(model, characters, [])
        for held, strength in ((library, 0.0), (ExperienceLibrary(), 50.0)):
            processor = SuccessTokenBias(held, characters, PROMPTS, strength=strength)
            assert torch.equal(generate(model, characters, [processor]), plain)

    def test_the_same_prompt_only_when_asked(self, library, characters):
        assert SuccessTokenBias(library, characters, ["say ssa"]).biases == [{}]
        assert SuccessTokenBias(library, characters, ["say ssa"], same_prompt=True).biases != [{}]

    def test_the_filter(self, library, characters):
        library.add(Episode("7 ay", "a", 1.0, metadata={"domain": "letters"}))
        processor = SuccessTokenBias(library, characters, ["7 17"], where={"domain": "letters"})
        assert list(processor.biases[0]) == characters.convert_tokens_to_ids(["a"])


class Force(LogitsProcessor):
    """Another processor, which wants one token."""

    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.token] = 0.0
        return forced


class TestConstraint:
    @pytest.mark.parametrize(
        "options",
        [
            {"do_sample": True, "temperature": 3.0, "num_return_sequences": 16},
            {"num_beams": 4, "num_return_sequences": 2},
            {"do_sample": True, "top_k": 2, "top_p": 0.5},
            {},
        ],
        ids=str,
    )
    def test_every_completion_is_a_response_and_ends(self, model, library, characters, options):
        processor = PatternConstraint(library, characters, PROMPTS, width(characters))
        rows = generate(model, characters, [processor], **options)
        found = texts(characters, rows)
        half = len(found) // 2
        assert set(found[:half]) <= {"77", "7.1"} and set(found[half:]) == {"yas"}
        if half == 16:
            assert set(found[:half]) == {"77", "7.1"}
        assert all(characters.eos_token_id in row for row in rows.tolist())

    def test_a_response_that_goes_on_from_another(self, model, characters):
        with ExperienceLibrary() as library:
            library.add(Episode("7 1 a", "1", 1.0), Episode("7 s a", "17", 1.0))
            processor = PatternConstraint(library, characters, ["7 17"], 4)
            options = {"do_sample": True, "num_return_sequences": 32, "temperature": 3.0}
            found = texts(characters, generate(model, characters, [processor], ["7 17"], **options))
            assert set(found) == {"1", "17"}

    def test_no_episode(self, model, library, characters):
        prompts = ["7 17", "....", "7 1s"]
        plain = generate(model, characters, [], prompts)
        free = generate(model, characters, [PatternConstraint(library, characters, prompts, 4)], prompts)
        assert texts(characters, free)[0] in ("77", "7.1")
        shorter = min(free.shape[1], plain.shape[1])
        assert torch.equal(free[1, :shorter], plain[1, :shorter])
        stop = PatternConstraint(library, characters, prompts, 4, no_pattern="stop")
        ended = generate(model, characters, [stop], prompts)
        assert texts(characters, ended)[1] == "" and ended[1, 0] == characters.eos_token_id
        with pytest.raises(ValueError, match=r"no response for the prompt '\.\.\.\.'"):
            PatternConstraint(library, characters, prompts, 4, no_pattern="error")

    @pytest.mark.parametrize("place", ["before", "behind"])
    def test_another_processor_wants_something_else(self, model, library, characters, place):
        prompts, force = ["7 17"], Force(characters.convert_tokens_to_ids("y"))

        def run(no_pattern):
            ours = PatternConstraint(library, characters, prompts, 4, no_pattern=no_pattern)
            pair = [force, ours] if place == "before" else [ours, force]
            return texts(characters, generate(model, characters, pair, prompts, max_new_tokens=4))

        assert run("free") == ["yyyy"]
        # Behind it the other has the last word.
        assert run("stop") == [""] if place == "before" else ["yyyy"]
        with pytest.raises(ValueError, match="no response of the library goes on from here"):
            run("error")

    def test_more_tokens_are_demanded_than_the_responses_have(self, model, library, characters):
        options = {"min_new_tokens": 6, "max_new_tokens": 8}
        free = PatternConstraint(library, characters, PROMPTS, width(characters))
        rows = generate(model, characters, [free], **options)
        assert all(text.startswith(("77", "7.1", "yas")) for text in texts(characters, rows))
        assert characters.eos_token_id not in rows[:, :6]
        stop = PatternConstraint(library, characters, PROMPTS, width(characters), no_pattern="stop")
        rows = generate(model, characters, [stop], **options)
        assert set(texts(characters, rows)) <= {"77", "7.1", "yas"}

    def test_stop_tokens_of_the_model(self, model, library, characters):
        own = characters.convert_tokens_to_ids("#")
        processor = PatternConstraint(library, characters, PROMPTS, width(characters), stop_token_ids=[own])
        found = texts(characters, generate(model, characters, [processor], eos_token_id=own))
        assert all(text.rstrip("#") in ("77", "7.1", "yas") and "#" in text for text in found)

    def test_both_together(self, model, library, characters):
        both = [
            SuccessTokenBias(library, characters, PROMPTS, strength=50.0),
            PatternConstraint(library, characters, PROMPTS, width(characters)),
        ]
        assert texts(characters, generate(model, characters, both)) == ["77", "yas"]


class TestRefusals:
    @pytest.mark.parametrize("kind", [SuccessTokenBias, lambda *args: PatternConstraint(*args, 9)])
    @pytest.mark.parametrize(
        ("prompts", "error"), [("7 17", TypeError), ([7], TypeError), ([], ValueError)], ids=["text", "number", "none"]
    )
    def test_prompts(self, library, characters, kind, prompts, error):
        with pytest.raises(error, match="prompt"):
            kind(library, characters, prompts)

    @pytest.mark.parametrize(
        "options",
        [{"strength": -1.0}, {"strength": float("nan")}, {"smoothing": 0.0}, {"episodes": 0}, {"episodes": 1.5}],
        ids=str,
    )
    def test_values_of_the_bias(self, library, characters, options):
        with pytest.raises(ValueError, match=next(iter(options)).removesuffix("s")):
            SuccessTokenBias(library, characters, PROMPTS, **options)

    def test_values_of_the_constraint(self, library, characters):
        with pytest.raises(ValueError, match="no_pattern must be one of free, stop, error: 'never'"):
            PatternConstraint(library, characters, PROMPTS, 4, no_pattern="never")
        without = copy.deepcopy(characters)
        without.eos_token = None
        with pytest.raises(ValueError, match="the tokenizer has no eos token; give stop_token_ids"):
            PatternConstraint(library, without, PROMPTS, 4)

    def test_a_batch_of_another_size(self, model, library, characters):
        processor = SuccessTokenBias(library, characters, PROMPTS)
        with pytest.raises(ValueError, match="made for 2 prompts and is called with 1 rows"):
            generate(model, characters, [processor], ["7 17"])

    def test_a_prompt_length_that_does_not_fit(self, model, library, characters):
        with pytest.raises(ValueError, match="prompt_length=99 does not fit a batch of 15 tokens"):
            generate(model, characters, [PatternConstraint(library, characters, PROMPTS, 99)])


def with_processors(trainer, make):
    """What somebody would do to bend rollouts: `generate` gets the processors, one set per batch."""
    owner = trainer.model
    generate = owner.generate

    def bent(*args, **kwargs):
        prompts = ["7 17"] * len(kwargs["input_ids"])
        return generate(*args, **kwargs, logits_processor=make(prompts, kwargs["input_ids"].shape[1]))

    owner.generate = bent


@pytest.mark.parametrize("kind", ["SuccessTokenBias", "PatternConstraint"])
def test_training_rollouts_are_refused_and_evaluation_is_not(folder, library, characters, tmp_path, kind):
    def make(prompts, length):
        if kind == "SuccessTokenBias":
            return [SuccessTokenBias(library, characters, prompts, strength=50.0)]
        return [PatternConstraint(library, characters, prompts, length)]

    seen = []

    def reward(completions, **kwargs):
        seen.extend(completions)
        return [float(len(text)) for text in completions]

    trainer = stock(folder, tmp_path, reward=reward, max_steps=1)
    with_processors(trainer, make)
    trainer.evaluate()
    assert seen and all(set(text) <= set("71.") for text in seen)
    with pytest.raises(RuntimeError, match=f"{kind} is for inference only: .* off-policy"):
        trainer.train()


def test_a_logits_processor_among_the_generation_options_is_refused(library, characters, tmp_path):
    """TRL would put it into a GenerationConfig, where nobody looks for it."""
    processors = [SuccessTokenBias(library, characters, PROMPTS)]
    with pytest.raises(ValueError, match="generation_kwargs: rollouts that a logits_processor bends are off-policy"):
        ExtendedGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, generation_kwargs={"logits_processor": processors})
