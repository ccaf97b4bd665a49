"""One `llamafactory-cli train` of the quickstart, with its output in a log file and a line of progress now and then."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CLI = Path(sys.executable).parent / "llamafactory-cli"


def train(output: Path, config: str, folder: str, *overrides: str) -> None:
    """Run `llamafactory-cli train` in the output folder; its own output goes to <folder>.log."""
    log = output / f"{folder}.log"
    command = [str(CLI), "train", str(HERE / config), *overrides]
    print(f"{folder}: llamafactory-cli train {config} {' '.join(overrides)}".rstrip(), flush=True)
    environment = os.environ | {"HF_HOME": str(output / "cache")}
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, cwd=output, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        shown = 0.0
        try:
            while process.poll() is None:
                time.sleep(1)
                shown = show_progress(output / folder / "trainer_log.jsonl", shown)
        finally:
            process.kill()
    if process.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        sys.exit(f"{tail}\nllamafactory-cli train {config} ended with exit code {process.returncode}; see {log}.")


def show_progress(path: Path, shown: float) -> float:
    """Print LLaMA-Factory's last log line once per fifth of the run; returns the percentage shown."""
    lines = [line for line in path.read_text(encoding="utf-8").split("\n")[:-1] if line] if path.exists() else []
    entry = json.loads(lines[-1]) if lines else {}
    if "loss" not in entry or entry["percentage"] < shown + 20:  # the very last line is a summary without a loss
        return shown
    values = ", ".join(f"{name} {entry[name]:.3f}" for name in ("loss", "reward") if name in entry)
    print(f"  step {entry['current_steps']} of {entry['total_steps']}: {values}", flush=True)
    return entry["percentage"]
