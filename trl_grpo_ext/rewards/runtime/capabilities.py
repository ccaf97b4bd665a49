"""What isolation there is here, found out and told."""

import functools
import logging

from trl_grpo_ext.rewards.runtime.process import Capabilities, WorkerProcess
from trl_grpo_ext.rewards.runtime.settings import WorkerSettings

logger = logging.getLogger(__name__)


@functools.cache
def warn_downgrade(reasons: tuple[str, ...]) -> None:
    """Log once per process that workers have less isolation than their settings ask for."""
    logger.warning("Reward workers run with less isolation than asked for: %s.", "; ".join(reasons))


def unavailable_message(name: str, capabilities: Capabilities) -> str:
    """Return the sentence for a reward that asks for a sandbox in vain."""
    return (
        f"Reward {name!r} runs untrusted programs and asks for sandbox=True, but here they can't be isolated "
        f"({'; '.join(capabilities.reasons) or 'network=True or read_only=False'}). Allow namespaces to the container, "
        "use a RewardRuntime with network=False, read_only=True and namespaces=True, or accept the risk with "
        "allow_unsandboxed=True."
    )


@functools.cache
def sandbox_capabilities(settings: WorkerSettings | None = None) -> Capabilities:
    """Find out, by starting a worker, what isolation the kernel grants here. Remembered for each settings.

    Args:
        settings: by default those of `RewardRuntime()`.

    Returns:
        The isolation; its `sandbox` says whether rewards with `sandbox=True` can run.
    """
    worker = WorkerProcess(settings or WorkerSettings(), quiet=True)
    try:
        return worker.capabilities()
    finally:
        worker.kill()
