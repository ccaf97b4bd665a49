"""Seconds, floating-point operations and live memory of what runs."""

from __future__ import annotations

import time
import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

CUDA = torch.cuda.is_available()
_ATEN = torch.ops.aten


def now() -> float:
    """CPU seconds of this process, or wall seconds once the GPU is done."""
    if CUDA:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad_out: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(grad_out, query, key, value)


def _addmm_(total: Any, one: Any, other: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * one[0] * one[1] * other[1]


# TRL's chunked head adds up its gradients in place.
_UNKNOWN_TO_TORCH = {
    _ATEN.addmm_: _addmm_,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class FlopCounter(TorchDispatchMode):
    """The formulas of torch's `FlopCounterMode`, and of what it does not know.

    It keeps no account of modules: theirs makes a step of generation ten times as long.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self._formulas = FlopCounterMode(display=False, custom_mapping=_UNKNOWN_TO_TORCH).flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count it."""
        found = func(*args, **(kwargs or {}))
        formula = self._formulas.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=found)
        return found


class LivePeak(TorchDispatchMode):
    """The most bytes of tensors made since it began that were alive at once; without what a kernel uses inside."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and watch over the storages of what it returns."""
        found = func(*args, **(kwargs or {}))
        held = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor)}
        for tensor in tree_leaves(found):
            if torch.is_tensor(tensor) and (key := tensor.untyped_storage()._cdata) not in held | self.live.keys():
                storage = tensor.untyped_storage()
                self.live[key] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, key)
        self.peak = max(self.peak, self.now)
        return found

    def _freed(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)


class Memory:
    """The most memory in use above what was in use at the last `restart`; bytes.

    On a CPU only tensors that were made since it began are known to it.
    """

    def __enter__(self) -> Memory:
        self._live = None if CUDA else LivePeak().__enter__()
        self.restart()
        return self

    def restart(self) -> None:
        """Begin anew."""
        if self._live is None:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            self._before = self._live.peak = self._live.now

    @property
    def most(self) -> int:
        """The most since the last restart, all in all."""
        return torch.cuda.max_memory_allocated() if self._live is None else self._live.peak

    @property
    def peak(self) -> int:
        """The same above what was in use then."""
        return self.most - self._before

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*error)
