"""In a process of its own: without our import nothing loads, and compressing takes the memory of tensors, not of models.

Mapped pages do not count. Both stand in one test, since a process that imports transformers is most of its time.
"""

import subprocess
import sys

import pytest

SCRIPT = """
import sys, threading, time
import torch
from pathlib import Path
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

try:
    AutoModelForCausalLM.from_pretrained(sys.argv[4])
    raise SystemExit("the delta was loaded by a transformers that does not know of deltas")
except ValueError as error:
    print("bitdelta" in str(error))

import trl_grpo_ext.bitdelta as bitdelta

torch.set_num_threads(1)
folder, layers, side = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def anonymous():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

for name, step in (("base", 0), ("tuned", 1)):
    (folder / name).mkdir()
    for layer in range(layers):
        generator = torch.Generator().manual_seed(layer)
        weight = torch.randn(side, side, generator=generator) * 0.02
        weight += step * torch.randn(side, side, generator=generator) * 1e-3
        file = f"model-{layer + 1:05d}-of-{layers:05d}.safetensors"
        save_file({f"layers.{layer}.weight": weight.bfloat16()}, folder / name / file)
    names = ", ".join(f'"layers.{n}.weight": "model-{n + 1:05d}-of-{layers:05d}.safetensors"' for n in range(layers))
    (folder / name / "model.safetensors.index.json").write_text('{"weight_map": {%s}}' % names)
del weight
before, peak, done = anonymous(), [0], threading.Event()

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
bitdelta.compress(folder / "base", folder / "tuned", folder / "delta")
bitdelta.export(folder / "delta", folder / "out")
done.set()
watcher.join()
print(peak[0] - before, 2 * side * side)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RssAnon is Linux's")
def test_without_the_import_loading_fails_closed_and_peak_memory_is_a_few_tensors(tmp_path, made):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), "16", "1024", str(made[0])]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    refused, figures = result.stdout.split("\n", 1)
    assert refused == "True"
    peak, tensor = map(int, figures.split())
    # 16 tensors of 2 MB: two models would be 64 MB.
    assert peak < 2 * tensor + 30_000_000, (peak, tensor)
