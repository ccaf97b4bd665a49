"""`GRPOTrainer` under the documents' names, over `ExtendedGRPOTrainer`."""

from __future__ import annotations

import warnings
from typing import Any

from trl_grpo_ext.gym.rows import trl_dataset, trl_rewards
from trl_grpo_ext.gym.settings import GRPOConfig
from trl_grpo_ext.gym.translation import gradient_config


def _one(first: str, value: Any, second: str, other: Any) -> Any:
    if value is not None and other is not None:
        raise ValueError(f"{first} and {second} are two names of one argument; give one of them.")
    return other if value is None else value


def _check_reference(model: Any, ref_model: Any, peft_config: Any) -> None:
    if ref_model is not None and (peft_config is not None or hasattr(model, "peft_config")):
        raise ValueError(
            "ref_model does not work with an adapter: the reference is the model without it; leave it out."
        )
    if ref_model is not None and not (hasattr(ref_model, "forward") and hasattr(ref_model, "config")):
        raise TypeError(
            f"ref_model must be a loaded model of transformers, not {type(ref_model).__name__}; rewards go to "
            "reward_model=."
        )
    if ref_model is not None and ref_model is model:
        raise ValueError("ref_model is the model that is trained, to which the KL is always 0: give a second copy.")


class GRPOTrainer:
    """Trains with `ExtendedGRPOTrainer`, which is made as soon as there is data: here, or in `train`.

    From then on every attribute is that trainer's (`save_model`, `compress_deltas`, `evaluate`, `state`, ...).

    Args:
        model: a model, or its folder or name.
        ref_model: the reference of the KL penalty; by default TRL loads it from the model's own folder when `beta` is
            above 0.
        config: a `GRPOConfig`, or one of TRL's.
        reward_model: a function of (query, response), of (prompt, response, answer), or of TRL; a name, a reward model,
            or several.
        tokenizer: of the model; its own by default.
        train_dataset: prompts: a dataset, or rows.
        eval_dataset: evaluated after every epoch at `temperature_eval`, unless `eval_strategy` says otherwise.
        args: another name of config.
        reward_funcs: another name of reward_model.
        processing_class: another name of tokenizer.
        **trl: other arguments of TRL's trainer, such as callbacks and peft_config.

    Raises:
        TypeError: a config or a reference of another kind.
        ValueError: settings, rewards and data that do not work together.
    """

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        config: Any = None,
        reward_model: Any = None,
        *,
        tokenizer: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        args: Any = None,
        reward_funcs: Any = None,
        processing_class: Any = None,
        **trl: Any,
    ) -> None:
        _check_reference(model, ref_model, trl.get("peft_config"))
        config = _one("config", config, "args", args)
        self._config = GRPOConfig() if config is None else config
        given = vars(self._config) if isinstance(self._config, GRPOConfig) else {}
        reward = _one("reward_model", reward_model, "reward_funcs", reward_funcs)
        config_reward = _one("reward_model", given.get("reward_model"), "reward_funcs", given.get("reward_funcs"))
        self._reward = _one("reward_model", reward, "the config's reward_model", config_reward)
        self._args = _trl_config(self._config)
        self._model, self._ref_model = model, _used_reference(ref_model, self._args)
        self._tokenizer = _one("tokenizer", tokenizer, "processing_class", processing_class)
        self._eval_dataset = _one("eval_dataset", eval_dataset, "the config's eval_dataset", given.get("eval_dataset"))
        self._rest = trl
        self._trainer: Any = None
        data = _one("train_dataset", train_dataset, "the config's train_dataset", given.get("train_dataset"))
        if data is not None:
            self._begin(data, None)

    def _begin(self, train_dataset: Any, eval_dataset: Any) -> None:
        train_dataset = trl_dataset(train_dataset, "train_dataset")
        eval_dataset = _one("eval_dataset", eval_dataset, "the constructor's eval_dataset", self._eval_dataset)
        arguments = {
            "train_dataset": train_dataset,
            "eval_dataset": trl_dataset(eval_dataset, "eval_dataset"),
            "processing_class": self._tokenizer,
            **self._rest,
        }
        if eval_dataset is not None:
            self._args = _evaluating(self._config, self._args)
        rewards = trl_rewards(self._reward, train_dataset.column_names)
        self._trainer = _trainer(self._model, rewards, self._args, self._ref_model, arguments)

    def train(self, train_dataset: Any = None, eval_dataset: Any = None, **trl: Any) -> Any:
        """Train, and return what TRL's `train` does.

        Args:
            train_dataset: prompts, where the constructor was given none: a dataset, or rows.
            eval_dataset: see the constructor.
            **trl: arguments of TRL's `train`, such as resume_from_checkpoint.

        Raises:
            ValueError: no data, data twice, or data that does not fit the rewards.
        """
        if self._trainer is None and train_dataset is None:
            raise ValueError(
                "there is no training data: give train(train_dataset=...), or give it to the constructor."
            )
        if self._trainer is not None and not (train_dataset is None and eval_dataset is None):
            raise ValueError("this trainer has its data already: make a new GRPOTrainer for other data.")
        if self._trainer is None:
            self._begin(train_dataset, eval_dataset)
        return self._trainer.train(**trl)

    def __getattr__(self, name: str) -> Any:
        trainer = vars(self).get("_trainer")
        if trainer is None:
            raise AttributeError(f"GRPOTrainer has no {name!r} before it has data: give train(train_dataset=...).")
        return getattr(trainer, name)


def _evaluating(config: Any, args: Any) -> Any:
    """The settings for a run with evaluation data; made anew, since TRL checks more of them then."""
    if not isinstance(config, GRPOConfig) or "eval_strategy" in vars(config):
        return args
    return gradient_config(GRPOConfig(**vars(config), eval_strategy="epoch"))


def _trl_config(config: Any) -> Any:
    from trl_grpo_ext.config import ExtendedGRPOConfig, import_trl

    if isinstance(config, GRPOConfig):
        return gradient_config(config)
    if not isinstance(config, import_trl().GRPOConfig):
        raise TypeError(f"config must be a GRPOConfig of trl_grpo_ext.gym or of TRL, not {type(config).__name__}.")
    return ExtendedGRPOConfig.from_grpo_config(config)


def _used_reference(ref_model: Any, args: Any) -> Any:
    if ref_model is not None and not args.needs_reference:
        warnings.warn("ref_model is not used: beta (kl_coef) is 0. Set it above 0 for a KL penalty.", stacklevel=3)
        return None
    return ref_model


def _trainer(model: Any, rewards: list[Any], args: Any, ref_model: Any, arguments: dict[str, Any]) -> Any:
    from trl_grpo_ext._compat import given_reference
    from trl_grpo_ext.trainer import ExtendedGRPOTrainer

    with given_reference(ref_model, model):
        return ExtendedGRPOTrainer(model, rewards, args, **arguments)
