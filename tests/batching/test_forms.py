"""The forms against plain log-softmax on random ragged batches, and what happens where a form is not right."""

import warnings
from unittest.mock import patch

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.batching.models import ARCHITECTURES, SIZES, UNSUPPORTED, build, make, watched_gradients
from tests.batching.test_same_gradients import assert_equal
from trl_grpo_ext.batching import LogProbPasses, attention, passes, shared_prompt, support
from trl_grpo_ext.batching.head import chunked_statistics
from trl_grpo_ext.batching.shared_prompt import shared_row
from trl_grpo_ext.batching.token_statistics import token_statistics

# The form, and the share of the prompt up to which its suffixes are packed.
FORMS = [("shared_prompt", 0.0), ("shared_prompt", 99.0), ("chunked_logps", 0.0)]
MODELS = {kind: build(kind, sizes) for kind, sizes in ARCHITECTURES.items()}


@pytest.fixture(autouse=True, scope="module")
def registered():
    name = attention.register()
    for model in MODELS.values():
        model.set_attn_implementation(name)


def plain(model, ids, mask, keep, temperature):
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -keep - 1 : -1].float() / temperature
    logps = logits.log_softmax(-1)
    entropies = -(logps.exp() * logps).sum(-1)
    return logps.gather(-1, ids[:, -keep:, None])[..., 0], entropies


@st.composite
def micro_batches(draw):
    width, keep = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    owner = draw(st.lists(st.integers(0, 2), min_size=1, max_size=6))
    prompts = torch.randint(2, 9, (3, width), generator=generator)[owner]
    lengths = torch.randint(1, width + 1, (3,), generator=generator)[owner]
    prompt_mask = (torch.arange(width) >= width - lengths[:, None]).long()
    ends = torch.randint(0, keep + 1, (len(owner),), generator=generator)
    completion_mask = (torch.arange(keep) < ends[:, None]).long()
    completions = torch.randint(2, 9, (len(owner), keep), generator=generator)
    mask = torch.cat([prompt_mask, completion_mask], dim=1)
    return torch.cat([prompts, completions], dim=1) * mask, mask, keep


@pytest.mark.parametrize(("form", "packed_share"), FORMS)
@pytest.mark.parametrize("kind", ARCHITECTURES)
@settings(max_examples=25, deadline=None)
@given(batch=micro_batches(), temperature=st.sampled_from([0.7, 1.0]))
def test_as_plain_log_softmax(kind, form, packed_share, batch, temperature):
    ids, mask, keep = batch
    model, counted = MODELS[kind], mask[:, -keep:].bool()
    forms = LogProbPasses(Accelerator(cpu=True), temperature, True, True, False)
    with patch.object(shared_prompt, "PACKED_SHARE", packed_share):
        logps, entropies = forms._one(form, model, ids, mask, keep, True)
    wanted = plain(model, ids, mask, keep, temperature)
    torch.testing.assert_close(logps[counted], wanted[0][counted], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(entropies[counted], wanted[1][counted], rtol=1e-4, atol=1e-4)
    assert not logps[~counted].any() and logps.isfinite().all()


def test_which_suffixes_are_packed():
    """Several of each prompt, the same number, short ones beside their prompt; in any order of the rows."""
    prompts = torch.tensor([[5, 6, 7, 8, 9, 4], [5, 6, 7, 8, 9, 3]])[[0, 1, 0, 1]]

    def order(rows, tokens):
        ids = prompts[rows]
        return shared_row(ids, torch.ones_like(ids), torch.zeros(len(rows), tokens, dtype=torch.long)).layout.order

    assert order([0, 1, 2, 3], 1).tolist() in ([0, 2, 1, 3], [1, 3, 0, 2])
    assert order([0, 1, 2, 3], 2) is None  # 2 suffixes of 2 tokens, 5 prompt tokens
    assert order([0, 1, 2], 1) is None and order([0, 1], 1) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kept_rows", [0, 20, 64])
def test_no_more_logits_are_kept_than_is_said(kept_rows, dtype):
    """For the backward pass; and its gradients are those of the plain way."""
    torch.manual_seed(0)
    head, hidden, labels = torch.nn.Linear(8, 500), torch.randn(64, 8), torch.arange(64)
    head, hidden = head.to(dtype), hidden.to(dtype).requires_grad_()
    weights = torch.randn(64)
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = chunked_statistics(head, hidden, labels, 0.7, True, 6, kept_rows)
    assert kept_rows * 500 <= sum(kept) < kept_rows * 500 + 64 * 500 / 2
    (found[:, 0] * weights).sum().backward()
    ours = [value.grad.clone() for value in (hidden, head.weight, head.bias)]
    for value in (hidden, head.weight, head.bias):
        value.grad = None
    logps = (head(hidden).float() / 0.7).log_softmax(-1)
    torch.testing.assert_close(found[:, 1], -(logps.exp() * logps).sum(-1).detach())
    logps = logps.gather(-1, labels[:, None])[:, 0]
    torch.testing.assert_close(found[:, 0], logps)
    (logps * weights).sum().backward()
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for one, value in zip(ours, (hidden, head.weight, head.bias), strict=True):
        torch.testing.assert_close(one, value.grad, **tolerance)


def test_a_second_backward_pass_is_refused():
    """The first one has written the gradient over the logits."""
    logits = torch.randn(5, 7, requires_grad=True)
    found = token_statistics(logits * 1.0, torch.arange(5), 1.0, False, 2)[:, 0].sum()
    found.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.backward()


def trained(extended, model, folder, **options):
    trainer = make(extended, model, folder, max_steps=1, **options)
    gradients = watched_gradients(trainer)
    trainer.train()
    return gradients[0]


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_another_architecture_takes_the_dense_path_and_says_so(kind, tmp_path):
    wanted = trained(False, build(kind, UNSUPPORTED[kind]), tmp_path)
    with pytest.warns(UserWarning, match="shared_prompt is not used for .*: it(s| has)"):
        found = trained(True, build(kind, UNSUPPORTED[kind]), tmp_path, shared_prompt=True)
    assert_equal(found, wanted)


def test_eager_attention_and_a_softcap_are_refused():
    eager = build("llama", SIZES)
    eager.set_attn_implementation("eager")
    assert "'eager'" in support.no_sharing_because(eager)
    assert "final_logit_softcapping" in support.no_chunks_because(build("gemma2", UNSUPPORTED["gemma2"]))


def test_a_form_that_differs_falls_back_loudly(tmp_path, monkeypatch):
    wanted = trained(False, build("qwen2", SIZES), tmp_path)
    exact = passes.shared_row

    def wrong(prompt_ids, *rest):
        return exact(prompt_ids.flip(1), *rest)

    monkeypatch.setattr(passes, "shared_row", wrong)
    with pytest.warns(UserWarning, match="log-probabilities differ from TRL's by"):
        found = trained(True, build("qwen2", SIZES), tmp_path, shared_prompt=True)
    assert_equal(found, wanted)


def test_prompts_are_encoded_once(tmp_path, monkeypatch):
    seen, exact = [], passes.shared_row

    def watched(prompt_ids, *rest):
        row = exact(prompt_ids, *rest)
        seen.append((len(prompt_ids), row.layout.prompts))
        return row

    monkeypatch.setattr(passes, "shared_row", watched)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is not used for")
        trained(True, build("qwen2", SIZES), tmp_path, shared_prompt=True)
    # The check of the first micro-batch, and two micro-batches of one group each.
    assert seen == [(4, 1)] * 3
