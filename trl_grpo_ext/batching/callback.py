"""The model leaves training with the attention that it came with."""

from typing import Any

from transformers import TrainerCallback

from trl_grpo_ext.batching.passes import LogProbPasses


class PutAttentionBack(TrainerCallback):
    """Undoes what the shared-prompt forward changed on the models, when training ends.

    Args:
        passes: the trainer's.
    """

    def __init__(self, passes: LogProbPasses) -> None:
        self.passes = passes

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer."""
        self.passes.put_back()
