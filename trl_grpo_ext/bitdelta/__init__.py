"""Delta compression: a full fine-tune as a small delta of its base, with a ladder of codecs from BitDelta to lossless.

    import trl_grpo_ext.bitdelta as bitdelta
    report = bitdelta.compress(base, finetuned, "delta")
    model = AutoModelForCausalLM.from_pretrained("delta")

Importing this package teaches transformers' `AutoModelForCausalLM` to load a delta's folder. The callback, which needs
the whole of transformers' trainer, is loaded when it is first used (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trl_grpo_ext.bitdelta.auto import register
from trl_grpo_ext.bitdelta.calibration import collect_inputs, prompt_batches
from trl_grpo_ext.bitdelta.compress import compress
from trl_grpo_ext.bitdelta.config import BitDeltaConfig
from trl_grpo_ext.bitdelta.errors import BitDeltaError, DamagedDeltaError, TensorError, WrongBaseError
from trl_grpo_ext.bitdelta.gate import Gate
from trl_grpo_ext.bitdelta.inspection import inspect
from trl_grpo_ext.bitdelta.materialise import apply, export, verify
from trl_grpo_ext.bitdelta.report import DeltaReport

if TYPE_CHECKING:
    from trl_grpo_ext.bitdelta.callback import BitDeltaCallback
    from trl_grpo_ext.bitdelta.distillation import distill
    from trl_grpo_ext.bitdelta.serving import DeltaModel
    from trl_grpo_ext.bitdelta.training import compress_trained

__all__ = [
    "BitDeltaCallback",
    "BitDeltaConfig",
    "BitDeltaError",
    "DamagedDeltaError",
    "DeltaModel",
    "DeltaReport",
    "Gate",
    "TensorError",
    "WrongBaseError",
    "apply",
    "collect_inputs",
    "compress",
    "compress_trained",
    "distill",
    "export",
    "inspect",
    "prompt_batches",
    "verify",
]

register()


_LATER = {
    "BitDeltaCallback": "callback",
    "DeltaModel": "serving",
    "distill": "distillation",
    "compress_trained": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"trl_grpo_ext.bitdelta.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return __all__
