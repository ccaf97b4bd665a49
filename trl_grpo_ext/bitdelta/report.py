"""What a delta says of itself: sizes, codecs, and why each was chosen; as text, and as a model card."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from trl_grpo_ext.bitdelta.table import Entry, Table


@dataclass(frozen=True)
class DeltaReport:
    """Summary of a delta.

    Args:
        table: everything, tensor by tensor.
    """

    table: Table

    @property
    def tensors(self) -> dict[str, Entry]:
        """Entries by name."""
        return self.table.tensors

    @property
    def delta_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(entry.nbytes for entry in self.tensors.values())

    @property
    def full_bytes(self) -> int:
        """Bytes of the fine-tuned checkpoint's tensors."""
        return sum(entry.full_bytes for entry in self.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits of the delta per weight of the model, embeddings included."""
        return 8 * self.delta_bytes / max(sum(entry.numel for entry in self.tensors.values()), 1)

    @property
    def density(self) -> float:
        """Share of the model's weights whose bits changed."""
        total = sum(entry.numel for entry in self.tensors.values())
        return sum(entry.density * entry.numel for entry in self.tensors.values()) / max(total, 1)

    @property
    def lossless(self) -> bool:
        """Whether every tensor comes back bit for bit."""
        return not any(entry.codec in ("sign", "low_rank", "sign_low_rank") for entry in self.tensors.values())

    def summary(self) -> dict[str, Any]:
        """Return the figures as JSON has them."""
        return {
            "base": self.table.base["id"],
            "fine_tuned": self.table.finetuned,
            "delta_bytes": self.delta_bytes,
            "full_bytes": self.full_bytes,
            "ratio": round(self.full_bytes / max(self.delta_bytes, 1), 2),
            "bits_per_weight": round(self.bits_per_weight, 4),
            "density": round(self.density, 4),
            "lossless": self.lossless,
            "codecs": dict(sorted(Counter(entry.codec for entry in self.tensors.values()).items())),
            "fits": dict(sorted(Counter(entry.fit for entry in self.tensors.values() if entry.fit).items())),
            "quality": self.table.quality,
        }

    def lines(self) -> list[str]:
        """Return the decisions, a line per tensor."""
        rows = ["bits/weight  density  codec          tensor: why"]
        for name, entry in self.tensors.items():
            bits = 8 * entry.nbytes / max(entry.numel, 1)
            fit = f", scales by {entry.fit}" if entry.fit else ""
            rows.append(f"{bits:11.3f}  {entry.density:7.3f}  {entry.codec:13}  {name}: {entry.reason}{fit}")
        return rows

    def text(self) -> str:
        """Return the summary in a few lines."""
        found = self.summary()
        codecs = ", ".join(f"{count} {codec}" for codec, count in found["codecs"].items())
        exact = "every tensor comes back bit for bit" if self.lossless else "some tensors are approximated"
        return (
            f"{found['delta_bytes']:,} bytes instead of {found['full_bytes']:,} ({found['ratio']:g} x smaller, "
            f"{found['bits_per_weight']:.3f} bits per weight)\n"
            f"{found['density']:.1%} of the weights changed; {exact}\ncodecs: {codecs}"
        )


def model_card(report: DeltaReport) -> str:
    """Return the README.md of a delta's folder."""
    base = report.table.base
    front = f"---\nlibrary_name: transformers\nbase_model: {base['id']}\ntags:\n- bitdelta\n---\n"
    if base["id"].startswith(("/", ".")) or ":" in base["id"]:
        front = "---\nlibrary_name: transformers\ntags:\n- bitdelta\n---\n"
    load = (
        "```python\nimport trl_grpo_ext.bitdelta\nfrom transformers import AutoModelForCausalLM\n\n"
        'model = AutoModelForCausalLM.from_pretrained("this folder")  # base="..." where the base is elsewhere\n```\n'
    )
    table = "\n".join(report.lines())
    return (
        f"{front}\n# A fine-tuned model as a delta\n\nMade by trl-grpo-ext from `{base['id']}` "
        f"(fingerprint `{base['fingerprint']}`). It needs that very base.\n\n{report.text()}\n\n{load}\n"
        f"## Decisions\n\n```\n{table}\n```\n"
    )
