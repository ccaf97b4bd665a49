"""A tiny model of words, made here, and runs of ExtendedGRPOTrainer with experiences in the prompts."""

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trl_grpo_ext import ExtendedGRPOConfig, ExtendedGRPOTrainer, config_kwargs, import_trl, prepare_model
from trl_grpo_ext.experience import ExperienceLibrary, Lesson
from trl_grpo_ext.experience.prompting import LESSONS_HEADER
from trl_grpo_ext.off_policy import left_padded

GROUP = 4
WORDS = f"0 1 2 3 4 5 6 7 8 9 what is {LESSONS_HEADER} [G0]. [G1]. shift please user: sys: Understood. Q: A:".split()
PROMPTS = [f"what is {digit}" for digit in range(10)]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ 'sys: ' if m['role'] == 'system' else 'user: ' }}{{ m['content'] }} {% endfor %}"
)
DEFAULTS = {
    "max_steps": 1,
    "per_device_train_batch_size": 16,
    "num_generations": GROUP,
    "max_completion_length": 3,
    "loss_type": "grpo",
    "learning_rate": 1e-2,
    "optim": "sgd",
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": [],
    "disable_tqdm": True,
}


def make_tokenizer():
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(["<pad>", "<eos>", "<s>", *WORDS]))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece(prefix="##")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<s>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_model(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(make_tokenizer()), initializer_range=0.3, **sizes, **ids))
    return prepare_model(model)


def library_of(*texts):
    library = ExperienceLibrary()
    library.add(*[Lesson(text) for text in texts])
    return library


def rows(count=40, conversational=False, **columns):
    def prompt(text):
        return [{"role": "user", "content": text}] if conversational else text

    found = [{"prompt": prompt(PROMPTS[i % 10])} for i in range(count)]
    return Dataset.from_list([row | {name: make(i) for name, make in columns.items()} for i, row in enumerate(found)])


def make_trainer(folder, reward, data=None, model=None, callbacks=None, stock=False, **settings):
    """ExtendedGRPOTrainer, or TRL's, on the tiny model."""
    trl = import_trl()
    classes = (trl.GRPOConfig, trl.GRPOTrainer) if stock else (ExtendedGRPOConfig, ExtendedGRPOTrainer)
    options = settings.pop("options", {})
    return classes[1](
        model=model or make_model(),
        reward_funcs=reward,
        args=classes[0](output_dir=str(folder), **config_kwargs_of(classes[0], DEFAULTS | settings)),
        train_dataset=rows() if data is None else data,
        processing_class=make_tokenizer(),
        callbacks=callbacks,
        **options,
    )


def config_kwargs_of(config, settings):
    """TRL's own config must know every name."""
    return config_kwargs(**settings) if config is not ExtendedGRPOConfig else settings


def watch(trainer):
    """Record what is trained on, before TRL shuffles it."""
    seen, generate = [], trainer._generate_and_score_completions

    def watched(inputs):
        output = generate(inputs)
        if not trainer.is_redrawing:
            seen.append((inputs, dict(output)))
        return output

    trainer._generate_and_score_completions = watched
    return seen


def watch_loss(trainer):
    """Record each micro-batch of the loss."""
    seen, compute_loss = [], trainer._compute_loss

    def watched(model, inputs):
        seen.append(dict(inputs))
        return compute_loss(model, inputs)

    trainer._compute_loss = watched
    return seen


def prompts_of(batch):
    """Token ids of the prompts of a batch, without padding."""
    pairs = zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in pairs]


def encoded(texts):
    tokenizer = make_tokenizer()
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def logps_under(model, prompt_ids, batch):
    """Log-probabilities of a batch's completions after these prompts, straight from the logits."""
    prompts, mask = left_padded(prompt_ids, 0)
    completions = batch["completion_ids"]
    ids = torch.cat([prompts, completions], 1)
    logits = model(input_ids=ids, attention_mask=torch.cat([mask, batch["completion_mask"]], 1)).logits
    logps = logits[:, -1 - completions.shape[1] : -1].log_softmax(-1)
    return logps.gather(2, completions.unsqueeze(2)).squeeze(2)


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def parameters(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def largest_difference(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)
