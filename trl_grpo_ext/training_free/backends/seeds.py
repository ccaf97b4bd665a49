"""The seed that a request is sampled with. Standard library only."""

from __future__ import annotations

import hashlib
import json

from trl_grpo_ext.training_free.protocol import ChatRequest


def sampling_seed(request: ChatRequest) -> int:
    """Return a hash of the request's seed and messages, of 31 bits: the widest that all servers take.

    The seed itself would give two prompts one stream of random numbers: their answers would be lucky together, and the
    statistics, which take problems to be independent, too sure.
    """
    text = json.dumps([request.seed, request.messages])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
