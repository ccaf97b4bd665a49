"""Run by torchrun: one step of a group that lies on two ranks, one row of which is skipped."""

import os
import sys
from pathlib import Path

from adapter_runs import GROUP, dataset, make_model, make_tokenizer, make_trainer

from tests.ranks import leave
from trl_grpo_ext.rewards.skips import ExcludeSkipped

RANK = int(os.environ["RANK"])
# What the two rows of each rank get: mean 3 over the valid rows, 2.25 with the skipped one as 0.
REWARDS = ([1.0, None], [2.0, 6.0])


def by_rank(completions, **kwargs):
    return REWARDS[RANK]


tokenizer = make_tokenizer()
trainer = make_trainer(
    make_model(tokenizer), tokenizer, Path(sys.argv[1]), [by_rank], dataset({}), 1, [ExcludeSkipped()],
    per_device_train_batch_size=GROUP // 2, scale_rewards="none",
)  # fmt: skip
compute_loss, used = trainer._compute_loss, []
trainer._compute_loss = lambda model, inputs: used.extend(inputs["advantages"].tolist()) or compute_loss(model, inputs)
trainer.train()
# TRL shuffles the rows of a rank.
print(f"rank {RANK}: {sorted(used)} of {list(trainer._logs['advantages'])}", flush=True)
leave()
