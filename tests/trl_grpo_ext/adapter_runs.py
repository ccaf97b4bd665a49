"""Real training runs for the tests of the reward adapters."""

from trl_grpo_ext import check_reward_columns, config_kwargs, import_trl, prepare_model

GROUP = 4
PROMPTS = ("say ", "1 ", "7 ", "# ")


def dataset(columns, conversational=False):
    from datasets import Dataset

    def prompt(text):
        return [{"role": "user", "content": text.strip()}] if conversational else text

    return Dataset.from_list([{"prompt": prompt(PROMPTS[i % 4]), **columns} for i in range(32)])


def make_trainer(model, tokenizer, tmp_path, rewards, rows, steps=3, callbacks=None, **settings):
    trl = import_trl()
    for reward in rewards:
        check_reward_columns(reward, rows.column_names)
    settings = {"max_steps": steps, "per_device_train_batch_size": 16, "beta": 0.0, "learning_rate": 1e-2} | settings
    config = trl.GRPOConfig(
        **config_kwargs(
            output_dir=str(tmp_path / "out"),
            num_generations=GROUP,
            max_completion_length=2,
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            **settings,
        )
    )
    return trl.GRPOTrainer(
        model=prepare_model(model),
        reward_funcs=rewards,
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def texts_of(trainer):
    """The completions of the last generation, as texts."""
    return [row if isinstance(row, str) else row[-1]["content"] for row in trainer._logs["completion"]]
