"""SFT, then GRPO, on a model small enough for one CPU core: see `--stage grpo` learn in a few minutes.

    python examples/quickstart/run.py --output quickstart              (or: make quickstart)
    python examples/quickstart/run.py --output quickstart --control    (the same with shuffled rewards: must not learn)

It makes the task and the model (task.py), runs `llamafactory-cli train` on sft.yaml and on grpo.yaml, and measures
accuracy on 1,000 problems that neither stage has seen. Needs an environment with `trl-grpo-ext[llamafactory]`; no GPU,
no network. About 3 minutes of one core. Exit code 1 and one sentence if greedy accuracy did not start between 0.20 and
0.45, or did not at least double and reach 0.55 (with --control: if it rose).
"""

import os

os.environ |= {
    "OMP_NUM_THREADS": "1",  # this small, a second thread costs more than it brings, above all on a busy machine
    "CUDA_VISIBLE_DEVICES": "",
    "FORCE_TORCHRUN": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from stage import CLI, train

# SFT stops at the checkpoint that answers about this share of 500 *training* problems: with a fixed number of steps
# the start would depend on the machine's rounding. The held-out problems decide nothing.
START_TARGET = 0.30
FIRST_STEP = 150
CONTROL = ("output_dir=control", "grpo_reward_control=shuffled")


def choose_start(output: Path) -> int:
    """Copy the SFT checkpoint nearest to START_TARGET to `start/`, delete the others; returns its step."""
    from evaluate import evaluate
    from task import problems

    questions = problems()[0][:500]
    checkpoints = {int(path.name.split("-")[1]): path for path in output.glob("sft/checkpoint-*")}
    accuracies: dict[int, float] = {}
    for step in sorted(step for step in checkpoints if step >= FIRST_STEP):
        accuracies[step] = evaluate(checkpoints[step], questions, modes=["greedy"])["greedy"]
        if accuracies[step] >= START_TARGET:
            break
    chosen = min(accuracies, key=lambda step: abs(accuracies[step] - START_TARGET))
    shutil.copytree(checkpoints[chosen], output / "start")
    for path in checkpoints.values():
        shutil.rmtree(path)
    return chosen


def prepare(output: Path, folders: list[str]) -> None:
    """Clear what an earlier run left; a folder that is not the quickstart's is left alone."""
    if output.exists() and any(output.iterdir()) and not (output / "data" / "addition_heldout.json").exists():
        sys.exit(f"{output} holds other files: give --output an empty folder.")
    for name in folders:
        shutil.rmtree(output / name, ignore_errors=True)


def run(output: Path, is_control: bool) -> dict[str, Any]:
    """All phases; returns the report that is also written as JSON."""
    from evaluate import evaluate
    from task import make_task

    seconds: dict[str, float] = {}
    steps: dict[str, int] = {}

    def timed(name: str, function: Any, *args: Any) -> Any:
        began = time.perf_counter()
        result = function(*args)
        seconds[name] = round(time.perf_counter() - began, 1)
        return result

    folder = "control" if is_control else "grpo"
    reuse = is_control and (output / "start" / "model.safetensors").exists()
    prepare(output, [folder] if reuse else ["model", "sft", "start", folder])
    if not reuse:
        timed("task", make_task, output)
        timed("sft", train, output, "sft.yaml", "sft")
        steps["sft"] = timed("choose start", choose_start, output)
    before = timed("evaluate before", evaluate, output / "start")
    timed(folder, train, output, "grpo.yaml", folder, *(CONTROL if is_control else ()))
    after = timed("evaluate after", evaluate, output / folder)
    state = json.loads((output / folder / "trainer_state.json").read_text(encoding="utf-8"))
    rewards = [(entry["step"], entry["reward"]) for entry in state["log_history"] if "reward" in entry]
    steps[folder] = state["global_step"]
    title = "negative control: shuffled rewards" if is_control else "GRPO on two-digit addition"
    report = {"title": title, "before": before, "after": after, "steps": steps, "seconds": seconds}
    write_report(output, "control" if is_control else "report", report | {"rewards": rewards})
    return report


def write_report(output: Path, stem: str, report: dict[str, Any]) -> None:
    from report import plot

    (output / f"{stem}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    plot(output / f"{stem}.png", report["rewards"], report)


def main() -> None:
    from report import table, verdict

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("quickstart"))
    parser.add_argument("--control", action="store_true", help="shuffle the rewards: accuracy must not rise")
    arguments = parser.parse_args()
    if not CLI.exists():
        sys.exit(f"No llamafactory-cli beside {sys.executable}: install this package with its llamafactory extra.")
    arguments.output.mkdir(parents=True, exist_ok=True)
    report = run(arguments.output.resolve(), arguments.control)
    print(f"\n{table(report)}\n")
    model = arguments.output / ("control" if arguments.control else "grpo")
    print(f"picture: {arguments.output / ('control.png' if arguments.control else 'report.png')}\nmodel:   {model}")
    if (model / "report.html").exists():
        print(f"report:  {model / 'report.html'} (opens offline in any browser)")
    if not arguments.control:
        print(
            f"chat:    {os.path.relpath(CLI)} chat --model_name_or_path {model} --do_sample false --max_new_tokens 8"
        )
        print("         ask 47+85= and read the answer backwards (231 is 132); type clear before the next question")
    failure = verdict(report["before"], report["after"], arguments.control)
    if failure:
        sys.exit(failure)


if __name__ == "__main__":
    main()
