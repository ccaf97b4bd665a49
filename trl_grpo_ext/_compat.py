"""Everything that differs between TRL and transformers versions. No other module looks at a version.

Supported: TRL 0.24 (LLaMA-Factory 0.9.5) to 1.16. Importing this module imports neither TRL nor torch.
"""

import copy
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

from trl_grpo_ext._suggest import did_you_mean

Model = TypeVar("Model")

_PASSED_BY_EVERY_TRL = frozenset({"prompts", "completions", "completion_ids", "trainer_state"})
_PASSED_SINCE_TRL_1 = frozenset({"log_extra", "log_metric"})
# Passed by TRL >= 0.29, and only when the trainer has an `environment_factory`.
_PASSED_WITH_ENVIRONMENTS = frozenset({"environments"})
LIBRARIES = "trl-grpo-ext trl transformers torch accelerate peft datasets llamafactory deepspeed vllm".split()


def library_versions() -> dict[str, str]:
    """Return name -> version of what a run is made of, as far as it is installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def trl_version() -> tuple[int, int]:
    """Return (major, minor) of the installed TRL, read from its metadata without importing it.

    Raises:
        importlib.metadata.PackageNotFoundError: TRL is not installed.
    """
    major, minor = version("trl").split(".")[:2]
    return int(major), int(minor)


def reward_keywords() -> tuple[frozenset[str], frozenset[str]]:
    """Return the keywords other than dataset columns with which the installed TRL calls a reward function.

    Returns:
        The keywords of every call, and those that some calls have besides (`environments`, TRL >= 0.29).
        TRL >= 1.0 adds `log_extra` and `log_metric` to every call.
    """
    installed = trl_version()
    always = _PASSED_BY_EVERY_TRL | (_PASSED_SINCE_TRL_1 if installed >= (1, 0) else frozenset())
    return always, _PASSED_WITH_ENVIRONMENTS if installed >= (0, 29) else frozenset()


def skipped_rows_count_as_zero() -> bool:
    """Whether the installed TRL takes a row whose rewards are all None for one with reward 0 (TRL < 1.6)."""
    return trl_version() < (1, 6)


def _repair_availability_flags(import_utils: ModuleType) -> None:
    """Replace `(False, "N/A")` by `False` in TRL's module-level availability flags.

    A subclass of tuple with its own `__bool__`, which LLaMA-Factory puts there, is already right and is left alone.
    """
    for name, value in list(vars(import_utils).items()):
        if name.endswith("_available") and type(value) is tuple:
            setattr(import_utils, name, bool(value[0]))


def import_trl() -> ModuleType:
    """Import TRL so that its trainers import, and return the module.

    Needed for TRL 0.24 with transformers >= 5: there `_is_package_available` returns a tuple, TRL 0.24 takes it for a
    bool, believes every optional package to be installed, and `from trl import GRPOTrainer` ends in
    "No module named 'mergekit'". The flags that TRL derived from it are corrected in TRL's own module; transformers is
    not changed, so LLaMA-Factory's patch of the same function may come before, after, or not at all. Calling it again,
    or after a plain `import trl`, is safe. With other versions it only imports TRL.

    Raises:
        ImportError: TRL is not installed.
    """
    _repair_availability_flags(import_module("trl.import_utils"))
    return import_module("trl")


def prepare_model(model: Model) -> Model:
    """Give a loaded model the attribute `warnings_issued`, and return the same model.

    Needed for TRL 0.24 to 0.27 with transformers >= 5.1: those trainers write to `model.warnings_issued`, which
    transformers dropped. A model that has the attribute is returned as it is.

    Raises:
        TypeError: `model` is a name or path: the trainer would load it itself, where it can't be prepared.
    """
    if isinstance(model, str):
        raise TypeError(
            f"prepare_model: model must be a loaded model, not the name {model!r}; load it first with "
            "transformers.AutoModelForCausalLM.from_pretrained(...)."
        )
    if not hasattr(model, "warnings_issued"):
        model.warnings_issued = {}  # type: ignore[attr-defined]
    return model


def trainable_model(model: Any, model_init_kwargs: dict[str, Any] | None = None) -> Any:
    """Return a model that the trainer can begin with: a loaded one prepared, a name where TRL can load it.

    TRL 0.24 to 0.27 can't finish a model that they load by name (see `prepare_model`), so it is loaded here, as they do.
    """
    if not isinstance(model, str):
        return prepare_model(model)
    return model if trl_version() >= (0, 28) else prepare_model(_loaded_by_name(model, **(model_init_kwargs or {})))


def _loaded_by_name(name: str, **model_init_kwargs: Any) -> Any:
    transformers = import_module("transformers")
    architecture = transformers.AutoConfig.from_pretrained(name).architectures[0]
    return getattr(transformers, architecture).from_pretrained(name, **model_init_kwargs)


@contextmanager
def given_reference(ref_model: Any, policy: Any) -> Iterator[None]:
    """Hand TRL's trainer `ref_model` where its constructor would load its reference by the policy's name.

    TRL then does with it what it does with its own (dropout, its head, placement, synchronisation). None changes nothing.

    Raises:
        RuntimeError: the constructor did not load a reference.
    """
    if ref_model is None:
        yield
        return
    module = import_module("trl.trainer.grpo_trainer")
    policies = int(isinstance(policy, str) and trl_version() >= (0, 28))
    asked: list[Any] = []

    def load(name: Any, **model_init_kwargs: Any) -> Any:
        asked.append(name)
        return ref_model if len(asked) > policies else real(name, **model_init_kwargs)

    replaced = _model_loaders(module, load)
    before = {name: getattr(module, name) for name in replaced}
    real: Any = before.get("create_model_from_path")
    vars(module).update(replaced)
    try:
        yield
    finally:
        vars(module).update(before)
    if len(asked) != policies + 1:
        raise RuntimeError(
            f"ref_model: TRL {version('trl')} loaded {len(asked)} models by name, and not the reference."
        )


def _model_loaders(module: ModuleType, load: Any) -> dict[str, Any]:
    """The names by which TRL's trainer loads models, with `load` in their place."""
    if hasattr(module, "create_model_from_path"):
        return {"create_model_from_path": load}
    # TRL 0.24: getattr(transformers, AutoConfig.from_pretrained(name).architectures[0]).from_pretrained(name, ...)
    config = SimpleNamespace(from_pretrained=lambda name: SimpleNamespace(architectures=["loader"]))
    transformers = SimpleNamespace(loader=SimpleNamespace(from_pretrained=load))
    return {"AutoConfig": config, "transformers": transformers}


