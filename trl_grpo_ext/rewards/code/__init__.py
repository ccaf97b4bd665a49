"""Rewards for code: unit tests and compiling, with the model's program in a process that can't reach its judge."""

from trl_grpo_ext.rewards.code.programs import extract_code, python_compiles
from trl_grpo_ext.rewards.code.reward import CodeTests, PythonCompiles, code_tests_reward, python_compiles_reward

__all__ = [
    "CodeTests",
    "PythonCompiles",
    "code_tests_reward",
    "extract_code",
    "python_compiles",
    "python_compiles_reward",
]
