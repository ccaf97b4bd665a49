"""What does not work together is refused in one sentence, before a model is loaded; and the seams that are used."""

import inspect

import pytest
from datasets import Dataset

from tests.batching.models import SIZES, build, make
from tests.conftest import installed_line
from trl_grpo_ext import ExtendedGRPOConfig
from trl_grpo_ext.trainer_setup import check_dataset, chosen_loss

QUIET = {"output_dir": "unused", "use_cpu": True, "bf16": False}
PAGED = "use_transformers_paged" if installed_line() == "a" else "use_transformers_continuous_batching"
REFUSED = [
    ({"skip_zero_advantages": True, "beta": 0.1}, "beta=0.1"),
    ({"skip_zero_advantages": True, "clip_kind": "kl_cov"}, "clip_kind='kl_cov'"),
    ({"skip_zero_advantages": True, "top_entropy_quantile": 0.5}, "top_entropy_quantile=0.5"),
    ({"skip_entropy": True, "top_entropy_quantile": 0.5}, "top_entropy_quantile=0.5"),
    ({"skip_entropy": True, "loss_fn": "tests.conformance.losses_for_tests:surrogate"}, "loss_fn="),
    ({"shared_prompt": True, "torch_compile": True}, "torch_compile=True"),
    ({"shared_prompt": True, PAGED: True}, f"{PAGED}=True"),
]


@pytest.mark.parametrize(("settings", "says"), REFUSED)
def test_combinations(settings, says, monkeypatch):
    monkeypatch.setattr("trl_grpo_ext.config_checks.load_function", lambda name, spec: len)
    with pytest.raises(ValueError, match=f"=True does not work with {says}"):
        ExtendedGRPOConfig(**QUIET, **settings)


@pytest.mark.line_b
def test_an_entropy_bonus_needs_the_gradient_of_the_entropy():
    with pytest.raises(ValueError, match=r"shared_prompt=True does not work with entropy_coef=0\.1"):
        ExtendedGRPOConfig(**QUIET, shared_prompt=True, entropy_coef=0.1)


@pytest.mark.parametrize("name", ["keep_groups", "trim_padding", "shared_prompt", "skip_zero_advantages"])
def test_images(name):
    data = Dataset.from_dict({"prompt": ["a"], "image": [None]})
    with pytest.raises(ValueError, match=f"{name}=True works without images only"):
        check_dataset(ExtendedGRPOConfig(**QUIET, **{name: True}), data)


@pytest.mark.parametrize("name", ["skip_entropy", "skip_zero_advantages"])
def test_a_loss_function_that_is_handed_over(name):
    with pytest.raises(ValueError, match=f"{name}=True does not work with a loss_fn"):
        chosen_loss(ExtendedGRPOConfig(**QUIET, **{name: True}), lambda inputs: inputs)


def test_order_by_length_only_where_the_loss_is_the_same():
    assert ExtendedGRPOConfig(**QUIET).orders_groups
    assert not ExtendedGRPOConfig(**QUIET, loss_type="bnpo").orders_groups
    assert not ExtendedGRPOConfig(**QUIET, clip_kind="clip_cov").orders_groups
    assert not ExtendedGRPOConfig(**QUIET, top_entropy_quantile=0.5).orders_groups


def test_without_entropy_it_is_not_logged(tmp_path):
    for skip in (False, True):
        trainer = make(True, build("llama", SIZES), tmp_path, max_steps=1, skip_entropy=skip)
        trainer.train()
        assert ("entropy" in trainer.state.log_history[0]) != skip


def test_seams_of_transformers():
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    wanted = ["module", "query", "key", "value", "attention_mask"]
    assert list(inspect.signature(sdpa_attention_forward).parameters)[: len(wanted)] == wanted
    assert callable(sdpa_mask) and hasattr(AttentionInterface, "register")
    assert hasattr(AttentionMaskInterface, "register")


def test_seams_of_the_cache():
    from transformers import DynamicCache, GenerationConfig, LlamaConfig
    from transformers.cache_utils import DynamicLayer

    from trl_grpo_ext.batching.generation import _PLAIN

    cache = DynamicCache(config=LlamaConfig(num_hidden_layers=2))
    assert [type(layer) for layer in cache.layers] == [DynamicLayer] * 2
    assert callable(cache.batch_select_indices) and cache.get_seq_length() == 0
    assert all(getattr(GenerationConfig(), name) in (None, off) for name, off in _PLAIN.items())


def test_number_of_results_is_that_of_trl(tmp_path):
    from trl_grpo_ext._compat import logps_result

    assert len(logps_result(None, None)) == (2 if installed_line() == "a" else 3)
