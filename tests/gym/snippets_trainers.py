"""The documents' snippets that configure and train: on a tiny Llama, with real training."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.gym.catalogue import snippet
from tests.gym.stage import first_weight, has_four, make_model, rows
from trl_grpo_ext.gym import GRPOConfig, GRPOTrainer
from trl_grpo_ext.gym.translation import gradient_config, lesson_config

SHORT = {"response_length": 6, "max_steps": 1}


@snippet("000", 239, "a tiny Llama, another one as reference, its tokenizer, 2 prompts, 1 for evaluation")
def basic_training(stage):
    model, reference = make_model(), make_model(seed=1)
    before, kept = first_weight(model), first_weight(reference)
    data = {"train_dataset": rows(2), "eval_dataset": rows(1)}
    names = stage.execute(model=model, ref_model=reference, tokenizer=stage.tokenizer, reward_fn=has_four, **data)
    trainer, args = names["trainer"], names["trainer"].args
    assert (args.num_generations, args.num_train_epochs, args.beta, args.epsilon) == (5, 3, 0.1, 0.2)
    assert (args.scale_rewards, args.temperature, args.eval_temperature) == ("group", 0.7, 0.3)
    assert trainer.state.global_step == 6
    evaluations = [entry for entry in trainer.state.log_history if "eval_reward" in entry]
    assert len(evaluations) == 3
    # To another model, so the KL is not 0 from the start.
    assert all(entry["eval_kl"] > 1e-3 for entry in evaluations)
    assert not torch.equal(before, first_weight(trainer.model)) and torch.equal(kept, first_weight(reference))
    assert (stage.folder / "trained_model" / "model.safetensors").exists()
    assert (stage.folder / "trained_model" / "tokenizer.json").exists()


@snippet("000", 274, "a folder deepseek/v3.1-terminus with a tiny Llama, 100 problems of a datasets.Dataset")
def training_free(stage):
    from datasets import Dataset

    # Few positions: its 1050 rollouts are short.
    stage.saved("deepseek/v3.1-terminus", positions=40)
    problems = Dataset.from_list(rows(120, answer="4"))
    names = stage.execute(math_problems=problems, reward_fn=has_four)
    trainer, report = names["trainer"], names["trainer"].report
    assert (trainer.config.num_generations, trainer.config.num_train_epochs) == (5, 3)
    assert (trainer.config.temperature, trainer.config.eval_temperature) == (0.7, 0.3)
    # 70 problems to learn from, 30 held out for the gate.
    assert [step["rollouts"] for step in report.steps][:3] == [350, 350, 350] and report.gated
    assert 0 < report.rewards[0] < 1
    # A model of 9 tokens can't reflect: its comparisons are pending, and nothing is learned.
    assert names["experiences"] == [] and report.status == "degraded"
    assert isinstance(names["response"], str)


@snippet("000", 328, "a tiny Llama loaded from a folder, another one as reference, parse_answer")
def custom_reward(stage):
    config = GRPOConfig(group_size=4, beta=0.1, **SHORT)
    given = {"model": stage.loaded("policy"), "ref_model": make_model(1), "config": config}
    names = stage.execute(parse_answer=lambda text: text[-1:], **given)
    trainer = names["trainer"]
    trainer.train(rows(4))
    expected = [
        names["custom_reward_fn"](query, response)
        for query, response in zip(trainer._logs["prompt"], trainer._logs["completion"], strict=True)
    ]
    assert list(trainer._logs["rewards"]["custom_reward_fn"]) == expected and len(expected) == 8


def made_configs(stage):
    made = []

    def recording(**settings):
        made.append(GRPOConfig(**settings))
        return made[-1]

    stage.execute(GRPOConfig=recording)
    return made


@snippet("000", 356, "nothing; each config is turned into the settings of both trainers")
def group_sizes(stage):
    configs = made_configs(stage)
    assert [gradient_config(config).num_generations for config in configs] == [10, 3, 5]
    assert [lesson_config(config)[0].num_generations for config in configs] == [10, 3, 5]


@snippet("000", 369, "nothing; the config is turned into the settings of both trainers")
def temperatures(stage):
    (config,) = made_configs(stage)
    for settings in (gradient_config(config), lesson_config(config)[0]):
        assert (settings.temperature, settings.eval_temperature) == (0.9, 0.1)


@snippet("000", 380, "nothing; each config is turned into GRPOTrainer's settings")
def kl_penalties(stage):
    assert [gradient_config(config).beta for config in made_configs(stage)] == [0.01, 0.5]


@snippet("000", 393, "a tiny Llama loaded from a folder, another one as reference, empty solutions")
def bitdelta(stage):
    from transformers import AutoModelForCausalLM

    import trl_grpo_ext.bitdelta as bitdelta

    model = stage.loaded("policy")
    before = first_weight(model)
    given = {"model": model, "ref_model": make_model(1), "train_dataset": rows(2, solution="")}
    with pytest.warns(UserWarning, match="ref_model is not used"):
        trainer = stage.execute(**given)["trainer"]
    report = bitdelta.inspect(f"{trainer.args.output_dir}/bitdelta")
    assert report.table.base["id"] == str(stage.folder / "policy") and report.density > 0.5
    settings = report.table.settings
    assert (settings["bits"], settings["group_size"], settings["safety_threshold"]) == (1, 128, 0.6)
    assert report.summary()["codecs"]["sign"] > 2 and report.delta_bytes < report.full_bytes
    # The snippet's last line keeps the whole model; the delta is beside it, and nearer to it than the base is.
    wanted = first_weight(AutoModelForCausalLM.from_pretrained("compressed_model"))
    found = first_weight(AutoModelForCausalLM.from_pretrained(f"{trainer.args.output_dir}/bitdelta"))
    assert not torch.equal(before, wanted) and (found - wanted).norm() < (before - wanted).norm()


class Hanzo:
    """Another product's client, played with this package's names."""

    def __init__(self, inference_mode):
        assert inference_mode == "local"
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._create))

    def train_grpo(self, base_model, dataset, config):
        self.trainer = GRPOTrainer(base_model, config=config)
        self.trainer.train(dataset)
        self.trainer.save_model(f"{base_model}-grpo")

    def _create(self, model, messages):
        from trl_grpo_ext.gym import TrainingFreeGRPO

        return TrainingFreeGRPO(model, GRPOConfig(response_length=6)).infer(messages, [])


@snippet(
    "000", 462, "a stand-in for the client Hanzo, a folder qwen3-4b with a tiny Llama, chosen and rejected answers"
)
def another_client(stage):
    module = ModuleType("hanzo")
    module.Hanzo = Hanzo
    sys.modules["hanzo"] = module
    stage.saved("qwen3-4b")
    try:
        names = stage.execute(preference_dataset=rows(2, chosen="4 4", rejected="0 0"))
    finally:
        del sys.modules["hanzo"]
    trainer = names["hanzo"].trainer
    assert trainer.state.global_step == 6 and trainer.reward_func_names == ["preference_overlap"]
    assert isinstance(names["response"], str)


@snippet("003", 159, "two tiny Llamas, a tokenizer, a GRPOConfig that holds data and reward as well")
def old_trainer(stage):
    args = GRPOConfig(group_size=4, beta=0.1, train_dataset=rows(2), reward_model=has_four, **SHORT)
    trainer = stage.execute(model=make_model(), ref_model=make_model(1), tokenizer=stage.tokenizer, args=args)[
        "trainer"
    ]
    assert trainer.state.global_step == 1 and trainer.reward_func_names == ["has_four"]
    assert trainer.ref_model is not None


def correctness_reward(prompt: str, response: str, answer: str) -> float:
    return float(answer in response)


def format_reward(completions, **kwargs):
    return [float(text.startswith("x")) for text in completions]


@snippet("003", 172, "a file config.yaml, a tiny Llama, two rewards, 2 prompts, 1 for evaluation")
def new_trainer(stage):
    (stage.folder / "config.yaml").write_text("learning_rate: 2e-5\nnum_generations: 4\n")
    rewards = {"correctness_reward": correctness_reward, "format_reward": format_reward}
    data = {"train_ds": rows(2, answer="4"), "eval_ds": rows(1, answer="4")}
    trainer = stage.execute(model=make_model(), tokenizer=stage.tokenizer, **rewards, **data)["trainer"]
    assert trainer.args.learning_rate == 2e-5 and trainer.state.global_step == 6
    assert trainer.reward_func_names == ["correctness_reward", "format_reward"]
    assert sum("eval_reward" in entry for entry in trainer.state.log_history) == 3


def reward_function(completions, **kwargs):
    return [float(len(text)) for text in completions]


@snippet("004", 77, "a folder meta-llama/Llama-3-8B-SFT with a tiny Llama, a reward of TRL, 2 prompts")
def key_arguments(stage):
    from datasets import Dataset

    stage.saved("meta-llama/Llama-3-8B-SFT")
    trainer = stage.execute(reward_function=reward_function, dataset=Dataset.from_list(rows(2)))["trainer"]
    trainer.train()
    assert (trainer.args.num_generations, trainer.args.beta) == (4, 0.05)
    assert trainer.state.global_step == 3 and torch.equal(first_weight(trainer.ref_model), first_weight(make_model()))


@snippet(
    "004",
    259,
    "a folder meta-llama/Llama-3-8B-SFT with a tiny Llama, answers; use_vllm=True needs vLLM and is refused",
)
def production_example(stage):
    from datasets import Dataset

    stage.saved("meta-llama/Llama-3-8B-SFT")
    given = {"extract_answer": lambda text: text[-1:], "math_dataset": Dataset.from_list(rows(2, answers="4"))}
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="use_vllm=True needs vLLM, which is not installed: leave it out"):
            stage.execute(**given)
    # The way out that the refusal names.
    line = "    use_vllm=True,  # Fast generation\n"
    assert line in stage.text
    trainer = stage.execute(stage.text.replace(line, ""), **given)["trainer"]
    args = trainer.args
    assert (args.num_generations, args.beta, args.learning_rate) == (8, 0.02, 5e-7)
    assert trainer.state.global_step == 6 and trainer.reward_func_names == ["math_reward"]
