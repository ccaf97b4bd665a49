"""GSM8K's JSON Lines files -> a LLaMA-Factory dataset folder with `gsm8k` and `gsm8k_test` in dataset_info.json.

    python examples/llamafactory/prepare_gsm8k.py --source path/to/grade_school_math/data --output data

`--source` holds train.jsonl and test.jsonl with the keys `question` and `answer`, as OpenAI publishes them. An existing
dataset_info.json in `--output` keeps its other entries.
"""

import argparse
import json
import shutil
from pathlib import Path

COLUMNS = {"prompt": "question", "response": "answer"}
SYSTEM = "Solve the problem step by step. End with a line '#### ' followed by the answer, a number."


def prepare(source: Path, output: Path) -> dict[str, dict[str, object]]:
    """Copy the files of `source` to `output`, describe them in dataset_info.json, and return the new entries."""
    output.mkdir(parents=True, exist_ok=True)
    entries: dict[str, dict[str, object]] = {}
    for split, name in (("train", "gsm8k"), ("test", "gsm8k_test")):
        shutil.copyfile(source / f"{split}.jsonl", output / f"{name}.jsonl")
        entries[name] = {"file_name": f"{name}.jsonl", "formatting": "alpaca", "columns": COLUMNS}
    info = output / "dataset_info.json"
    present = json.loads(info.read_text(encoding="utf-8")) if info.exists() else {}
    info.write_text(json.dumps(present | entries, indent=2) + "\n", encoding="utf-8")
    return entries


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("data"))
    arguments = parser.parse_args()
    print(f"{', '.join(prepare(arguments.source, arguments.output))} in {arguments.output / 'dataset_info.json'}")
    print(f"A system prompt that asks for the form the reward reads, for the YAML:\ndefault_system: {SYSTEM!r}")
