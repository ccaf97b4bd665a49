"""A tiny tokenizer and model, made here, and training runs of the stock trainer on them. The fixture `make_tiny_trainer` is the usual way in."""

from trl_grpo_ext import check_reward_columns, config_kwargs, import_trl, prepare_model

GROUP = 4
PROMPTS = ("say ", "1 ", "7 ", "# ")
CHARACTERS = "17 #.say"
CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %} {% endif %}"


def make_tokenizer():
    """One token per character."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<pad>", "<eos>", *CHARACTERS]
    tokenizer = Tokenizer(WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_model(tokenizer):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def dataset(columns, conversational=False):
    from datasets import Dataset

    def prompt(text):
        return [{"role": "user", "content": text.strip()}] if conversational else text

    return Dataset.from_list([{"prompt": prompt(PROMPTS[i % 4]), **columns} for i in range(32)])


def make_trainer(model, tokenizer, tmp_path, rewards, rows, steps=3, callbacks=None, eval_rows=None, **settings):
    """The stock GRPOTrainer; `rows` and `eval_rows` are data sets or lists of rows."""
    from datasets import Dataset

    trl = import_trl()
    rows, eval_rows = (Dataset.from_list(given) if isinstance(given, list) else given for given in (rows, eval_rows))
    for reward in rewards:
        # A path is a reward model.
        if not isinstance(reward, str):
            check_reward_columns(reward, rows.column_names)
    defaults = {
        "output_dir": str(tmp_path / "out"),
        "max_steps": steps,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 16,
        "num_generations": GROUP,
        "max_completion_length": 2,
        "beta": 0.0,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
    }
    return trl.GRPOTrainer(
        model=prepare_model(model),
        reward_funcs=list(rewards),
        args=trl.GRPOConfig(**config_kwargs(**defaults | settings)),
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def texts_of(trainer):
    """The completions of the last generation, as texts."""
    return [row if isinstance(row, str) else row[-1]["content"] for row in trainer._logs["completion"]]
