"""What a run may cost, and what it has cost. Standard library only."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

MILLION = 1e6


class BudgetReached(Exception):
    """A limit of the budget is reached; the step at hand is not committed, and its replies are kept for the resume."""


@dataclass(frozen=True)
class Price:
    """Money per million tokens, in any currency.

    Args:
        prompt: of the prompt's tokens.
        completion: of the completion's tokens.
    """

    prompt: float
    completion: float

    def __post_init__(self) -> None:
        for name in ("prompt", "completion"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"Price: {name} must be a number of at least 0 per million tokens, not {value!r}.")

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the money that these tokens cost."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / MILLION


@dataclass(frozen=True)
class Budget:
    """Limits of a run; None is no limit. They may be changed between a run and its resume.

    Args:
        max_calls: model calls, failed ones included, over the run and its resumes. Exact.
        max_tokens: prompt and completion tokens over the run and its resumes. Calls that are under way when it is
            reached are cancelled where the backend can.
        max_cost: money by `prices`, over the run and its resumes.
        max_seconds: wall time of one `train` call.
        prices: `Price` by model: the backend's name, a part of it, or "*" for all.

    Raises:
        ValueError: a limit that is not positive, or `max_cost` without prices.
    """

    max_calls: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    max_seconds: float | None = None
    prices: Mapping[str, Price] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("max_calls", "max_tokens", "max_cost", "max_seconds"):
            value = getattr(self, name)
            whole = name in ("max_calls", "max_tokens")
            kind: Any = int if whole else int | float
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind) or not value > 0):
                rule = "a whole number above 0" if whole else "a number above 0"
                raise ValueError(f"Budget: {name} must be {rule}, or None for no limit, not {value!r}.")
        prices = {name: value if isinstance(value, Price) else Price(**value) for name, value in self.prices.items()}
        object.__setattr__(self, "prices", prices)
        if self.max_cost is not None and not prices:
            raise ValueError(
                'Budget: max_cost needs prices, such as {"*": {"prompt": 0.28, "completion": 0.42}} per million tokens.'
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Budget:
        """Return the budget of a mapping.

        Raises:
            ValueError: an unknown limit, or a value outside its range.
        """
        known = [item.name for item in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"Budget: unknown limit {unknown[0]!r}; there are {', '.join(known)}.")
        return cls(**values)

    def price(self, model: str) -> Price | None:
        """Return the price of a model: by its name, else by the longest key that is part of it, else by "*"."""
        parts = sorted((key for key in self.prices if key in model), key=len)
        key = model if model in self.prices else parts[-1] if parts else "*"
        return self.prices.get(key)

    def check_models(self, models: Sequence[str]) -> None:
        """Refuse a limit of money over models without a price.

        Raises:
            ValueError: naming the model.
        """
        for model in models:
            if self.max_cost is not None and self.price(model) is None:
                raise ValueError(
                    f"Budget: max_cost is set, but prices has none for the model {model!r}; add it, or add '*' for all."
                )


@dataclass
class Spending:
    """What was spent.

    Args:
        calls: replies that were paid for, and failed calls.
        failures: failed calls among them.
        prompt_tokens: tokens of the prompts.
        completion_tokens: tokens of the completions.
        cost: money, by the prices; 0 without them.
    """

    calls: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.prompt_tokens + self.completion_tokens

    def as_dict(self) -> dict[str, float]:
        """Return the figures by name."""
        return {**asdict(self), "cost": round(self.cost, 9)}


class Meter:
    """Adds up spending and says when a limit is reached.

    Args:
        budget: the limits.
        spent: what earlier processes of the run have spent.
    """

    def __init__(self, budget: Budget, spent: Spending | None = None) -> None:
        self.budget = budget
        self.spent = spent or Spending()
        self._start = time.monotonic()

    def add(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Count one reply."""
        price = self.budget.price(model)
        self.spent.calls += 1
        self.spent.prompt_tokens += prompt_tokens
        self.spent.completion_tokens += completion_tokens
        self.spent.cost += price.of(prompt_tokens, completion_tokens) if price else 0.0

    def add_failure(self) -> None:
        """Count one failed call."""
        self.spent.calls += 1
        self.spent.failures += 1

    def calls_left(self) -> int | None:
        """Return how many calls may still be made; None without a limit."""
        return None if self.budget.max_calls is None else max(0, self.budget.max_calls - self.spent.calls)

    def reached(self) -> str:
        """Return which limit other than that of calls is reached, in words; empty when none is."""
        budget, spent = self.budget, self.spent
        if budget.max_tokens is not None and spent.tokens >= budget.max_tokens:
            return f"max_tokens={budget.max_tokens} ({spent.tokens} used)"
        if budget.max_cost is not None and spent.cost >= budget.max_cost:
            return f"max_cost={budget.max_cost:g} ({spent.cost:.6g} spent)"
        seconds = time.monotonic() - self._start
        if budget.max_seconds is not None and seconds >= budget.max_seconds:
            return f"max_seconds={budget.max_seconds:g} ({seconds:.1f} gone)"
        return ""

    def check(self) -> None:
        """Stop when a limit is reached.

        Raises:
            BudgetReached: naming the limit.
        """
        reached = self.reached()
        if reached:
            raise BudgetReached(reached)
