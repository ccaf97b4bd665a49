"""Runs in LessonWorld, as several tests make them."""

from __future__ import annotations

from pathlib import Path

from tests.training_free.lesson_world import World, solved
from trl_grpo_ext.training_free import GateConfig, TrainingFreeConfig, TrainingFreeGRPO

GATE = GateConfig(min_pairs=20, look_every=20)


def learner(world: World, output_dir=None, concurrency=1, failing=0.0, lost=0.0, library=None, **settings):
    """A learner with 3 steps of 12 problems, gated unless `gate=None` is given."""
    policy, reflector = world.backends(concurrency, failing, lost)
    config = TrainingFreeConfig(**{"batch_size": 12, "gate": GATE, "seed": world.seed, **settings})
    return TrainingFreeGRPO(policy, config, reflector=reflector, output_dir=output_dir, library=library)


def train(run: TrainingFreeGRPO, world: World, problems=12, held_out=80, **more):
    rows = world.rows(held_out, 1000) if run.config.gate is not None else None
    return run.train(world.rows(problems), solved, rows, **more)


def score(run: TrainingFreeGRPO, world: World, experiences=None, problems=120):
    return run.evaluate(world.rows(problems, 5000), solved, experiences).mean


def export(run: TrainingFreeGRPO, folder: Path) -> bytes:
    path = folder / "export.json"
    run.library.export_file(path)
    return path.read_bytes()
