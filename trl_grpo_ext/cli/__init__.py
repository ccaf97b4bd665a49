"""The `grpo-ext` command."""

from trl_grpo_ext.cli.main import main

__all__ = ["main"]
