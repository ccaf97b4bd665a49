"""Peak anonymous memory of compressing and exporting a synthetic checkpoint, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from bitdelta_parts.tensors import normal
from trl_grpo_ext.bitdelta import compress, export


def anonymous() -> int:
    """Return the bytes of anonymous memory; mapped pages do not count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


def write_checkpoints(folder: Path, layers: int, side: int) -> None:
    """Write a base and a fine-tune of it, one file per layer."""
    # Rolled, one draw makes as many layers as are wanted in the time that writing them takes.
    start, step = normal((side, side), 0, 0.02), normal((side, side), 1, 1e-3)
    for name in ("base", "tuned"):
        (folder / name).mkdir()
        weight_map = {f"layers.{layer}.weight": f"model-{layer}.safetensors" for layer in range(layers)}
        for layer, (tensor, file) in enumerate(weight_map.items()):
            weight = start.roll(layer, 0)
            if name == "tuned":
                weight += step.roll(2 * layer, 0)
            save_file({tensor: weight.bfloat16()}, folder / name / file)
        (folder / name / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def child(folder: Path, layers: int, side: int) -> None:
    """Compress and export, and print the peak above what stood before."""
    write_checkpoints(folder, layers, side)
    before, peak, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    compress(folder / "base", folder / "tuned", folder / "delta")
    export(folder / "delta", folder / "out")
    done.set()
    watcher.join()
    print(peak[0] - before)


def memory(script: str, layers: int, side: int) -> dict[str, Any]:
    """Measure the peak in a process of its own, which runs `child`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, script, "--memory-child", folder, str(layers), str(side)]
        peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    tensor = 2 * side * side
    sizes = {"checkpoint_MB": layers * tensor / 1e6, "largest_tensor_MB": tensor / 1e6, "peak_MB": peak / 1e6}
    figures = {name: round(size, 1) for name, size in sizes.items()}
    return {"arm": "memory, compress and export"} | figures | {"above_MB": round((peak - 2 * tensor) / 1e6, 1)}
