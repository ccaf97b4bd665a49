"""The trainers' arguments, data and rewards: what is honoured, and what is refused in one sentence."""

import pytest
import torch

from tests.gym.stage import first_weight, has_four, make_model, make_tokenizer, rows
from tests.training_free.lesson_world import World, solved
from tests.training_free.runs import GATE, learner
from tests.training_free.runs import train as train_in_world
from trl_grpo_ext.gym import GRPOConfig, GRPOTrainer, TrainingFreeGRPO
from trl_grpo_ext.gym.rows import trl_dataset, trl_rewards

REPLIES = {"response_length": 6, "max_steps": 1}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A model and a tokenizer, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return make_model(), make_tokenizer()


def trainer_of(tiny, **settings):
    return GRPOTrainer(tiny[0], tokenizer=tiny[1], config=GRPOConfig(**REPLIES | settings), reward_model=has_four)


def test_a_reference_that_cannot_be_used_is_refused(tiny):
    model, tokenizer = tiny
    with pytest.raises(ValueError, match="ref_model is the model that is trained"):
        GRPOTrainer(model, model, tokenizer=tokenizer)
    with pytest.raises(TypeError, match="ref_model must be a loaded model of transformers, not function"):
        GRPOTrainer(model, has_four, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="ref_model does not work with an adapter"):
        GRPOTrainer(model, make_model(1), tokenizer=tokenizer, peft_config=object())


def test_two_names_of_one_argument_are_refused(tiny):
    with pytest.raises(ValueError, match="config and args are two names of one argument"):
        GRPOTrainer(tiny[0], config=GRPOConfig(), args=GRPOConfig())
    with pytest.raises(TypeError, match=r"config must be a GRPOConfig of trl_grpo_ext\.gym or of TRL, not dict"):
        GRPOTrainer(tiny[0], config={"group_size": 4})


def test_data_is_needed_once(tiny):
    trainer = trainer_of(tiny, group_size=4)
    with pytest.raises(AttributeError, match="GRPOTrainer has no 'state' before it has data"):
        trainer.state  # noqa: B018
    with pytest.raises(ValueError, match="there is no training data"):
        trainer.train()
    with pytest.raises(ValueError, match="to resume, use resume_from_checkpoint"):
        trainer.train("checkpoint-1")
    trainer.train(rows(2))
    with pytest.raises(ValueError, match="make a new GRPOTrainer for other data"):
        trainer.train(rows(3))
    assert trainer.state.global_step == 1


def test_data_in_any_form():
    from datasets import Dataset

    given = rows(3, answer="4")
    columns = {name: [row[name] for row in given] for name in given[0]}
    renamed = [{"question": row["prompt"], "answer": row["answer"]} for row in given]
    for data in (given, columns, Dataset.from_list(given), Dataset.from_list(given)[:3], renamed):
        assert trl_dataset(data, "train_dataset").to_list() == trl_dataset(given, "train_dataset").to_list()
    with pytest.raises(ValueError, match=r"train_dataset needs a column prompt, .*; it has text"):
        trl_dataset([{"text": "x"}], "train_dataset")
    with pytest.raises(ValueError, match="of one length"):
        trl_dataset({"prompt": ["x"], "answer": []}, "train_dataset")


def test_rewards_in_any_form():
    from trl_grpo_ext import SelfCertainty
    from trl_grpo_ext.rewards import ScalarReward

    def batches(completions, **kwargs):
        return [0.0] * len(completions)

    def with_answer(prompt: str, response: str, answer: str) -> float:
        return float(answer in response)

    by_row = trl_rewards(with_answer, ["prompt", "answer"])[0]
    assert isinstance(by_row, ScalarReward) and by_row.__name__ == "with_answer"
    assert trl_rewards([batches, "exact_match"], ["prompt", "solution"])[0] is batches
    certain = SelfCertainty()
    assert trl_rewards(certain, ["prompt"]) == [certain]
    assert trl_rewards("some/reward-model", ["prompt"]) == ["some/reward-model"]
    assert trl_rewards(None, ["prompt", "chosen", "rejected"])[0].__name__ == "preference_overlap"
    with pytest.raises(ValueError, match="there is no reward"):
        trl_rewards(None, ["prompt"])
    with pytest.raises(ValueError, match="Unknown reward 'exact_macth', did you mean"):
        trl_rewards("exact_macth", ["prompt"])
    with pytest.raises(ValueError, match="answer"):
        trl_rewards(with_answer, ["prompt"])


def test_trls_own_config_is_taken(tiny):
    from trl_grpo_ext import config_kwargs, import_trl

    args = import_trl().GRPOConfig(
        **config_kwargs(
            output_dir="out", use_cpu=True, bf16=False, num_generations=4, max_completion_length=4, max_steps=1
        )
    )
    trainer = GRPOTrainer(tiny[0], args=args, reward_funcs=has_four, train_dataset=rows(2), processing_class=tiny[1])
    trainer.train()
    assert trainer.state.global_step == 1 and trainer.args.num_generations == 4


def test_a_given_reference_is_trls_own_but_for_where_it_comes_from(tiny):
    """The same steps as with the reference that TRL loads from the policy's folder."""
    tiny[0].save_pretrained("policy")
    tiny[1].save_pretrained("policy")
    weights = []
    for reference in (None, make_model()):
        torch.manual_seed(0)
        config = GRPOConfig(group_size=4, kl_coef=0.5, lr=1e-2, response_length=6, max_steps=3)
        trainer = GRPOTrainer("policy", reference, config, has_four, train_dataset=rows(4))
        trainer.train()
        assert torch.equal(first_weight(trainer.ref_model), first_weight(tiny[0]))
        weights.append(first_weight(trainer.model))
    assert torch.equal(*weights) and not torch.equal(weights[0], first_weight(tiny[0]))


def test_training_free_learns_as_without_the_names():
    world = World(seed=1)
    theirs = learner(world)
    expected = train_in_world(theirs, world)
    policy, reflector = world.backends()
    config = GRPOConfig(group_size=5, max_epochs=3, batch_size=12, gate=GATE, seed=world.seed)
    ours = TrainingFreeGRPO(policy, config, reflector=reflector)
    found = ours.train(dataset=world.rows(12), reward_model=solved, held_out=world.rows(80, 1000))
    assert [item.text for item in found] == [item.text for item in expected] != []
    assert ours.report.fingerprint == theirs.report.fingerprint


def test_training_free_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match="OpenAIBackend for one that an endpoint serves"):
        TrainingFreeGRPO("deepseek/v3.1-terminus", GRPOConfig(group_size=5))
    policy, _ = World().backends()
    with pytest.raises(ValueError, match=r"beta \(kl_coef\) belongs to training with a gradient"):
        TrainingFreeGRPO(policy, GRPOConfig(kl_coef=0.1))
    with pytest.raises(ValueError, match="train_dataset in the config is for GRPOTrainer"):
        TrainingFreeGRPO(policy, GRPOConfig(train_dataset=[]))
    with pytest.raises(ValueError, match=r"temperature.* must be a finite number of at least 0"):
        TrainingFreeGRPO(policy, GRPOConfig(temperature_train=-1.0))
    run = TrainingFreeGRPO(policy, GRPOConfig(output_dir=str(tmp_path / "run")))
    run.close()
    assert (tmp_path / "run" / "library.db").exists()