def grpo_config_fields() -> frozenset[str]:
    """Return the names that the installed TRL's `GRPOConfig(...)` accepts. They differ between versions."""
    return frozenset(field.name for field in fields(import_trl().GRPOConfig) if field.init)


def config_kwargs(**kwargs: Any) -> dict[str, Any]:
    """Return `kwargs` unchanged if the installed TRL's `GRPOConfig` accepts every name in it.

    Raises:
        ValueError: an unknown name; the message gives the nearest known one and the TRL version.
    """
    known = grpo_config_fields()
    for name in kwargs:
        if name not in known:
            raise ValueError(
                f"GRPOConfig of TRL {version('trl')} has no field {name!r}{did_you_mean(name, sorted(known)) or '.'} "
                "Remove it, or install a TRL version that has it."
            )
    return kwargs


def group_size(trainer: Any) -> int:
    """Return the rows per group of the trainer's current mode; TRL >= 1.0 has a number of its own for evaluation."""
    if trainer.model.training:
        return trainer.num_generations
    return getattr(trainer, "num_generations_eval", trainer.num_generations)


def prompt_limit(trainer: Any) -> int | None:
    """Return the tokens to which the trainer cuts prompts, from the left; None where it cuts none, as TRL >= 1.0."""
    return getattr(trainer.args, "max_prompt_length", None)


def stop_token_ids(trainer: Any) -> list[Any]:
    """Return what a completion that was not cut off may end with: every stop token, and padding.

    TRL < 1.15 knows one stop token, `eos_token_id`, later ones a list.
    """
    stops = getattr(trainer, "eos_token_ids", None) or [trainer.eos_token_id]
    return [*stops, pad_token_id(trainer)]


def pad_token_id(trainer: Any) -> int:
    """Return the id that the trainer pads with; TRL >= 1.0 leaves it to the tokenizer."""
    return trainer.pad_token_id if hasattr(trainer, "pad_token_id") else trainer._tokenizer.pad_token_id


