"""`grpo_training_free`: a library of lessons out of a run of stage grpo, with LLaMA-Factory's model, template and data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.extras import logging
from llamafactory.model import load_model, load_tokenizer

from llamafactory_plugin.dataset import GRPOData, load_data
from llamafactory_plugin.errors import UsageError
from llamafactory_plugin.rendering import PromptRenderer
from llamafactory_plugin.rewards import check_rewards, default_reward, load_rewards
from llamafactory_plugin.run_arguments import RunArguments
from llamafactory_plugin.training_free_settings import (
    reflector_settings,
    refuse_training,
    training_free_config,
    unread_keys,
)
from llamafactory_plugin.workflow import check_template
from trl_grpo_ext.training_free import (
    BackendError,
    ChatRequest,
    ModelSettings,
    RunBusyError,
    TrainingFreeConfig,
    TrainingFreeGRPO,
    check_reward,
    shown_progress,
    training_problems,
)
from trl_grpo_ext.training_free.backends import TransformersBackend

logger = logging.get_logger("llamafactory.grpo")

INTERRUPTED = 130
Row = dict[str, Any]


@dataclass(frozen=True)
class PreparedTrainingFree:
    """A run whose arguments, reward and data fit together; its models are not loaded yet."""

    run: RunArguments
    config: TrainingFreeConfig
    reflector: ModelSettings | None
    renderer: PromptRenderer
    data: GRPOData
    rewards: list[Callable[..., Any]]
    rows: list[Row]
    held_out: list[Row] | None
    lines: list[str]


def prepare_training_free(run: RunArguments) -> PreparedTrainingFree:
    """Check everything about a run that can be checked without its model, and load its data.

    Raises:
        UsageError: for a run that cannot work as written; nothing is written.
    """
    refuse_training(run, run.training_args.world_size)
    config, reflector, rewards = training_free_config(run), reflector_settings(run), load_rewards(run)
    module = load_tokenizer(run.model_args)
    check_template(run.data_args.template)
    renderer = PromptRenderer(get_template_and_fix_tokenizer(module["tokenizer"], run.data_args), module["tokenizer"])
    most = min(run.data_args.cutoff_len, renderer.tokenizer.model_max_length)
    data = load_data(run, renderer, module["processor"], most)
    notes: list[str] = []
    rewards = rewards or [default_reward(data, notes)]
    if len(rewards) > 1:
        raise UsageError(
            f"reward_funcs: grpo_training_free takes one reward, not {len(rewards)}; join them by grpo_reward_composition."
        )
    check_rewards(rewards, data, config.num_generations, config.num_generations)
    rows, held_out = problem_rows(data, renderer.template.default_system)
    try:
        problems, kept = training_problems(config, rows, held_out)
        check_reward(config, rewards[0], [*problems, *kept])
    except ValueError as error:
        raise UsageError(f"grpo_training_free: {error}") from error
    lines = [*notes, *_lines(run, config, rewards[0].__name__, len(problems), len(kept))]
    return PreparedTrainingFree(run, config, reflector, renderer, data, rewards, rows, held_out, lines)


def problem_rows(data: GRPOData, default_system: str | None) -> tuple[list[Row], list[Row] | None]:
    """The rows to learn from, and those of the gate where the run has evaluation data.

    A template's default system text becomes part of a prompt without system message: lessons would take its place.

    Raises:
        UsageError: rows with tools.
    """
    found: dict[bool, list[Row]] = {}
    for name, dataset in data.each():
        if "tools" in dataset.column_names:
            raise UsageError(f"dataset: {name} has tools, which grpo_training_free can't call; take the column out.")
        rows = [{**row, "prompt": _with_system(row["prompt"], default_system)} for row in dataset.to_list()]
        found.setdefault(name == "train_dataset", []).extend(rows)
    if True not in found:
        raise UsageError("dataset: there are no rows to learn from; name a training set.")
    return found[True], found.get(False)


def _with_system(prompt: list[Row], default_system: str | None) -> list[Row]:
    has_system = not default_system or prompt[0]["role"] == "system"
    return prompt if has_system else [{"role": "system", "content": default_system}, *prompt]


def _lines(run: RunArguments, config: TrainingFreeConfig, reward: str, problems: int, kept: int) -> list[str]:
    """What the run will do, in a few lines."""
    steps = config.num_train_epochs * -(-problems // config.batch_size)
    gate = f"{kept} held out for the gate" if config.gate is not None else "no acceptance gate"
    lines = [
        f"training-free: {problems} problems, {gate}; {steps} steps of at most {config.batch_size} problems x "
        f"{config.num_generations} rollouts, temperature {config.temperature:g}, at most "
        f"{config.max_completion_length} tokens; reward: {reward}"
    ]
    unread = unread_keys(run)
    return [*lines, f"not read, since nothing is trained: {', '.join(unread)}"] if unread else lines


def run_training_free(run: RunArguments) -> None:
    """Learn lessons, and write the result folder.

    Raises:
        UsageError: for a run that cannot work as written, or can't go on; no model is loaded by then, or nothing is lost.
        SystemExit: after Ctrl-C; the same command continues.
    """
    prepared = prepare_training_free(run)
    for line in prepared.lines:
        logger.info_rank0(f"GRPO {line}.")
    output_dir = run.training_args.output_dir
    try:
        with _learner(prepared) as learner, shown_progress() as on_progress:
            learner.train(prepared.rows, prepared.rewards[0], prepared.held_out, on_progress=on_progress)
            report = learner.report
    except KeyboardInterrupt:
        logger.info_rank0(f"GRPO stopped; the same command continues. Results so far: {output_dir}.")
        raise SystemExit(INTERRUPTED) from None
    except (BackendError, RunBusyError, ValueError) as error:
        raise UsageError(str(error)) from error
    assert report is not None
    why = f": {report.reason}" if report.reason else ""
    rewards = " ".join(f"{reward:.4f}" for reward in report.rewards)
    logger.info_rank0(f"GRPO {report.status}{why} Mean reward by step: {rewards}; {len(report.lessons)} lessons.")
    logger.info_rank0(f"GRPO results: {output_dir}/report.md, system_prompt.txt, experiences.json, library.db.")


def _learner(prepared: PreparedTrainingFree) -> TrainingFreeGRPO:
    run = prepared.run
    model = load_model(prepared.renderer.tokenizer, run.model_args, run.finetuning_args, is_trainable=False)
    policy = TemplateBackend(model, prepared.renderer)
    reflector = None if prepared.reflector is None else prepared.reflector.load()
    return TrainingFreeGRPO(policy, prepared.config, reflector=reflector, output_dir=run.training_args.output_dir)


class TemplateBackend(TransformersBackend):
    """A model of LLaMA-Factory, whose prompts its Template renders.

    Args:
        model: of LLaMA-Factory.
        renderer: with its template and tokenizer.
    """

    def __init__(self, model: Any, renderer: PromptRenderer) -> None:
        model.generation_config.eos_token_id = renderer.stop_token_ids()
        super().__init__(model, renderer.tokenizer)
        self.renderer = renderer
        probe = self.prompt_ids(ChatRequest((("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "u"))))
        self.name += f":{hashlib.sha256(json.dumps(probe).encode()).hexdigest()[:8]}"

    def prompt_ids(self, request: ChatRequest) -> tuple[int, ...]:
        """Return the tokens of a request's messages, rendered by the template."""
        return tuple(self.renderer.encode(request.as_messages()))
