"""Adapters from the reward conventions of other projects to TRL's. Importing them needs the standard library only."""

from trl_grpo_ext.rewards.adapters.base import RewardAdapter
from trl_grpo_ext.rewards.adapters.classifier import ClassifierReward
from trl_grpo_ext.rewards.adapters.endpoint import HTTPReward
from trl_grpo_ext.rewards.adapters.http_json import Service, ServiceError
from trl_grpo_ext.rewards.adapters.judge import JudgeReward
from trl_grpo_ext.rewards.adapters.judge_ranking import JudgeRanking
from trl_grpo_ext.rewards.adapters.openrlhf import OpenRLHFEndpoint, OpenRLHFReward
from trl_grpo_ext.rewards.adapters.rubric import RubricReward
from trl_grpo_ext.rewards.adapters.scalar import ScalarReward
from trl_grpo_ext.rewards.adapters.swift import SwiftReward
from trl_grpo_ext.rewards.adapters.trl import TRLReward
from trl_grpo_ext.rewards.adapters.verl import VerlReward
from trl_grpo_ext.rewards.errors import RewardError

__all__ = [
    "ClassifierReward",
    "HTTPReward",
    "JudgeRanking",
    "JudgeReward",
    "OpenRLHFEndpoint",
    "OpenRLHFReward",
    "RewardAdapter",
    "RewardError",
    "RubricReward",
    "ScalarReward",
    "Service",
    "ServiceError",
    "SwiftReward",
    "TRLReward",
    "VerlReward",
]
