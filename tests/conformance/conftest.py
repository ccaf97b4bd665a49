"""One tiny model for all conformance tests."""

from pathlib import Path

import pytest

from tests.conformance.runs import build_model


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def ours_only(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the calls of our loss, and fails on one of TRL's."""
    import trl_grpo_ext.trainer as module
    from trl_grpo_ext import import_trl

    calls: list[int] = []
    policy_loss = module.policy_loss

    def counted(*args, **kwargs):
        calls.append(1)
        return policy_loss(*args, **kwargs)

    def forbidden(*args, **kwargs):
        raise AssertionError("TRL's loss was called")

    monkeypatch.setattr(module, "policy_loss", counted)
    monkeypatch.setattr(import_trl().GRPOTrainer, "_compute_loss", forbidden)
    return calls
