"""Aligned rows of LLaMA-Factory -> rows of `prompt`, ground truth and reward columns."""

from __future__ import annotations

from typing import Any

from llamafactory.data.processor.processor_utils import DatasetProcessor
from llamafactory.extras import logging

from llamafactory_plugin import __version__
from llamafactory_plugin.conversion import EXTRA
from llamafactory_plugin.rendering import PromptRenderer, to_messages
from trl_grpo_ext._terminal import visible

logger = logging.get_logger("llamafactory.grpo")

PROMPT_TOKENS = "_prompt_tokens"
TOO_LONG, INVALID = "too long", "invalid"
GROUND_TRUTH_NAMES = ("solution", "answer", "ground_truth")


def is_absent(value: Any) -> bool:
    """Whether a cell holds nothing. 0 and False are ground truths like any other."""
    return value is None or (isinstance(value, str) and not value)


def reason_to_drop(prompt_tokens: int, max_prompt_length: int) -> str:
    """Why a row with that many prompt tokens (0: it could not be rendered) is left out; empty when it is kept."""
    if prompt_tokens == 0:
        return INVALID
    return TOO_LONG if prompt_tokens > max_prompt_length else ""


class GRPODatasetProcessor(DatasetProcessor):
    """Aligned rows -> GRPO rows. Nothing is cut or left out here: `finish_dataset` drops by the number of tokens."""

    def __init__(
        self, template: Any, tokenizer: Any, processor: Any, data_args: Any, *, max_prompt_length: int
    ) -> None:
        super().__init__(template, tokenizer, processor, data_args)
        self.renderer = PromptRenderer(template, tokenizer)
        self.max_prompt_length = max_prompt_length
        self.version = __version__

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """A batch of aligned rows -> as many GRPO rows. Absent texts are empty strings, so that types agree."""
        count = len(examples["_prompt"])
        prompts = [to_messages(examples["_prompt"][i], examples["_system"][i]) for i in range(count)]
        tools = [tool or "" for tool in examples["_tools"]]
        responses = [[turn["content"] for turn in response] for response in examples["_response"]]
        solutions = [texts[0] if texts else "" for texts in responses]
        pairs = [texts if len(texts) == 2 else ["", ""] for texts in responses]
        output: dict[str, list[Any]] = dict.fromkeys(GROUND_TRUTH_NAMES, solutions)
        output |= {"prompt": prompts, "tools": tools}
        output |= {"chosen": [pair[0] for pair in pairs], "rejected": [pair[1] for pair in pairs]}
        output |= {name[len(EXTRA) :]: column for name, column in examples.items() if name.startswith(EXTRA)}
        output[PROMPT_TOKENS] = [
            self._count_tokens(prompt, tool) if len(turns) % 2 == 1 else 0
            for turns, prompt, tool in zip(examples["_prompt"], prompts, tools, strict=True)
        ]
        return output

    def _count_tokens(self, prompt: list[dict[str, str]], tools: str) -> int:
        if any(not isinstance(message["content"], str) for message in prompt):
            return 0
        try:
            return len(self.renderer.encode(prompt, tools))
        except RuntimeError as error:  # the template met tools or a tool call that are no JSON
            logger.warning_rank0_once(f"A malformed row is dropped: {error}")
            return 0

    def print_data_example(self, example: dict[str, Any]) -> None:
        """Print the rendered prompt, the ground truth and the reward columns of one row."""
        if reason := reason_to_drop(example[PROMPT_TOKENS], self.max_prompt_length):
            print(f"(the first row is dropped: {reason})")
            return
        rendered = self.renderer.decode(self.renderer.encode(example["prompt"], example["tools"]))
        print(f"prompt:\n{visible(rendered)}")
        shown = {"prompt", "tools", PROMPT_TOKENS}
        shown.update(name for name in GROUND_TRUTH_NAMES[1:] if example[name] == example["solution"])
        for name, value in example.items():
            if name not in shown and not is_absent(value):
                print(f"{name}:\n{visible(str(value))}")
