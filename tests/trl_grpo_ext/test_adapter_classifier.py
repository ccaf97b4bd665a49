"""Sequence-classification reward models, against TRL's own use of the same model."""

import pickle
from pathlib import Path

import pytest
from adapter_runs import dataset

from trl_grpo_ext.rewards.adapters import ClassifierReward, RewardError


def build(tokenizer, labels=1):
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForSequenceClassification(LlamaConfig(vocab_size=len(tokenizer), num_labels=labels, **sizes))


@pytest.fixture
def saved(tiny_tokenizer, tmp_path):
    folder = tmp_path / "judge"
    build(tiny_tokenizer).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize("loaded", [False, True])
def test_rewards_are_those_of_trl(saved, make_tiny_trainer, conversational, loaded):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(saved) if loaded else Path(saved)
    reward = ClassifierReward(model, batch_size=3, device="cpu", name="ours")
    trainer = make_tiny_trainer([reward, saved], dataset({}, conversational))
    trainer.train()
    ours, theirs = list(trainer._logs["rewards"]["ours"]), list(trainer._logs["rewards"][trainer.reward_func_names[1]])
    assert trainer.state.global_step == 3
    assert len(set(ours)) > 1
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_plain_prompt_counts_and_a_pickle_holds_only_the_path(saved):
    reward = ClassifierReward(saved, device="cpu")
    assert reward.__name__ == "judge"
    injected = reward(["say say "], ["7"], plain_prompt=["1 "])
    assert injected == reward(["1 "], ["7"]) != reward(["say say "], ["7"])
    # The pickle of the loaded tokenizer is small, that of the model is not.
    assert pickle.loads(pickle.dumps(reward)).model is None
    assert pickle.loads(pickle.dumps(reward))(["1 "], ["7"]) == injected


def test_failing_forward_pass_follows_the_policy(tiny_tokenizer):
    model = build(tiny_tokenizer)
    whole = model.forward

    def forward(input_ids, **kwargs):
        if input_ids.shape[1] > 3:
            raise RuntimeError("out of memory")
        return whole(input_ids=input_ids, **kwargs)

    model.forward = forward
    rewards = ClassifierReward(model, tiny_tokenizer, batch_size=1, on_error="skip", name="r")(
        ["1"] * 2, ["7", "7777"]
    )
    assert isinstance(rewards[0], float)
    assert rewards[1] is None
    with pytest.raises(RewardError, match=r"row 1 of 2.*out of memory"):
        ClassifierReward(model, tiny_tokenizer, batch_size=1, name="r")(["1"] * 2, ["7", "7777"])


def test_other_models_and_settings_are_refused(tiny_tokenizer):
    with pytest.raises(ValueError, match="has 2 labels; a reward model has 1"):
        ClassifierReward(build(tiny_tokenizer, labels=2), tiny_tokenizer, name="two", on_error="skip")(["1"], ["7"])
    with pytest.raises(ValueError, match="batch_size of reward 'x' must be 1 or more"):
        ClassifierReward("some/x", batch_size=0)
