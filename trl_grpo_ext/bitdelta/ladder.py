"""The ladder: for every tensor the cheapest codec that passes, and why.

A lossy codec passes when it explains enough of the delta's energy: sign codes `safety_threshold`, low rank
`low_rank_energy`. Exact codecs always pass. Codecs are tried from the fewest bytes up, as estimated beforehand.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

from torch import Tensor

from trl_grpo_ext.bitdelta.codecs import Encoded, as_base, encoded_signs
from trl_grpo_ext.bitdelta.config import MAX_MASKS, BitDeltaConfig
from trl_grpo_ext.bitdelta.exact import (
    Attempt,
    Choice,
    changed_rows,
    check_finite,
    exact_attempts,
    other_shape,
    raw,
    same_bits,
    unchanged,
)
from trl_grpo_ext.bitdelta.low_rank import low_rank_factors, may_be_low_rank
from trl_grpo_ext.bitdelta.packing import packed_width
from trl_grpo_ext.bitdelta.scales import group_count
from trl_grpo_ext.bitdelta.signs import fit_to_inputs, matrix, sign_code

DEFAULT_RESIDUAL_RANK = 16

_Waiting: TypeAlias = tuple[float, int, Callable[[], Choice | None]]


class Ladder:
    """Chooses codecs under a configuration.

    Args:
        config: the configuration.
    """

    def __init__(self, config: BitDeltaConfig) -> None:
        self.config = config

    def choose(self, name: str, base: Tensor | None, tuned: Tensor, inputs: Tensor | None = None) -> Choice:
        """Code one tensor.

        Args:
            name: the tensor's name.
            base: the base's tensor; None for one that it does not have.
            tuned: the fine-tuned tensor.
            inputs: what the layer has seen, [tokens, columns], for scales fitted to it.

        Raises:
            TensorError: NaN or infinity, in float tensors.
            ValueError: inputs that do not fit the tensor.
        """
        check_finite(name, "fine-tuned", tuned)
        if base is None:
            return raw(tuned, "the base has no such tensor")
        check_finite(name, "base", base)
        if base.shape != tuned.shape:
            return other_shape(base, tuned)
        reference = as_base(base, tuned.dtype)
        if tuned.ndim == 0:
            return unchanged() if same_bits(reference, tuned) else raw(tuned, "a single number")
        count, rows = changed_rows(reference, tuned)
        return self._changed(name, base, tuned, inputs, count, rows) if count else unchanged()

    def _changed(
        self, name: str, base: Tensor, tuned: Tensor, inputs: Tensor | None, count: int, rows: Tensor
    ) -> Choice:
        density = count / tuned.numel()
        attempts = exact_attempts(as_base(base, tuned.dtype), tuned, count, rows)
        lossy = self._lossy_allowed(name, tuned)
        kappa: list[float] = []
        if lossy and self.config.codec == "sign":
            return self._finish(self._signs(base, tuned, self.config.bits, inputs, kappa, force=True), density, kappa)
        if lossy:
            exact = min(attempt.nbytes for attempt in attempts)
            attempts += list(self._lossy_attempts(base, tuned, inputs, kappa, exact))
        return self._finish(_cheapest(attempts), density, kappa)

    def _lossy_allowed(self, name: str, tuned: Tensor) -> bool:
        if self.config.codec == "lossless" or tuned.ndim < 2 or not tuned.is_floating_point():
            return False
        return tuned.element_size() > 1 and not any(part in name for part in self.config.exact)

    def _finish(self, choice: Choice | None, density: float, kappa: list[float]) -> Choice:
        assert choice is not None
        choice.density, choice.kappa = density, kappa[0] if kappa else None
        floor = self.config.safety_threshold
        if kappa and kappa[0] < floor and choice.item.params.get("masks") != 1:
            choice.reason += f"; one sign mask explains {kappa[0]:.3f} of the energy, below {floor:g}"
        return choice

    def _lossy_attempts(
        self, base: Tensor, tuned: Tensor, inputs: Tensor | None, kappa: list[float], exact: float
    ) -> Iterator[Attempt]:
        """Yield the lossy codecs; sizes of a code as `codecs.layout` has them, `exact` the least of the exact ones."""
        rows, columns = matrix(tuned).shape
        mask_bytes = rows * packed_width(columns) + self._scale_bytes(rows, columns)
        rank = self.config.residual_rank
        for masks in range(self.config.bits, MAX_MASKS + 1):
            if not rank:
                yield Attempt(masks * mask_bytes, partial(self._signs, base, tuned, masks, inputs, kappa))
        side = 2 * (rows + columns)
        factors = rank or DEFAULT_RESIDUAL_RANK
        if factors < min(rows, columns):
            nbytes = self.config.bits * mask_bytes + factors * side
            yield Attempt(nbytes, lambda: self._signs_and_rank(base, tuned, kappa, factors))
        # Below every exact code and one mask, or it would be no gain: the rank is cut so.
        most = min(self.config.max_rank, int(min(mask_bytes, exact) - 1) // side, min(rows, columns) // 2)
        if most >= 1:
            yield Attempt(side, lambda: self._low_rank(base, tuned, most))

    def _scale_bytes(self, rows: int, columns: int) -> int:
        if self.config.scale == "matrix":
            return 4
        return 2 * rows * (1 if self.config.scale == "row" else group_count(columns, self.config.group_size or 1))

    def _signs(
        self,
        base: Tensor,
        tuned: Tensor,
        masks: int,
        inputs: Tensor | None,
        kappa: list[float],
        force: bool = False,
    ) -> Choice | None:
        base, tuned = matrix(base), matrix(tuned)
        floor = self.config.safety_threshold
        if masks > 1 and not kappa and not force:
            kappa.append(sign_code(base, tuned, 1, self.config.scale, self.config.group_size).share)
        code = sign_code(base, tuned, masks, self.config.scale, self.config.group_size)
        if masks == 1 and not kappa:
            kappa.append(code.share)
        if code.share < floor and not force:
            return None
        fitted = inputs is not None and self.config.fit != "mean"
        if fitted and inputs is not None:
            code = fit_to_inputs(code, base, tuned, inputs)
        reason = f"{masks} sign mask{'s' * (masks > 1)} explain{'s' * (masks == 1)} {code.share:.3f} of the energy"
        fit = "activation" if fitted else "mean"
        return Choice(encoded_signs(code, self.config.scale), 1.0, None, code.share, fit, reason)

    def _signs_and_rank(self, base: Tensor, tuned: Tensor, kappa: list[float], rank: int) -> Choice | None:
        """One-bit code first, then the SVD of what it leaves: better than the other order (arXiv 2604.16940)."""
        base, tuned = matrix(base), matrix(tuned)
        code = sign_code(base, tuned, self.config.bits, self.config.scale, self.config.group_size)
        if self.config.bits == 1 and not kappa:
            kappa.append(code.share)
        # The SVD is dear, and not tried where the signs are so far from enough that no such rank is likely to help.
        if not self.config.residual_rank and code.share < self.config.safety_threshold / 2:
            return None
        left, right, part = low_rank_factors(base, tuned, rank, code=code)
        share = code.share + (1 - code.share) * part
        if share < self.config.safety_threshold:
            return None
        item = encoded_signs(code, self.config.scale)
        parts, params = item.parts | {"a": left, "b": right}, item.params | {"rank": left.shape[1]}
        reason = f"signs and rank {rank} of what they leave explain {share:.3f} of the energy"
        return Choice(Encoded("sign_low_rank", parts, params), 1.0, None, share, "mean", reason)

    def _low_rank(self, base: Tensor, tuned: Tensor, most: int) -> Choice | None:
        base, tuned = matrix(base), matrix(tuned)
        wanted = self.config.low_rank_energy
        if not may_be_low_rank(base, tuned, most, wanted):
            return None
        left, right, share = low_rank_factors(base, tuned, most, wanted)
        if share < wanted:
            return None
        rank = left.shape[1]
        return Choice(
            Encoded("low_rank", {"a": left, "b": right}, {"rank": rank}),
            1.0,
            None,
            share,
            None,
            f"rank {rank} explains {share:.3f} of the energy",
        )


def _cheapest(attempts: list[Attempt]) -> Choice | None:
    """Return the smallest code that passes. One that comes out larger than expected waits until it is the smallest."""
    waiting: list[_Waiting] = [(attempt.nbytes, place, attempt.make) for place, attempt in enumerate(attempts)]
    heapq.heapify(waiting)
    while waiting:
        _, place, make = heapq.heappop(waiting)
        found = make()
        if found is None:
            continue
        if not waiting or found.item.nbytes <= waiting[0][0]:
            return found
        again: _Waiting = (found.item.nbytes, place, partial(_given, found))
        heapq.heappush(waiting, again)
    return None


def _given(found: Choice) -> Choice:
    return found
