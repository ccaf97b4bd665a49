r"""Completions sampled with experiences in the prompt, and learned without them (context distillation).

A completion o of question q is sampled with experiences e from pi_old(o | e, q) and learned as an answer to q alone.
What corrects for it is the ratio of every token

    r_t = pi(o_t | q, o_<t) / pi_old(o_t | e, q, o_<t)

which enters the policy gradient A_t w(r_t) grad log pi(o_t | q, o_<t) by one of

    clip       PPO's surrogate with r_t as the ratio: w = r, 0 where the clip holds (Guide-GRPO, arXiv 2506.13923)
    truncate   w = min(r, cap)   (truncated importance sampling, arXiv 1802.01561 and TRL's correction for vLLM)
    shape      w = r gamma / (r + gamma)^2, the gradient of f(r) A with f(r) = r / (r + gamma)   (LUFFY, arXiv
               2504.14945, with the known sampling probability in place of 1): up to 1 / gamma times more weight for
               tokens that are unlikely without the experiences
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from trl_grpo_ext._compat import logps_and_entropies, pad_token_id, reference_logps
from trl_grpo_ext.losses import LossInputs
from trl_grpo_ext.losses.ratios import bounded_log_ratio

# Column of a row whose `prompt` has experiences in it: the prompt without them.
PLAIN_PROMPT = "plain_prompt"
# Column of a scored batch: (rows,), 1 where the prompt of the loss is not the one that was generated from.
OFF_POLICY = "off_policy"

CORRECTIONS = ("clip", "truncate", "shape")


def correction_weights(log_ratio: torch.Tensor, correction: str, cap: float, gamma: float) -> torch.Tensor:
    """Return w(r) of `truncate` or `shape`.

    Args:
        log_ratio: (B, T), log r.
        correction: "truncate" or "shape".
        cap: largest weight of `truncate`.
        gamma: of `shape`.
    """
    ratio = torch.exp(log_ratio)
    return ratio.clamp(max=cap) if correction == "truncate" else ratio * gamma / (ratio + gamma).square()


def reweighted(inputs: LossInputs, off_policy: torch.Tensor, correction: str, cap: float, gamma: float) -> LossInputs:
    """Return loss inputs under which any surrogate has the gradient A w(r) grad log pi on the off-policy rows.

    Their old log-probabilities become the policy's own, so that the surrogate's ratio is 1 and no clip holds, and w(r)
    becomes their importance weight. The value of the loss is no longer that of f(r) A; its gradient is. Rows that are
    not off-policy keep theirs.

    Args:
        inputs: with `old_logps`, those of sampling.
        off_policy: (B,), 0 or 1.
        correction: "truncate" or "shape".
        cap: see `correction_weights`.
        gamma: see `correction_weights`.
    """
    assert inputs.old_logps is not None
    policy, rows = inputs.logps.detach(), off_policy.bool().unsqueeze(1)
    weights = correction_weights(bounded_log_ratio(policy, inputs.old_logps), correction, cap, gamma)
    weights = torch.where(rows, weights, 1.0)
    if inputs.importance_weights is not None:
        weights = weights * inputs.importance_weights
    return replace(inputs, old_logps=torch.where(rows, policy, inputs.old_logps), importance_weights=weights)


def plain_rows(inputs: Sequence[dict[str, Any]], prompts: Sequence[Any]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return rows and prompts as reward functions shall see them: without experiences, and without the column."""
    rows, plain = [], []
    for row, prompt in zip(inputs, prompts, strict=True):
        known = row.get(PLAIN_PROMPT)
        plain.append(prompt if known is None else _as_given(known, prompt))
        kept = {name: value for name, value in row.items() if name != PLAIN_PROMPT}
        rows.append(kept if known is None else kept | {"prompt": plain[-1]})
    return rows, plain


def _as_given(plain: Any, prompt: Any) -> Any:
    """The plain prompt without the assistant's beginning of an answer, where TRL (0.24) has taken that away."""
    begun = isinstance(plain, list) and plain[-1]["role"] == "assistant" and prompt[-1]["role"] != "assistant"
    return plain[:-1] if begun else plain


def with_sampling_logps(trainer: Any, output: dict[str, Any]) -> dict[str, Any]:
    """Return a scored batch with the log-probabilities that it was sampled with, and no row off-policy.

    Args:
        trainer: an ExtendedGRPOTrainer; every rank must call it.
        output: what `_generate_and_score_completions` returned.
    """
    mask = output["completion_mask"]
    columns = {OFF_POLICY: torch.zeros(len(mask), dtype=torch.long, device=mask.device)}
    if output.get("old_per_token_logps") is None:
        with torch.no_grad():
            found = logps_and_entropies(trainer, trainer.model, output, False, trainer.rows_per_pass())
        columns["old_per_token_logps"] = found[0]
    return columns | output


def with_plain_prompts(trainer: Any, rows: Sequence[dict[str, Any]], output: dict[str, Any]) -> dict[str, Any]:
    """Return a scored batch whose prompts are the plain ones, with the log-probabilities of sampling.

    Reference log-probabilities, where the run needs them, are computed under the plain prompts.

    Args:
        trainer: an ExtendedGRPOTrainer; every rank must call it.
        rows: this rank's rows; those with a `plain_prompt` are changed.
        output: what `_generate_and_score_completions` returned for them.
    """
    output = with_sampling_logps(trainer, output)
    given = [ids[mask.bool()].tolist() for ids, mask in zip(output["prompt_ids"], output["prompt_mask"], strict=True)]
    injected = [row | {"prompt": row[PLAIN_PROMPT]} for row in rows if row.get(PLAIN_PROMPT) is not None]
    found = iter(trainer.tokenize_prompts(injected) if injected else ())
    plain = [next(found) if row.get(PLAIN_PROMPT) is not None else ids for row, ids in zip(rows, given, strict=True)]
    changed = [one != other for one, other in zip(plain, given, strict=True)]
    device, multiple = output["prompt_ids"].device, getattr(trainer, "pad_to_multiple_of", None) or 1
    ids, mask = left_padded(plain, pad_token_id(trainer), multiple)
    flags = torch.tensor(changed, dtype=torch.long, device=device)
    output = output | {"prompt_ids": ids.to(device), "prompt_mask": mask.to(device), OFF_POLICY: flags}
    if trainer.args.needs_reference:
        with torch.no_grad():
            output["ref_per_token_logps"] = reference_logps(trainer, output, trainer.rows_per_pass())
    share = trainer.accelerator.gather(flags).float().mean().item()
    trainer._metrics["train"]["off_policy/share"].append(share)
    return output


def left_padded(
    sequences: Sequence[Sequence[int]], filling: int, multiple: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and their mask, both (rows, longest), padded on the left to a multiple."""
    width = -(-max(map(len, sequences)) // multiple) * multiple
    ids = torch.full((len(sequences), width), filling, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(sequences):
        ids[row, width - len(tokens) :] = torch.tensor(tokens, dtype=torch.long)
        mask[row, width - len(tokens) :] = 1
    return ids, mask
