"""reasoning-gym's tasks, scored by the package's own verifiers in sandboxed workers.

Several of those verifiers evaluate the answer as Python, so they never run in the trainer's process.
"""

import functools
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trl_grpo_ext.rewards.code.candidate import decode, encode
from trl_grpo_ext.rewards.extraction import last_tagged
from trl_grpo_ext.rewards.named import NamedReward, check_finite
from trl_grpo_ext.rewards.runtime import IsolatedReward, RewardRuntime
from trl_grpo_ext.rewards.text import Completion, completion_text

Scorer = Callable[[str, dict[str, Any]], float]


def _require_package() -> None:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ValueError("reasoning-gym is not installed; install it, or the extra `reasoning-gym` of this package.")


def _refuse(value: Any) -> dict[str, Any]:
    raise TypeError(f"a {type(value).__name__} in the metadata of a task has no form in a data set")


def _no_reference(key: int) -> Any:
    raise ValueError(f"reference {key} in the metadata of a task")


def reasoning_gym_rows(name: str, *, size: int, seed: int, **settings: Any) -> list[dict[str, Any]]:
    """Return the tasks of a reasoning-gym data set as rows: `datasets.Dataset.from_list(rows)` trains on them.

    Args:
        name: a registered data set, such as `countdown`.
        size: number of tasks.
        seed: of the generator.
        settings: that data set's own settings.

    Returns:
        Rows with `prompt` (the question), `answer` and `metadata` (JSON text, in which tuples and the like survive);
        the question does not ask for tags around the answer.

    Raises:
        ValueError: reasoning-gym is not installed, has no such data set, or refuses the settings.
        TypeError: the metadata of a task holds objects that no data set can hold.
    """
    _require_package()
    from reasoning_gym import create_dataset

    return [
        {
            "prompt": entry["question"],
            "answer": entry["answer"],
            "metadata": json.dumps(encode(entry["metadata"], _refuse)),
        }
        for entry in create_dataset(name, size=size, seed=seed, **settings)
    ]


def _metadata(value: Any, row: int) -> Mapping[str, Any]:
    loaded = json.loads(value) if isinstance(value, str) else value
    if isinstance(loaded, Mapping) and loaded.keys() == {"dict"}:
        loaded = decode(loaded, _no_reference)
    if not isinstance(loaded, Mapping) or not isinstance(loaded.get("source_dataset"), str):
        raise ValueError(
            f"column 'metadata' in row {row} must hold a reasoning-gym entry's metadata with 'source_dataset', as "
            f"reasoning_gym_rows gives it, not {value!r:.80}"
        )
    return loaded


@functools.cache
def _scorer(name: str) -> Scorer:
    from reasoning_gym import get_score_answer_fn

    return get_score_answer_fn(name)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class ReasoningGym(NamedReward):
    """The function behind `reasoning_gym_reward`, in TRL's convention: may execute an answer, so only in a sandbox.

    Args:
        tag: see `reasoning_gym_reward`.
        name: `__name__`.
    """

    tag: str | None = "answer"
    name: str = "reasoning_gym"

    def __call__(
        self,
        completions: Sequence[Completion],
        answer: Sequence[Any],
        metadata: Sequence[Any],
        prompts: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """Return one reward per completion; see `reasoning_gym_reward`."""
        questions = prompts or [""] * len(completions)
        entries = [
            {"question": question, "answer": gold, "metadata": _metadata(value, row)}
            for row, (question, gold, value) in enumerate(zip(questions, answer, metadata, strict=True))
        ]
        return [
            self._score(completion_text(completion), entry)
            for completion, entry in zip(completions, entries, strict=True)
        ]

    def _score(self, text: str, entry: dict[str, Any]) -> float:
        found = text.strip() if self.tag is None else last_tagged(text, self.tag)
        if not found:
            return 0.0
        scorer = _scorer(entry["metadata"]["source_dataset"])
        try:
            return float(scorer(found, entry))
        except Exception:
            # prime_factorization, for one, raises ValueError for an answer in another form.
            return 0.0


def reasoning_gym_reward(
    *,
    tag: str | None = "answer",
    deadline: float = 10.0,
    allow_unsandboxed: bool = False,
    runtime: RewardRuntime | None = None,
    name: str = "reasoning_gym",
) -> IsolatedReward:
    """reasoning-gym's own `score_answer` of the row's task, in a sandbox. Range [0, 1] for all but a few tasks.

    Reads the columns `answer` and `metadata` (a mapping or its JSON text, with `source_dataset`) of an entry, as
    `reasoning_gym_rows` gives them.

    Failure modes: several tasks give 0.01 or 0.05 for wrong answers, and most give some for a right answer among other
    text; `boxnet`, `graph_color`, `propositional_logic`, `rubiks_cube` and `rush_hour` have no answer of their own. A
    verifier that raises scores 0, and one that executes answers does so in a process that is thrown away with the row: such an answer can choose its
    own row's score, and nothing else. A row that runs into the deadline or a limit scores 0.

    Args:
        tag: the answer is what the last `<tag>` of the completion holds, and a completion without one scores 0; None
            for the whole completion.
        deadline: seconds per row.
        allow_unsandboxed: run also where the kernel grants no namespaces.
        runtime: the workers; by default those that all such rewards of this process share.
        name: `__name__`, under which TRL logs the reward.

    Raises:
        ValueError: reasoning-gym is not installed, or `deadline` is not positive.
        SandboxUnavailable: no sandbox is to be had here.
        RewardError: in a call: a row's metadata names no data set of reasoning-gym.
    """
    _require_package()
    check_finite("reasoning_gym", "deadline", deadline, at_least=0.01)
    return IsolatedReward(
        ReasoningGym(tag=tag, name=name),
        runtime=runtime,
        on_error="raise",
        on_kill=0.0,
        deadline=deadline,
        imports=["reasoning_gym"],
        sandbox=True,
        allow_unsandboxed=allow_unsandboxed,
    )
