"""Two uses of the library in `model.generate`, as transformers `LogitsProcessor`s: for inference only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from trl_grpo_ext.experience.decoding import LibraryProcessor
from trl_grpo_ext.experience.library import ExperienceLibrary
from trl_grpo_ext.experience.token_patterns import END, Node, bias, following, prefix_tree, token_shares

NO_PATTERN = ("free", "stop", "error")


class SuccessTokenBias(LibraryProcessor):
    r"""Logit bias towards tokens of successful episodes.

    score(t) += strength * log(1 + p(t) / s) / log(1 + max p / s),
    p(t) = sum_e A_e n_e(t) / |e| / sum_e A_e

    over the episodes e with an advantage A_e above 0 that are retrieved for the row's prompt; n_e(t) counts the token in
    the response, |e| is its number of tokens, s is the smoothing. The most frequent token gains `strength` nats against
    one that no response has: its odds rise by at most exp(strength), with a temperature T by exp(strength / T), since
    `generate` divides by it afterwards. Special tokens (stop tokens among them) and tokens without a letter or digit
    (punctuation, white space, parts of a character) are left alone, and do not count in p. Words that every text has,
    such as "the", do count.

    Args:
        library: an `ExperienceLibrary`.
        tokenizer: the model's.
        prompts: the plain prompts of the batch, without template and injected text, in its order. With
            `num_return_sequences` or beams each stands for that many rows.
        strength: in nats, 0 or above; 0 changes nothing.
        episodes: most episodes per prompt.
        smoothing: s, above 0, as a share of the tokens.
        where: metadata filter of the episodes.
        same_prompt: also episodes of the same and near-same prompts. For serving only: in an evaluation they give the
            answer away.

    Raises:
        TypeError: prompts that are no list of texts.
        ValueError: no prompts, no episodes, a strength or smoothing out of range; in a call, a batch of another size.
        RuntimeError: in a call, inside a trainer's training step.
    """

    def __init__(
        self,
        library: ExperienceLibrary,
        tokenizer: Any,
        prompts: Sequence[str],
        *,
        strength: float = 1.0,
        episodes: int = 8,
        smoothing: float = 0.01,
        where: Mapping[str, Any] | None = None,
        same_prompt: bool = False,
    ) -> None:
        if not 0 <= strength < math.inf or not 0 < smoothing < math.inf:
            raise ValueError(
                "SuccessTokenBias: strength must be a finite number of at least 0 and smoothing one above 0, not "
                f"{strength!r} and {smoothing!r}."
            )
        super().__init__(library, tokenizer, prompts, episodes=episodes, where=where, same_prompt=same_prompt)
        special, known = frozenset(tokenizer.all_special_ids), dict[int, bool]()
        self.biases: list[dict[int, float]] = []
        for chosen in self._episodes:
            responses = [(self._tokens(episode.response), episode.advantage) for episode in chosen]
            for token in {token for tokens, _ in responses for token in tokens} - known.keys():
                known[token] = token not in special and any(map(str.isalnum, tokenizer.decode([token])))
            silent = frozenset(token for token, speaks in known.items() if not speaks)
            self.biases.append(bias(token_shares(responses, silent), strength, smoothing))

        self._entries: tuple[int, Any, Any] | None = None

    def _process(self, input_ids: Any, scores: Any, times: int) -> Any:
        if self._entries is None or self._entries[0] != times:
            self._entries = (times, *self._rows_tokens_values(times, scores))
        _, places, values = self._entries
        return scores.index_put((places[0], places[1]), values, accumulate=True)

    def _rows_tokens_values(self, times: int, scores: Any) -> tuple[Any, Any]:
        """Row and token of every bias (2, entries), and its value (entries)."""
        entries = [
            (row, token, value)
            for place, biases in enumerate(self.biases)
            for row in range(times * place, times * (place + 1))
            for token, value in biases.items()
        ]
        places = torch.tensor([entry[:2] for entry in entries], dtype=torch.long, device=scores.device).reshape(-1, 2)
        values = torch.tensor([entry[2] for entry in entries], dtype=scores.dtype, device=scores.device)
        return places.T, values


class PatternConstraint(LibraryProcessor):
    """Decoding along the responses of the library: the completion is one of them, token for token.

    At each step the tokens are allowed with which a response of the row's prefix tree goes on, and, where one is
    complete, the stop tokens; all others get -inf. The tree holds the responses, tokenized without special tokens, of
    the episodes with an advantage above 0 that are retrieved for the row's prompt.

    No pattern fits when nothing was retrieved, when the completion has left the tree (a forced token, a processor behind
    this one), or when other processors forbid every token that is allowed here. `no_pattern` says what happens then:
    "free": the row is decoded without constraint from there on; "stop": it ends, with the first stop token; "error":
    a ValueError, for a prompt without episodes already when the processor is made.

    Args:
        library: an `ExperienceLibrary`.
        tokenizer: the model's.
        prompts: as for `SuccessTokenBias`.
        prompt_length: tokens of the padded prompts: `inputs["input_ids"].shape[1]`; for an encoder-decoder model, of the
            decoder's start.
        episodes: most episodes per prompt.
        no_pattern: see above.
        stop_token_ids: what ends a completion; the tokenizer's eos token by default. They should be those that
            `generate` stops at.
        where: metadata filter of the episodes.
        same_prompt: as for `SuccessTokenBias`.

    Raises:
        TypeError: prompts that are no list of texts.
        ValueError: no prompts, no episodes, an unknown `no_pattern`, no stop token; in a call, a batch of another size
            or shorter than `prompt_length`.
        RuntimeError: in a call, inside a trainer's training step.
    """

    def __init__(
        self,
        library: ExperienceLibrary,
        tokenizer: Any,
        prompts: Sequence[str],
        prompt_length: int,
        *,
        episodes: int = 50,
        no_pattern: str = "free",
        stop_token_ids: Sequence[int] | None = None,
        where: Mapping[str, Any] | None = None,
        same_prompt: bool = False,
    ) -> None:
        if no_pattern not in NO_PATTERN:
            raise ValueError(f"PatternConstraint: no_pattern must be one of {', '.join(NO_PATTERN)}: {no_pattern!r}.")
        super().__init__(library, tokenizer, prompts, episodes=episodes, where=where, same_prompt=same_prompt)
        self._prompt_length, self._no_pattern = prompt_length, no_pattern
        self._stops = _stop_tokens(tokenizer, stop_token_ids)
        self._trees = [prefix_tree(self._tokens(episode.response) for episode in chosen) for chosen in self._episodes]
        without = [prompt for prompt, tree in zip(prompts, self._trees, strict=True) if not tree]
        if no_pattern == "error" and without:
            raise ValueError(f"PatternConstraint: the library has no response for the prompt {without[0]!r}.")

    def _process(self, input_ids: Any, scores: Any, times: int) -> Any:
        if not 0 <= self._prompt_length <= input_ids.shape[1]:
            raise ValueError(
                f"PatternConstraint: prompt_length={self._prompt_length} does not fit a batch of {input_ids.shape[1]} "
                'tokens; give inputs["input_ids"].shape[1].'
            )
        processed = scores.clone()
        for row, completion in enumerate(input_ids[:, self._prompt_length :].tolist()):
            # What follows a stop token is padding.
            if not self._stops.isdisjoint(completion):
                continue
            allowed = self._allowed(following(self._trees[row // times], completion))
            kept = torch.full_like(scores[row], -math.inf)
            kept[allowed] = scores[row, allowed]
            processed[row] = kept if bool((kept > -math.inf).any()) else self._without_pattern(scores[row])
        return processed

    def _allowed(self, node: Node) -> list[int]:
        ends = self._stops if END in node else frozenset()
        return sorted((node.keys() - {END}) | ends)

    def _without_pattern(self, scores: Any) -> Any:
        if self._no_pattern == "error":
            raise ValueError("PatternConstraint: no response of the library goes on from here.")
        if self._no_pattern == "free":
            return scores
        ended = torch.full_like(scores, -math.inf)
        ended[min(self._stops)] = 0.0
        return ended


def _stop_tokens(tokenizer: Any, given: Sequence[int] | None) -> frozenset[int]:
    stops = [tokenizer.eos_token_id] if given is None else given
    known = frozenset(token for token in stops if token is not None)
    if not known:
        raise ValueError("PatternConstraint: the tokenizer has no eos token; give stop_token_ids.")
    return known
