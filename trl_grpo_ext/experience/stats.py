"""The seven figures of the mission guide, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExperienceStats:
    """Figures of a library.

    Args:
        total_rollouts: rollouts seen, stored or not.
        total_stored: episodes ever stored.
        total_pruned: episodes retired for their age, their low advantage or a quota.
        current_library_size: episodes held now.
        avg_advantage: mean advantage of those; 0.0 for an empty library, as are the next two.
        max_advantage: largest advantage.
        min_advantage: smallest advantage.
    """

    total_rollouts: int
    total_stored: int
    total_pruned: int
    current_library_size: int
    avg_advantage: float
    max_advantage: float
    min_advantage: float

    def storage_efficiency(self) -> float:
        """Return stored / rollouts, 0.0 before the first rollout. The guide recommends 0.3 to 0.5."""
        return self.total_stored / self.total_rollouts if self.total_rollouts else 0.0

    def retention_rate(self) -> float:
        """Return current size / stored, 0.0 before the first episode."""
        return self.current_library_size / self.total_stored if self.total_stored else 0.0

    def summary(self) -> str:
        """Return the guide's eight lines."""
        efficiency = f"{100 * self.storage_efficiency():.1f}%"
        return "\n".join(
            [
                "GRPO Stats:",
                f"Total rollouts: {self.total_rollouts}",
                f"Stored: {self.total_stored} ({efficiency} of rollouts)",
                f"Pruned: {self.total_pruned}",
                f"Current library: {self.current_library_size} experiences",
                f"Advantage: avg={self.avg_advantage:.3f}, max={self.max_advantage:.3f}, min={self.min_advantage:.3f}",
                f"Storage efficiency: {efficiency}",
                f"Retention rate: {100 * self.retention_rate():.1f}%",
            ]
        )
