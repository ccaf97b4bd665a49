"""Loss, every gradient and the parameters after 3 steps are those of stock TRL, in every form and architecture."""

import copy
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.batching.models import ALL, ARCHITECTURES, OFF, build, make, watched_gradients
from tests.conformance.runs import assert_moved, parameters
from trl_grpo_ext.batching import shared_prompt

# So much longer than the completions that a prompt's suffixes share a row.
LONG_PROMPTS = {"prompt_copies": 12, "max_completion_length": 5}
# name -> (architecture, what both trainers are given, what ours is given)
CASES = {
    **{kind: (kind, {}, {}) for kind in ("llama", "qwen2", "qwen3", "gpt2")},
    "all_asked_for": ("qwen2", {"gradient_checkpointing": True}, ALL),
    "no_checkpointing": ("llama", {"gradient_checkpointing": False}, {}),
    "shared": ("qwen2", {}, OFF | {"shared_prompt": True}),
    "chunked": ("qwen2", {}, OFF | {"chunked_logps": True}),
    "trimmed": ("qwen2", {}, OFF | {"trim_padding": True}),
    "grouped": ("qwen2", {}, OFF | {"keep_groups": True}),
    "split_groups": ("qwen2", {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, {}),
    "reference": ("qwen2", {"beta": 0.1}, {}),
    "our_loss": ("qwen2", {}, {"loss_backend": "extended"}),
    "packed": ("qwen2", LONG_PROMPTS, ALL),
}
# What these add to the ones above is combinations.
SLOW_CASES = {
    "mistral": ("mistral", {}, ALL),
    "trimmed_gpt2": ("gpt2", {}, OFF | {"trim_padding": True, "keep_groups": True}),
    "three_of_four": ("qwen3", {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}, ALL),
    "two_groups_at_once": ("qwen2", {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}, ALL),
    "dapo": ("qwen2", {"loss_type": "dapo"}, ALL),
    "dr_grpo": ("qwen2", {"loss_type": "dr_grpo"}, ALL),
    "temperature": ("qwen2", {"temperature": 0.7}, ALL),
    "old_policy": (
        "qwen2",
        {"num_iterations": 2, "epsilon": 1e-3, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
        ALL,
    ),
    "no_entropy": ("qwen2", {}, ALL | {"skip_entropy": True}),
}
STOCK = {}


def run(extended, kind, folder, settings):
    # Under a name, by which TRL loads the reference.
    build(kind, ARCHITECTURES[kind]).save_pretrained(folder / kind)
    model = AutoModelForCausalLM.from_pretrained(folder / kind, dtype=torch.float32)
    trainer = make(extended, model, folder, **copy.deepcopy(settings))
    before, gradients = parameters(trainer), watched_gradients(trainer)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is not used for")
        trainer.train()
    assert_moved(parameters(trainer), before)
    return trainer, gradients


def of_stock(kind, settings, folder):
    """The stock run, once for all cases that it is compared with."""
    key = kind, *settings.items()
    if key not in STOCK:
        STOCK[key] = run(False, kind, folder, settings)
    return STOCK[key]


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    largest = max(value.abs().max().item() for value in theirs.values())
    for name, value in ours.items():
        # Relative to the largest of all: a parameter such as a key bias has no gradient but rounding.
        difference = (value - theirs[name]).abs().max().item()
        assert difference <= 1e-5 * max(largest, 1e-6), f"{name}: {difference} of {largest}"


def count_packed(monkeypatch):
    """The number of layouts whose suffixes are packed, from now on, as the only item of a list."""
    count, order = [0], shared_prompt._packed_order

    def counted(*args):
        found = order(*args)
        count[0] += found is not None
        return found

    monkeypatch.setattr(shared_prompt, "_packed_order", counted)
    return count


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_CASES)])
def test_as_stock(case, tmp_path, monkeypatch):
    packed = count_packed(monkeypatch)
    kind, both, own = (CASES | SLOW_CASES)[case]
    theirs, wanted = of_stock(kind, both, tmp_path)
    ours, found = run(True, kind, tmp_path, both | own)
    assert len(found) == len(wanted) == 3
    for one, other in zip(found, wanted, strict=True):
        assert_equal(one, other)
    assert_equal(parameters(ours), parameters(theirs))
    steps = [torch.tensor(one.seen_losses).view(3, -1).sum(1) for one in (ours, theirs)]
    torch.testing.assert_close(*steps, rtol=1e-5, atol=1e-6)
    assert (packed[0] > 0) == (case == "packed")


@pytest.mark.parametrize("beta", [0.1, pytest.param(0.0, marks=pytest.mark.slow)])
def test_lora_as_stock(beta, tmp_path):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    settings = {"peft_config": lora, "beta": beta, "gradient_checkpointing": True}
    runs = []
    for extended, own in ((False, {}), (True, ALL)):
        trainer, gradients = run(extended, "qwen2", tmp_path, settings | own)
        assert all("lora_" in name for name in gradients[0])
        runs.append((gradients, parameters(trainer)))
    for one, other in zip(runs[1][0], runs[0][0], strict=True):
        assert_equal(one, other)
    assert_equal(runs[1][1], runs[0][1])
