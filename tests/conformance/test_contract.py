"""Every private or unstable symbol of TRL and transformers that the trainer touches; a failure names what is gone."""

import inspect

import pytest

from trl_grpo_ext import import_trl

trl = import_trl()

METHODS = {
    "_prepare_inputs": ["generation_batch"],
    "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["inputs"],
    "_compute_loss": ["model", "inputs"],
    "_get_train_sampler": ["dataset"],
    "_save_checkpoint": ["model", "trial"],
    "_get_output_dir": ["trial"],
    "get_high_entropy_mask": ["entropies", "mask", "threshold"],
}
ATTRIBUTES = (
    *("_metrics", "_logs", "_step", "_buffered_inputs", "beta", "epsilon_low", "epsilon_high", "num_generations"),
    *("reward_funcs", "reward_func_names", "reward_weights", "ref_model", "temperature", "loss_type", "scale_rewards"),
    *("importance_sampling_level", "max_completion_length", "top_entropy_quantile", "generation_config"),
)
TABLES = ("prompt", "completion", "rewards", "advantages")
FIELDS = (
    *("loss_type", "beta", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "scale_rewards"),
    *("steps_per_generation", "generation_batch_size", "num_iterations", "mask_truncated_completions", "use_vllm"),
)
SCORED = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch")


@pytest.mark.parametrize("name", METHODS)
def test_method(name):
    method = inspect.unwrap(getattr(trl.GRPOTrainer, name))
    assert [item for item in inspect.signature(method).parameters if item != "self"] == METHODS[name]


def test_log_probabilities():
    parameters = inspect.signature(trl.GRPOTrainer._get_per_token_logps_and_entropies).parameters
    wanted = ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"]
    assert list(parameters)[: len(wanted)] == wanted


@pytest.mark.parametrize("name", FIELDS)
def test_config_field(name):
    assert name in trl.GRPOConfig.__dataclass_fields__


@pytest.fixture(scope="module")
def trainer(model, tmp_path_factory):
    from tests.conformance.runs import stock

    return stock(model, tmp_path_factory.mktemp("contract"), beta=0.1)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attribute(name, trainer):
    assert hasattr(trainer, name)


@pytest.mark.parametrize("name", TABLES)
def test_table_of_completions(name, trainer):
    assert name in trainer._logs


def test_either_name_of_what_ends_a_completion(trainer):
    assert hasattr(trainer, "eos_token_ids") or hasattr(trainer, "eos_token_id")
    assert hasattr(trainer, "pad_token_id") or hasattr(trainer._tokenizer, "pad_token_id")


def test_sampler(trainer):
    sampler = trainer._get_train_sampler()
    assert all(hasattr(sampler, name) for name in ("batch_size", "num_samples", "mini_repeat_count", "repeat_count"))


def test_what_scoring_returns(trainer):
    trainer.model.train()
    output = trainer._generate_and_score_completions([trainer.train_dataset[0]] * 4)
    assert set(SCORED) <= output.keys() and "ref_per_token_logps" in output
    assert output["num_items_in_batch"].dim() == 0
    assert trainer._metrics["train"].keys() >= {"reward", "reward_std", "num_tokens"}


def test_states_of_callbacks_in_transformers():
    from transformers import TrainerState
    from transformers.trainer_callback import ExportableState

    assert ExportableState.state and TrainerState().stateful_callbacks == {}
