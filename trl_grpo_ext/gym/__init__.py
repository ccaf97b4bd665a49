"""The mission documents' names: their Python snippets run with only the import line changed (docs/gym.md).

    from trl_grpo_ext.gym import GRPOConfig, GRPOTrainer

    config = GRPOConfig(group_size=5, max_epochs=3, beta=0.1)
    trainer = GRPOTrainer(model=model, ref_model=ref_model, tokenizer=tokenizer, config=config, reward_model=reward_fn)
    trainer.train(train_dataset=train_dataset)

Thin names: `GRPOTrainer` trains with `ExtendedGRPOTrainer`, `TrainingFreeGRPO` is that of `training_free`,
`BitDeltaConfig` that of `bitdelta`. Importing this package imports neither torch nor TRL.
"""

from typing import TYPE_CHECKING, Any

from trl_grpo_ext.gym.lessons import TrainingFreeGRPO
from trl_grpo_ext.gym.settings import GRPOConfig
from trl_grpo_ext.gym.trainer import GRPOTrainer

if TYPE_CHECKING:
    from trl_grpo_ext.bitdelta import BitDeltaConfig

ExperimentConfig = GRPOConfig
GRPOArguments = GRPOConfig

__all__ = ["BitDeltaConfig", "ExperimentConfig", "GRPOArguments", "GRPOConfig", "GRPOTrainer", "TrainingFreeGRPO"]


def __getattr__(name: str) -> Any:
    if name != "BitDeltaConfig":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Later, since bitdelta imports torch and transformers.
    from trl_grpo_ext.bitdelta import BitDeltaConfig

    return BitDeltaConfig