def logps_and_entropies(
    trainer: Any, model: Any, batch: dict[str, Any], entropies: bool = True, batch_size: int | None = None
) -> tuple[Any, Any]:
    """Call TRL's `_get_per_token_logps_and_entropies` for the completions of a batch.

    Its keywords grow from version to version, and since 1.7 it returns three values. Everything in the batch that the
    installed version takes is handed over.

    Args:
        trainer: a GRPOTrainer.
        model: the policy or the reference.
        batch: what `_generate_and_score_completions` returned, or a part of it.
        entropies: compute entropies too.
        batch_size: rows per forward pass; None for all at once.

    Returns:
        Log-probabilities (rows, T) and entropies (rows, T) or None.
    """
    import torch

    prompts, completions = batch["prompt_ids"], batch["completion_ids"]
    taken = signature(import_trl().GRPOTrainer._get_per_token_logps_and_entropies).parameters
    result = trainer._get_per_token_logps_and_entropies(
        model,
        torch.cat([prompts, completions], dim=1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        completions.size(1),
        batch_size=batch_size,
        compute_entropy=entropies,
        **{name: value for name, value in batch.items() if name in taken},
    )
    return result[0], result[1]


def reference_logps(trainer: Any, batch: dict[str, Any], batch_size: int | None = None) -> Any:
    """Return log-probabilities (rows, T) of the completions of a batch under the trainer's reference.

    That is its reference model; without one, for an adapter, the policy without it, or with the copy of its beginning
    that TRL >= 1.0 keeps under the name "ref".

    Args:
        trainer: a GRPOTrainer with a reference.
        batch: as in `logps_and_entropies`.
        batch_size: as there.
    """
    with _reference(trainer) as model:
        return logps_and_entropies(trainer, model, batch, False, batch_size)[0]


@contextmanager
def _reference(trainer: Any) -> Iterator[Any]:
    if trainer.ref_model is not None:
        yield trainer.ref_model
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    use_adapter = getattr(import_module("trl.trainer.utils"), "use_adapter", None)
    kept = "ref" if "ref" in model.peft_config else None
    with use_adapter(model, adapter_name=kept) if use_adapter else model.disable_adapter():
        yield trainer.model


def tokenize_prompts(trainer: Any, prompts: Sequence[Any]) -> list[list[int]]:
    """Return the token ids that the trainer generates from for these prompts, texts or messages, without images.

    TRL >= 1.0 has a method for it. TRL 0.24 does it while it generates: without special tokens, cut to
    `max_prompt_length` on the tokenizer's truncation side. vLLM and transformers' paged generation put special tokens
    in; vLLM cuts on the left, the paged one nothing.
    """
    prompts = copy.deepcopy(list(prompts))
    if hasattr(trainer, "_tokenize_prompts"):
        return [list(ids) for ids in trainer._tokenize_prompts(prompts)[0]]
    trl, tokenizer = import_trl(), trainer.processing_class
    texts = [trl.maybe_apply_chat_template({"prompt": prompt}, tokenizer)["prompt"] for prompt in prompts]
    limit = trainer.max_prompt_length
    if trainer.use_vllm:
        return [ids[-limit:] if limit else ids for ids in tokenizer(text=texts)["input_ids"]]
    if getattr(trainer, "use_transformers_paged", False):
        return tokenizer(text=texts)["input_ids"]
    return tokenizer(text=texts, add_special_tokens=False, max_length=limit, truncation=True)["input_ids"]


def logps_result(logps: Any, entropies: Any) -> tuple[Any, ...]:
    """Return what TRL's `_get_per_token_logps_and_entropies` does; since 1.7 it has a third value, for MoE models."""
    return (logps, entropies) if trl_version() < (1, 7) else (logps, entropies, None)


def has_chunked_head() -> bool:
    """Whether TRL computes log-probabilities without the logits of whole sequences by itself (TRL >= 1.15)."""
    return trl_version() >= (1, 15)


@cache
def read_onto_indexed_cpu() -> None:
    """Let `torch.load` read onto the device "cpu:0", as it reads onto "cpu".

    Transformers up to 5.6 ask for that where several CPU processes resume (`Trainer._load_optimizer_and_scheduler`);
    torch knows no such place, and the run would end there. Later transformers ask for "cpu".
    """
    package = import_module("torch.serialization").register_package
    package(11, lambda storage: None, lambda storage, place: storage if place.startswith("cpu:") else None)


def rotate_checkpoints(trainer: Any, run: str) -> None:
    """Delete the oldest checkpoints of a run beyond `save_total_limit`, as transformers does after each save."""
    own = getattr(trainer, "_rotate_checkpoints", None)
    if own is not None:  # transformers 4
        own(use_mtime=True, output_dir=run)
        return
    best = trainer.state.best_model_checkpoint
    import_module("transformers.trainer_utils").rotate_checkpoints(run, trainer.args.save_total_limit, best, True)
