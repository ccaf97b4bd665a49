"""Run by torchrun: dead groups are rescued on two ranks; each rank checks its rows and prints a verdict."""

import os
import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object
from rescue_runs import GROUP, encoded, library_of, logged, make_trainer, parameters, prompts_of, watch
from torch.distributed import get_world_size

from tests.ranks import leave
from trl_grpo_ext.experience import ExperienceLibrary, RescueCallback

HINT = "Lessons from earlier attempts; use those that fit:\n[G0]. shift 3"


def rescued_on_two_ranks(folder, mode, rows_per_rank):
    """Only rank 0 has a library with something in it. With six rows a rank, groups of four lie on both ranks."""
    box = []

    def reward(prompts, completions, **kwargs):
        # One prompt in five is solved without a hint: an odd number of groups is due.
        values = [float(i % 2) for i in range(len(prompts))]
        return [
            value if box[0].is_rescuing or prompt[-1] in "27" else 0.0
            for value, prompt in zip(values, prompts, strict=True)
        ]

    library = library_of("shift 3") if int(os.environ["RANK"]) == 0 else ExperienceLibrary()
    callback = RescueCallback(library, mode=mode, visits=1, rerolls=1, position="prefix")
    settings = {"per_device_train_batch_size": rows_per_rank, "max_steps": 3}
    trainer = make_trainer(folder, reward, callbacks=[callback], **settings)
    box.append(trainer)
    seen = watch(trainer)
    trainer.train()
    found = []
    for inputs, batch in seen:
        world = gather_object([row["prompt"] for row in inputs])
        ids = gather_object(prompts_of(batch))
        advantages = trainer.accelerator.gather(batch["advantages"]).view(-1, GROUP)
        hinted = [row % GROUP == GROUP - 1 and world[row][-1] not in "27" for row in range(len(world))]
        if mode == "on_policy_hinted":
            mixed = [len(row) > 3 for row in ids]
        else:
            flags = batch.get("off_policy", torch.zeros(len(inputs)))
            mixed = trainer.accelerator.gather(flags).bool().tolist()
            assert ids == encoded(world)
        # A hinted completion is kept where it was solved; with one of each, every second one is.
        assert not any(now and not may for now, may in zip(mixed, hinted, strict=True))
        found.append(any(mixed))
        for group, values in enumerate(advantages.tolist()):
            is_mixed = mixed[group * GROUP + GROUP - 1]
            expected = [-0.25 / 0.5001] * 3 + [0.75 / 0.5001]
            if is_mixed:
                torch.testing.assert_close(torch.tensor(values), torch.tensor(expected), rtol=1e-3, atol=1e-4)
    assert any(found)
    counts = gather_object([sorted(callback.counts.items())])
    assert counts[0] == counts[1] and callback.counts
    values = gather_object([[logged(trainer, f"experience/{name}") for name in ("rescued_share", "hint_solve_rate")]])
    assert values[0][0] and max(values[0][0]) > 0
    tensors = torch.cat([value.flatten() for value in parameters(trainer).values()])
    ranks = trainer.accelerator.gather(tensors[None])
    assert torch.equal(ranks[0], ranks[1])


if __name__ == "__main__":
    for number, (mode, rows) in enumerate([("on_policy_hinted", 8), ("on_policy_hinted", 6), ("off_policy", 6)]):
        rescued_on_two_ranks(Path(sys.argv[1]) / str(number), mode, rows)
    assert get_world_size() == 2
    leave()
