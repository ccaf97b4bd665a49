"""What a given reference relies on in TRL and transformers; run with transformers 4.57.6 as well."""

from importlib import import_module

import pytest
import torch

from tests.gym.stage import first_weight, has_four, make_model, make_tokenizer, rows
from trl_grpo_ext._compat import given_reference, import_trl
from trl_grpo_ext.gym import GRPOConfig, GRPOTrainer


def test_names_by_which_trl_loads_its_reference():
    import_trl()
    known = vars(import_module("trl.trainer.grpo_trainer"))
    assert "create_model_from_path" in known or {"AutoConfig", "transformers"} <= known.keys()


def test_names_by_which_precision_is_chosen():
    utils = import_module("transformers.utils")
    assert callable(utils.is_torch_bf16_gpu_available) and callable(utils.is_torch_xla_available)


def test_a_reference_that_was_not_asked_for_is_an_error_and_names_are_put_back():
    import_trl()
    module = import_module("trl.trainer.grpo_trainer")
    before = dict(vars(module))
    with pytest.raises(RuntimeError, match="loaded 0 models by name, and not the reference"), given_reference(1, 2):
        pass
    assert vars(module) == before


@pytest.mark.parametrize("by_name", [False, True], ids=["object", "name"])
def test_a_given_reference_is_the_trainers(tmp_path, monkeypatch, by_name):
    monkeypatch.chdir(tmp_path)
    model, reference, tokenizer = make_model(), make_model(1), make_tokenizer()
    model.save_pretrained("policy")
    tokenizer.save_pretrained("policy")
    config = GRPOConfig(group_size=4, beta=0.1, response_length=4, max_steps=1)
    policy = "policy" if by_name else model
    trainer = GRPOTrainer(policy, reference, config, has_four, tokenizer=tokenizer, train_dataset=rows(2))
    trainer.train()
    assert torch.equal(first_weight(trainer.ref_model), first_weight(reference))
    assert not torch.equal(first_weight(trainer.model), first_weight(reference))
