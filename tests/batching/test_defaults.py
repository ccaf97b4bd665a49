"""What is on by default: the exact parts, where they are exact; what was asked for says why where it can't be."""

import warnings
from dataclasses import replace

import pytest
from datasets import Dataset

from tests.batching.models import ARCHITECTURES, SIZES, UNSUPPORTED, build, make, watched_gradients
from tests.batching.test_same_gradients import assert_equal
from tests.conformance.runs import parameters
from trl_grpo_ext import ExtendedGRPOConfig
from trl_grpo_ext.batching import Circumstances, batching_plan
from trl_grpo_ext.trainer_batches import Batching

NAMES = ("shared_prompt", "shared_prefill", "chunked_logps", "keep_groups", "trim_padding")
EVERYTHING = frozenset(NAMES)
NOW = Circumstances(
    **{"one_window": True, "own_head": True, "own_loss_fn": False, "images": False},
    **{"dropout": False, "sharded": False, "paged": False},
)
OFF_WITH = {
    "one_window": {"shared_prompt", "keep_groups"},
    "own_head": {"shared_prompt", "chunked_logps"},
    "own_loss_fn": {"trim_padding"},
    "images": EVERYTHING - {"chunked_logps"},
    "dropout": EVERYTHING - {"chunked_logps"},
    "sharded": {"shared_prompt", "chunked_logps"},
    "paged": {"shared_prompt"},
}


def on(plan):
    return {name for name in NAMES if getattr(plan, name)}


def decided(now, **options):
    return batching_plan(dict.fromkeys(NAMES) | options, now)


def test_everything_is_on_where_it_is_exact():
    assert on(decided(NOW)) == EVERYTHING and not decided(NOW).asked


@pytest.mark.parametrize("name", OFF_WITH)
def test_each_circumstance_turns_its_parts_off(name):
    now = replace(NOW, **{name: not getattr(NOW, name)})
    assert on(decided(now)) == EVERYTHING - OFF_WITH[name]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_counts(name):
    nowhere = Circumstances(False, False, True, True, True, True, True)
    assert name not in on(decided(NOW, **{name: False}))
    plan = decided(nowhere, **{name: True})
    assert plan.asked == {name}
    assert on(plan) == {name} | ({"keep_groups"} if name == "shared_prompt" else set())


SETTINGS = {
    "plain": ({}, set()),
    "bnpo": ({"loss_type": "bnpo"}, OFF_WITH["one_window"]),
    "two_iterations": ({"num_iterations": 2}, OFF_WITH["one_window"]),
    "two_windows": ({"steps_per_generation": 4}, OFF_WITH["one_window"]),
    "entropy_mask": ({"top_entropy_quantile": 0.5}, OFF_WITH["one_window"]),
    "user_loss": (
        {"loss_fn": "tests.conformance.losses_for_tests:reinforce"},
        OFF_WITH["one_window"] | OFF_WITH["own_loss_fn"],
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_of_a_trainer(case, tmp_path):
    settings, missing = SETTINGS[case]
    trainer = make(True, build("llama", SIZES), tmp_path, **settings)
    assert on(trainer.batching.plan) == EVERYTHING - missing


def test_images_and_paged_generation(tmp_path):
    trainer = make(True, build("llama", SIZES), tmp_path)
    images = Dataset.from_dict({"prompt": ["a"], "images": [None]})
    assert on(Batching.of(trainer, images).plan) == EVERYTHING - OFF_WITH["images"]
    trainer.args.use_transformers_paged = True
    assert on(Batching.of(trainer, None).plan) == EVERYTHING - OFF_WITH["paged"]


def test_an_unsupported_model_is_silent_by_default(tmp_path):
    trainer = make(True, build("gpt_neox", UNSUPPORTED["gpt_neox"]), tmp_path, max_steps=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is not used")
        trainer.train()


def test_dropout_draws_stay_those_of_stock(tmp_path):
    """With the same random numbers, which other shapes and another order of rows would draw for other elements."""

    def run(extended):
        trainer = make(extended, build("qwen2", ARCHITECTURES["qwen2"] | {"attention_dropout": 0.3}), tmp_path)
        gradients = watched_gradients(trainer)
        trainer.train()
        return trainer, gradients

    theirs, wanted = run(False)
    ours, found = run(True)
    for one, other in zip(found, wanted, strict=True):
        assert_equal(one, other)
    assert_equal(parameters(ours), parameters(theirs))
    with pytest.warns(UserWarning, match="shared_prompt is not used for .*: it has dropout"):
        make(True, ours.model, tmp_path, max_steps=1, shared_prompt=True).train()


def test_the_options_survive_a_round_trip():
    config = ExtendedGRPOConfig(output_dir="unused", use_cpu=True, bf16=False, shared_prompt=False)
    again = ExtendedGRPOConfig.from_dict(config.to_dict())
    assert [getattr(again, name) for name in NAMES] == [False, None, None, None, None]


def test_the_options_of_a_command_line():
    from transformers import HfArgumentParser

    common = ["--output_dir", "unused", "--use_cpu", "true", "--bf16", "false"]
    parse = HfArgumentParser(ExtendedGRPOConfig).parse_args_into_dataclasses
    (config,) = parse([*common, "--shared_prompt", "false", "--keep_groups", "true"])
    assert (config.shared_prompt, config.keep_groups, config.trim_padding) == (False, True, None)
