"""One training run of a fixed number of CPU seconds."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging as transformers_logging

from learning_tasks.arms import Arm, controlled, make_config, parse_arm, trainer_class
from learning_tasks.tasks import Model, Task, Tokenizer, get_task
from trl_grpo_ext import prepare_model

WARMUP_STEPS = 5
SHARES = (1 / 3, 2 / 3)
_warm: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Job:
    """What one run is: all that a worker process needs to know."""

    task: str
    arm: str
    control: str
    seed: int
    cpu_seconds: float
    cache: Path


class CpuBudget(TrainerCallback):
    """Ends training after `seconds` of this process's CPU time, and measures at the given shares of it.

    Time is `time.process_time()` from the first step on: generation, rewards, scoring, loss and optimiser count; the
    set-up and `evaluate` don't. The step during which the budget runs out is finished.
    """

    def __init__(self, seconds: float, evaluate: Callable[[], float], shares: tuple[float, ...] = SHARES) -> None:
        self.seconds, self.curve = seconds, []
        self._evaluate, self._shares = evaluate, list(shares)
        self._started: float | None = None
        self._evaluating = 0.0
        self.used = 0.0

    def spent(self) -> float:
        """CPU seconds of training so far."""
        return 0.0 if self._started is None else time.process_time() - self._started - self._evaluating

    def factor(self, step: int) -> float:
        """Learning rate after `step` steps, as a share of the highest: warm-up, then linear to 0 at the budget's end."""
        return min(1.0, (step + 1) / WARMUP_STEPS) * max(0.0, 1.0 - self.spent() / self.seconds)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._started = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.used = self.spent()
        if self.used >= self.seconds:
            control.should_training_stop = True
        due = [share for share in self._shares if share * self.seconds <= self.used]
        if due:
            self._measure(due)

    def _measure(self, shares: list[float]) -> None:
        before = time.process_time()
        value = self._evaluate()
        self.curve += [(share, value) for share in shares]
        self._shares = self._shares[len(shares) :]
        self._evaluating += time.process_time() - before


def quiet() -> None:
    """One thread, and no line per step from the libraries."""
    torch.set_num_threads(1)
    logging.getLogger("trl").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def load(folder: Path) -> tuple[Model, Tokenizer]:
    """The start policy in float32, and its tokenizer with a padding token, padding on the left."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer


def train(
    task: Task,
    arm: Arm,
    job: Job,
    model: Model,
    tokenizer: Tokenizer,
    budget: CpuBudget,
    watchers: Sequence[TrainerCallback] = (),
) -> int:
    """Train until the budget is used up; returns the number of optimizer steps. With watchers every step is logged."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(arm, task, job.seed, folder)
        if watchers:
            config.logging_strategy, config.logging_steps = IntervalStrategy.STEPS, 1
        trainer = trainer_class(arm)(
            model=prepare_model(model),
            reward_funcs=[controlled(task.reward, job.control, job.seed)],
            args=config,
            train_dataset=Dataset.from_list(task.rows),
            processing_class=tokenizer,
            callbacks=[budget, *watchers],
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, budget.factor)),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.state.global_step


def warm_up(job: Job) -> None:
    """One step that is not measured: imports and first calls of this process must not fall on its first run."""
    if (job.task, job.arm) not in _warm:
        _warm.add((job.task, job.arm))
        task = get_task(job.task)
        model, tokenizer = load(task.start(job.seed, job.cache))
        train(task, parse_arm(job.arm), job, model, tokenizer, CpuBudget(1e-9, lambda: 0.0, shares=()))


def run(job: Job) -> dict[str, Any]:
    """Do one run; its figures before and after, and on the way, in one flat row."""
    quiet()
    warm_up(job)
    task, arm = get_task(job.task), parse_arm(job.arm)
    model, tokenizer = load(task.start(job.seed, job.cache))
    start = task.evaluate(model, tokenizer)
    budget = CpuBudget(job.cpu_seconds, lambda: task.evaluate(model, tokenizer)[task.metric])
    steps = train(task, arm, job, model, tokenizer, budget)
    end = task.evaluate(model, tokenizer)
    return {
        **{"kind": "run", "task": job.task, "arm": job.arm, "control": job.control, "seed": job.seed},
        **{"steps": steps, "cpu_seconds": round(budget.used, 2)},
        **{f"{name}_start": round(value, 4) for name, value in start.items()},
        **{f"{name}_end": round(value, 4) for name, value in end.items()},
        "curve": [(0.0, start[task.metric]), *budget.curve, (1.0, end[task.metric])],
    }


def prepare(task_name: str, seed: int, cache_folder: Path) -> Path:
    """Make the start policy of a seed, unless it is there."""
    quiet()
    return get_task(task_name).start(seed, cache_folder)
