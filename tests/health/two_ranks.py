"""Run by torchrun: a run with dead groups, watched on every rank, and reported at its end."""

import json
import os
import sys
from pathlib import Path

from tests.conformance.runs import extended
from tests.ranks import leave
from trl_grpo_ext.health import HealthCallback
from trl_grpo_ext.report import ReportCallback


def nothing(completions, **kwargs):
    return [0.0] * len(completions)


def findings_of(model: Path, folder: Path, **settings: object) -> list[dict[str, str]]:
    callback = HealthCallback()
    extended(model, folder, reward=nothing, callbacks=[callback, ReportCallback()], max_steps=11, **settings).train()
    return [vars(item) for item in callback.findings]


def main(model: Path, folder: Path) -> None:
    found = findings_of(model, folder)
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
