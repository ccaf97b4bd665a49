"""`AutoModelForCausalLM.from_pretrained(delta_dir)`: through transformers' public registration, no patch.

Without this import transformers refuses the folder (unknown model type), which is what we want of it.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
)
from transformers.utils import GENERATION_CONFIG_NAME

from trl_grpo_ext.bitdelta.errors import BitDeltaError
from trl_grpo_ext.bitdelta.materialise import open_base, tensors
from trl_grpo_ext.bitdelta.reading import Delta, is_delta
from trl_grpo_ext.bitdelta.sources import local_folder


class BitDeltaModelConfig(PretrainedConfig):
    """config.json of a delta: where its base is, and the configuration of the model that it makes.

    Args:
        base_model_name_or_path: path or hub id of the base.
        base_revision: commit of the base on the hub.
        model_config: config.json of the fine-tuned model.
    """

    model_type = "bitdelta"

    def __init__(
        self,
        base_model_name_or_path: str | None = None,
        base_revision: str | None = None,
        model_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.base_model_name_or_path = base_model_name_or_path
        self.base_revision = base_revision
        self.model_config = model_config or {}
        super().__init__(**kwargs)


def _wanted_dtype(kwargs: dict[str, Any], config: Any, inner: Any) -> torch.dtype | None:
    """Return the dtype that the caller asks for, by either of transformers' two names; None for transformers' default.

    Some releases leave it among the arguments, others put it into the configuration, whose file never has one.
    """
    found = [kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None), _dtype_of(config)]
    given = next((item for item in found if item is not None), None)
    if given == "auto":
        given = _dtype_of(inner)
    return getattr(torch, given) if isinstance(given, str) else given


def _dtype_of(config: Any) -> Any:
    return getattr(config, "dtype", None) or vars(config).get("torch_dtype")


class BitDeltaForCausalLM:
    """What transformers calls for a delta: makes the ordinary model of the base's class, and returns that."""

    config_class = BitDeltaModelConfig

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], *args: Any, config: Any = None, base: Any = None, **kwargs: Any
    ) -> Any:
        """Return the fine-tuned model.

        Args:
            path: the delta's folder or hub id.
            config: its `BitDeltaModelConfig`; read from the folder by default.
            base: path, hub id or model of the base, when it is not where it was.
            args: as for any model.
            kwargs: as for any model: dtype, device_map, attn_implementation, ...

        Raises:
            WrongBaseError: another base.
            BitDeltaError: a damaged delta, or quantisation while loading.
        """
        if kwargs.get("quantization_config") is not None or kwargs.get("load_in_4bit") or kwargs.get("load_in_8bit"):
            raise BitDeltaError(
                "a delta can't be quantised while it is loaded: export it, and quantise the checkpoint."
            )
        if kwargs.get("state_dict") is not None:
            raise BitDeltaError("a delta makes its weights itself: leave state_dict out.")
        folder = local_folder(os.fspath(path), kwargs.pop("revision", None))[0]
        delta = Delta(folder)
        config = config or BitDeltaModelConfig.from_pretrained(folder)
        inner = _inner_config(config)
        # transformers has taken this one out of the arguments, and put it into the configuration that it knows.
        attention = getattr(config, "_attn_implementation", None)
        if attention is not None:
            kwargs.setdefault("attn_implementation", attention)
        dtype = _wanted_dtype(kwargs, config, inner)
        state = dict(tensors(delta, open_base(delta, base), dtype))
        if dtype is not None:
            kwargs[dtype_argument()] = dtype
        model = _model_class(inner).from_pretrained(None, *args, config=inner, state_dict=state, **kwargs)
        model.config._name_or_path = str(path)
        # Made without a folder, the model has not seen the file of its generation settings.
        if kwargs.get("generation_config") is None and (folder / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        return model


def dtype_argument() -> str:
    """Return what `from_pretrained` calls the dtype: transformers before 4.56 knows torch_dtype alone."""
    return "dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype"


def _inner_config(config: Any) -> Any:
    values = dict(config.model_config)
    kind = values.pop("model_type", None)
    if kind is None:
        raise BitDeltaError("the delta records no model configuration (it was made from a bare module): use apply.")
    return AutoConfig.for_model(kind, **values)


def _model_class(config: Any) -> Any:
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise BitDeltaError(f"transformers has no causal language model for model type {config.model_type!r}.")
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple | list) else found


def register() -> None:
    """Tell transformers of deltas; more than once does no harm."""
    AutoConfig.register("bitdelta", BitDeltaModelConfig, exist_ok=True)
    AutoModelForCausalLM.register(BitDeltaModelConfig, BitDeltaForCausalLM, exist_ok=True)


__all__ = ["BitDeltaForCausalLM", "BitDeltaModelConfig", "dtype_argument", "is_delta", "register"]
