"""Run by torchrun: stock and extended trainers on two gloo ranks; groups of four rows lie on both ranks."""

import sys
from pathlib import Path

from torch.distributed import get_world_size

from tests.batching.models import ALL, SIZES, build, make, uneven
from tests.batching.test_zero_advantages import alike_for_two_prompts
from tests.conformance.runs import assert_moved, assert_same, parameters
from tests.ranks import leave


def run(extended: bool, folder: Path, **settings):
    sizes = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2, "reward": alike_for_two_prompts}
    trainer = make(extended, build("qwen2", SIZES), folder, **sizes | settings)
    before = parameters(trainer)
    trainer.train()
    assert_moved(parameters(trainer), before)
    return parameters(trainer)


if __name__ == "__main__":
    theirs = run(False, Path(sys.argv[1]), loss_type="dapo")
    assert_same(run(True, Path(sys.argv[1]), loss_type="dapo", skip_zero_advantages=True, **ALL), theirs, 1e-5)
    # Whole groups on a rank, whose suffixes share a row.
    packed = {"per_device_train_batch_size": 4, "prompt_copies": 12, "max_completion_length": 5, "reward": uneven}
    theirs = run(False, Path(sys.argv[1]), **packed)
    assert_same(run(True, Path(sys.argv[1]), **packed, **ALL), theirs, 1e-5)
    assert get_world_size() == 2
    leave()
