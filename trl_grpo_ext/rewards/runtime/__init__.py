"""Reward functions in worker processes: deadlines that kill, limits, isolation, cached results. Standard library only;
cloudpickle where a function's code has to travel."""

from trl_grpo_ext.rewards.errors import RewardError
from trl_grpo_ext.rewards.runtime.capabilities import sandbox_capabilities
from trl_grpo_ext.rewards.runtime.errors import RewardLoadError, SandboxUnavailable
from trl_grpo_ext.rewards.runtime.pool import RewardRuntime, default_runtime
from trl_grpo_ext.rewards.runtime.process import Capabilities
from trl_grpo_ext.rewards.runtime.reward import IsolatedReward

__all__ = [
    "Capabilities",
    "IsolatedReward",
    "RewardError",
    "RewardLoadError",
    "RewardRuntime",
    "SandboxUnavailable",
    "default_runtime",
    "sandbox_capabilities",
]
