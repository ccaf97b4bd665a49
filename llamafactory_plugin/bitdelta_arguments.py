"""The arguments that also write the trained model as a delta of what the run started from; in every stage."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import HfArgumentParser

from llamafactory_plugin.checks import check_number
from llamafactory_plugin.errors import UsageError

FLAGS = ("bitdelta", "bitdelta_every_checkpoint")


@dataclass
class BitDeltaArguments:
    r"""Delta compression of a full fine-tune (BitDelta, arXiv 2402.10193, and lossless codes)."""

    bitdelta: bool = field(
        default=False,
        metadata={"help": "Also write the trained model as a delta of the start model, to output_dir/bitdelta."},
    )
    bitdelta_group_size: int | None = field(
        default=None,
        metadata={"help": "Weights that share a scale, a multiple of 8 such as 128; default: a scale per row."},
    )
    bitdelta_every_checkpoint: bool = field(
        default=False,
        metadata={"help": "Also a delta of every checkpoint, in checkpoint-N/bitdelta."},
    )
    bitdelta_safety_threshold: float = field(
        default=0.6,
        metadata={
            "help": "Least share of a tensor's change that its signs must explain; what falls below takes a larger code."
        },
    )

    def check_bitdelta_values(self) -> None:
        """Check the values above, in every stage.

        Raises:
            UsageError: naming the argument, its rule and the value given.
        """
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} must be true or false, not {getattr(self, name)!r}.")
        if self.bitdelta_safety_threshold is None:
            raise UsageError(
                "bitdelta_safety_threshold has no value; write one, or remove the key for its default, 0.6."
            )
        way_out = "ordinary fine-tunes have about 0.64, sparse deltas of RL less"
        check_number("bitdelta_safety_threshold", self.bitdelta_safety_threshold, float, 0.0, 1.0, way_out)
        size = self.bitdelta_group_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 8 or size % 8):
            raise UsageError(f"bitdelta_group_size must be a multiple of 8, at least 8, such as 128, not {size!r}.")
        unread = [name for name in DEFAULTS if not self.bitdelta and getattr(self, name) != DEFAULTS[name]]
        if unread:
            raise UsageError(f"{unread[0]}: it is read only with bitdelta; set bitdelta: true, or remove it.")


DEFAULTS = {item.name: item.default for item in dataclasses.fields(BitDeltaArguments)}


def parse_bitdelta(args: Mapping[str, Any] | list[str], explicit: Mapping[str, Any]) -> BitDeltaArguments:
    """These arguments alone, from what the user wrote for a stage that LLaMA-Factory itself parses.

    Raises:
        UsageError: for a value that is none.
    """
    given = {name: value for name, value in explicit.items() if name in DEFAULTS}
    parser = HfArgumentParser(BitDeltaArguments)
    if isinstance(args, Mapping):
        found = parser.parse_dict(given)[0]
    else:
        flags = [[f"--{name}"] if value is True else [f"--{name}", str(value)] for name, value in given.items()]
        found = parser.parse_args_into_dataclasses([item for flag in flags for item in flag])[0]
    found.check_bitdelta_values()
    return found
