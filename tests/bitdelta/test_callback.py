"""`BitDeltaCallback` on real trainers: transformers' own, and TRL's GRPOTrainer."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Trainer, TrainingArguments

from tests.bitdelta.conftest import save, tiny
from trl_grpo_ext import ExtendedGRPOConfig, ExtendedGRPOTrainer, import_trl, prepare_model
from trl_grpo_ext.bitdelta import BitDeltaCallback, BitDeltaConfig, BitDeltaError, inspect
from trl_grpo_ext.bitdelta.training import training_batches

LOSSLESS = BitDeltaConfig(codec="lossless")


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"{number}": number for number in range(90)} | {"<eos>": 90, "<unk>": 91}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    options = {"eos_token": "<eos>", "pad_token": "<eos>", "unk_token": "<unk>", "padding_side": "left"}
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=names, **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = save(tiny(torch.float32), tmp_path_factory.mktemp("start") / "base")
    tokenizer().save_pretrained(folder)
    return folder


def train(base, output, callback, **options):
    rows = [{"input_ids": [n % 90, 3, 5, 7], "labels": [n % 90, 3, 5, 7]} for n in range(8)]
    settings = {"max_steps": 2, "save_steps": 1, "learning_rate": 1e-3, "per_device_train_batch_size": 2}
    settings |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True} | options
    model = AutoModelForCausalLM.from_pretrained(base)
    arguments = TrainingArguments(output_dir=str(output), **settings)
    given = {"train_dataset": rows, "eval_dataset": rows[:2], "callbacks": [callback] if callback else None}
    trainer = Trainer(model=model, args=arguments, **given)
    trainer.train()
    return trainer


def same(folder, model):
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_at_the_end_and_at_every_save(base, tmp_path):
    callback = BitDeltaCallback(LOSSLESS, on="both")
    trainer = train(base, tmp_path, callback)
    assert callback.failure is None
    assert same(tmp_path / "bitdelta", trainer.model)
    assert same(tmp_path / "checkpoint-2" / "bitdelta", trainer.model)
    assert not same(tmp_path / "checkpoint-1" / "bitdelta", trainer.model)
    assert inspect(tmp_path / "bitdelta").table.base["id"] == str(base.resolve())


def test_without_checkpoints_the_model_is_saved_for_it(base, tmp_path):
    callback = BitDeltaCallback(LOSSLESS)
    trainer = train(base, tmp_path, callback, save_strategy="no")
    assert same(tmp_path / "bitdelta", trainer.model)
    assert [folder.name for folder in tmp_path.iterdir()] == ["bitdelta"]


def test_the_best_model_where_that_is_what_training_ends_with(base, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = train(base, tmp_path, BitDeltaCallback(LOSSLESS), eval_strategy="steps", eval_steps=1, **best)
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    assert same(tmp_path / "bitdelta", AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-1"))
    assert not same(tmp_path / "bitdelta", AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2"))


def test_training_is_the_same_with_it(base, tmp_path):
    with_it = train(base, tmp_path / "with", BitDeltaCallback(on="both")).model.state_dict()
    without = train(base, tmp_path / "without", None).model.state_dict()
    assert all(torch.equal(with_it[name], without[name]) for name in without)


def test_an_adapter_is_kept_and_the_user_told_why(base, tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(task_type="CAUSAL_LM"))
    rows = [{"input_ids": [1, 3, 5, 7], "labels": [1, 3, 5, 7]} for _ in range(4)]
    settings = {"max_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    arguments = TrainingArguments(output_dir=str(tmp_path), **settings)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[BitDeltaCallback()])
    with pytest.warns(UserWarning, match="The adapter is kept; no delta is made"):
        trainer.train()
    assert not (tmp_path / "bitdelta").exists()


def test_a_base_that_can_not_be_read_is_refused_before_training(base, tmp_path):
    with pytest.raises(BitDeltaError, match="is no folder here"):
        train(base, tmp_path, BitDeltaCallback(base=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="on must be one of"):
        BitDeltaCallback(on="always")


def test_a_failure_is_a_warning_and_the_run_goes_on(base, tmp_path):
    other = save(tiny(torch.float32, num_hidden_layers=1), tmp_path / "other")
    with torch.no_grad():
        broken = AutoModelForCausalLM.from_pretrained(other)
        broken.lm_head.weight[0, 0] = float("inf")
    save(broken, other)
    callback = BitDeltaCallback(base=other)
    with pytest.warns(UserWarning, match="lm_head.weight: the base tensor holds NaN or infinity"):
        trainer = train(base, tmp_path / "run", callback)
    assert trainer.state.global_step == 2 and callback.failure and callback.report is None
    assert not (tmp_path / "run" / "bitdelta").exists()


@pytest.mark.parametrize("chat", [False, True])
def test_grpo_fits_scales_to_its_own_prompts(chat, base, tmp_path):
    trl = import_trl()

    processing = AutoTokenizer.from_pretrained(base)
    processing.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    texts = [f"{number} 3 5" for number in range(8)]
    prompts = [[{"role": "user", "content": text}] for text in texts] if chat else texts
    settings = {"max_steps": 2, "save_steps": 2, "num_generations": 2, "per_device_train_batch_size": 2}
    settings |= {
        "max_completion_length": 4,
        "learning_rate": 1e-2,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
    }
    callback = BitDeltaCallback()
    trainer = trl.GRPOTrainer(
        model=prepare_model(AutoModelForCausalLM.from_pretrained(base)),
        args=trl.GRPOConfig(output_dir=str(tmp_path), disable_tqdm=True, **settings),
        reward_funcs=lambda completions, **_: [float(index % 2) for index in range(len(completions))],
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=processing,
        callbacks=[callback],
    )
    trainer.train()
    assert callback.failure is None
    assert "activation" in callback.report.summary()["fits"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "bitdelta")
    assert type(loaded) is type(trainer.model)
    assert AutoTokenizer.from_pretrained(tmp_path / "bitdelta").eos_token == "<eos>"


def test_supervised_rows_are_what_scales_are_fitted_to(base, tmp_path):
    callback = BitDeltaCallback()
    train(base, tmp_path, callback)
    assert callback.failure is None
    assert set(callback.report.summary()["fits"]) == {"activation"}


def test_rows_that_scales_are_fitted_to(base, tmp_path):
    trainer = train(base, tmp_path, None)
    (batch,) = training_batches(trainer)
    assert batch["input_ids"].tolist() == [row["input_ids"] for row in trainer.train_dataset]
    trainer.train_dataset = [{"input_ids": [1, 2]}, {"input_ids": [3]}]
    (batch,) = training_batches(trainer)
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    for unknown in (None, iter([]), [], [{"text": "1"}], [{"input_ids": [1], "images": ["one"]}], [torch.ones(2)]):
        trainer.train_dataset = unknown
        assert training_batches(trainer) == []


def test_our_trainer_compresses_what_it_has_now(base, tmp_path):
    """Also before training: a delta of nothing."""
    peft = pytest.importorskip("peft")
    settings = {"num_generations": 2, "per_device_train_batch_size": 2, "max_completion_length": 4, "max_steps": 1}
    settings |= {"learning_rate": 1e-2, "report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True}
    options = {
        "args": ExtendedGRPOConfig(output_dir=str(tmp_path / "run"), save_strategy="no", **settings),
        "reward_funcs": lambda completions, **_: [float(index % 2) for index in range(len(completions))],
        "train_dataset": Dataset.from_list([{"prompt": f"{number} 3 5"} for number in range(8)]),
        "processing_class": AutoTokenizer.from_pretrained(base),
    }
    trainer = ExtendedGRPOTrainer(model=AutoModelForCausalLM.from_pretrained(base), **options)
    assert trainer.compress_deltas().summary()["codecs"] == {"none": len(trainer.model.state_dict())}
    trainer.train()
    config = BitDeltaConfig(bits=1, group_size=128, safety_threshold=0.6)
    report = trainer.compress_deltas(config)
    assert report.table.settings == config.to_dict() and "activation" in report.summary()["fits"]
    assert trainer.compress_deltas(LOSSLESS, tmp_path / "exact").lossless
    assert same(tmp_path / "exact", trainer.model)
    assert [folder.name for folder in (tmp_path / "run").iterdir()] == ["bitdelta"]
    with pytest.raises(BitDeltaError, match="is no folder here"):
        trainer.compress_deltas(base=tmp_path / "nowhere")
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(task_type="CAUSAL_LM"))
    with pytest.raises(BitDeltaError, match="The adapter is kept; no delta is made"):
        ExtendedGRPOTrainer(model=adapted, **options).compress_deltas()
