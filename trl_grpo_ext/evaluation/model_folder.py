"""Samples of a model folder or an adapter folder, drawn batch by batch into a file that a killed run goes on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_grpo_ext.evaluation.generation import Sampling, batches, complete_batch, inference, sample_rows
from trl_grpo_ext.evaluation.samples import Row, SampleLog, SamplesError

FORMATS = ("auto", "chat", "text")
_WEIGHTS = ("*.safetensors", "*.bin", "adapter_config.json", "config.json")


class ModelFolder:
    """A model with its tokenizer, ready to draw samples.

    Args:
        path: a folder with `config.json`, or with `adapter_config.json` of a PEFT adapter, whose base is loaded by the
            name that it gives.
        prompt_format: "chat" puts a text prompt into a user's turn of the tokenizer's chat template, "text" hands it on
            as it is, with the special tokens that the tokenizer adds; "auto", the default, is "chat" where the tokenizer
            has a chat template. Prompts that are messages always take the template.
        device: "auto", the default, is the first GPU where there is one.

    Raises:
        ValueError: no such format, no model in the folder, no chat template where one is needed, or no stop token.
        ImportError: an adapter without PEFT installed.
    """

    def __init__(self, path: str | Path, prompt_format: str = "auto", device: str = "auto") -> None:
        self.path = Path(path)
        if prompt_format not in FORMATS:
            raise ValueError(f"prompt_format must be one of {', '.join(FORMATS)}, not {prompt_format!r}.")
        if not is_model_folder(self.path):
            raise ValueError(
                f"{path} has neither config.json nor adapter_config.json: name a folder of a saved model."
            )
        self.tokenizer = AutoTokenizer.from_pretrained(self._tokenizer_folder())
        has_template = bool(getattr(self.tokenizer, "chat_template", None))
        if prompt_format == "chat" and not has_template:
            raise ValueError(f"{path}: the tokenizer has no chat template; use the prompt format 'text'.")
        self.is_chat = has_template if prompt_format == "auto" else prompt_format == "chat"
        self.model = self._load()
        self.model.to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.stops = self._stops()

    def _tokenizer_folder(self) -> str:
        if (self.path / "tokenizer_config.json").exists() or not (self.path / "adapter_config.json").exists():
            return str(self.path)
        return str(json.loads((self.path / "adapter_config.json").read_text())["base_model_name_or_path"])

    def _load(self) -> Any:
        if not (self.path / "adapter_config.json").exists():
            return AutoModelForCausalLM.from_pretrained(self.path, dtype="auto").eval()
        from peft import AutoPeftModelForCausalLM

        return AutoPeftModelForCausalLM.from_pretrained(self.path, dtype="auto").eval()

    def _stops(self) -> list[int]:
        told = self.model.generation_config.eos_token_id
        stops = [*(told if isinstance(told, list) else [told]), self.tokenizer.eos_token_id]
        found = sorted({stop for stop in stops if stop is not None})
        if not found:
            raise ValueError(f"{self.path}: neither generation_config.json nor the tokenizer has an eos token.")
        return found

    @property
    def pad(self) -> int:
        """The token to pad with; the first stop token where the tokenizer has none."""
        pad = self.tokenizer.pad_token_id
        return self.stops[0] if pad is None else int(pad)

    def encode(self, prompt: Any) -> list[int]:
        """Return the token ids of a prompt, text or messages.

        Raises:
            ValueError: messages, and a tokenizer without chat template.
        """
        if isinstance(prompt, str) and not self.is_chat:
            return list(self.tokenizer(prompt)["input_ids"])
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(f"{self.path}: a prompt is messages, and the tokenizer has no chat template.")
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def fingerprint(self, rows: Sequence[Mapping[str, Any]], sampling: Sampling) -> str:
        """Return what is the same for two runs that may share a file of samples: weights, settings, data."""
        files = sorted(file for pattern in _WEIGHTS for file in self.path.glob(pattern))
        weights = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        told = [weights, asdict(sampling), self.is_chat, list(rows)]
        return hashlib.sha256(json.dumps(told, default=str, sort_keys=True).encode()).hexdigest()[:16]

    def sample(
        self,
        rows: Sequence[Mapping[str, Any]],
        sampling: Sampling,
        log: SampleLog,
        *,
        given: Sequence[Any] | None = None,
    ) -> list[Row]:
        """Draw the samples of all rows into a file and return them; batches that are there already are not drawn again.

        Args:
            rows: one per problem, with `prompt` and the scorers' columns.
            sampling: how to draw.
            log: the file; each batch is on the disk before the next is drawn.
            given: the prompts that the model gets in place of the rows' own, for experiences in them.

        Raises:
            SamplesError: the file holds samples of another model, other settings or other data.
        """
        prompts = [row["prompt"] for row in rows] if given is None else list(given)
        run = self.fingerprint([*rows, {"given": prompts}], sampling)
        there = log.rows()
        if any(row.get("run") != run for row in there):
            raise SamplesError(
                f"{log.path} holds samples of another model, other settings or other data; remove it, or name another "
                "output."
            )
        missing = self._whole_batches(log, there, len(rows), sampling)
        ids = [self.encode(prompt) for prompt in prompts]
        own = [
            {"run": run, **row} | ({} if prompt == row["prompt"] else {"injected_prompt": prompt})
            for row, prompt in zip(rows, prompts, strict=True)
        ]
        with inference(self.model):
            for batch in sample_rows(own, ids, sampling, self._draw(sampling), self._decode, missing):
                log.write(batch)
        return sorted(log.rows(), key=lambda row: row["number"])

    def _draw(self, sampling: Sampling) -> Any:
        return lambda prompts, seed: complete_batch(self.model, prompts, sampling, self.pad, self.stops, seed)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _whole_batches(self, log: SampleLog, there: list[Row], problems: int, sampling: Sampling) -> list[int]:
        """Drop batches of which a part is missing, and return the numbers of those to draw."""
        plan = batches(problems * sampling.samples, sampling.batch_size)
        counts = [sum(row["number"] == number for row in there) for number in range(len(plan))]
        whole = {number for number, places in enumerate(plan) if counts[number] == len(places)}
        if len(there) > sum(counts[number] for number in whole):
            log.keep(row for row in there if row["number"] in whole)
        return [number for number in range(len(plan)) if number not in whole]


def is_model_folder(path: Path) -> bool:
    """Return whether a folder holds a model or an adapter."""
    return (path / "config.json").is_file() or (path / "adapter_config.json").is_file()
