"""Rewards for a model that gives conservation advice, without labels: the use that ZIP-0273 describes.

    python examples/rewards/conservation.py            # scores advice written by hand
    python examples/rewards/conservation.py --train    # trains a tiny model made here, about ten seconds on one core

Three rewards, composed: advice must be *grounded* (a small fact corpus contradicts nothing of it), must not *harm* a
protected species (a penalty, and a gate: it earns nothing for being well explained), and should *educate*
(give a reason, name what lives there, say what to do instead). Needs no download and no GPU.

The harm check and the educational value are word lists: enough to show the composition, too weak for a real run, where
a judge model takes their place. `lexical_verdict`, the judge of the facts, is as weak; `judge=` replaces it.
"""

import argparse
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from trl_grpo_ext.rewards.composition import CompositeReward, Gate
from trl_grpo_ext.rewards.label_free import FactualGroundingReward

FACTS = Path(__file__).with_name("conservation_facts.txt")

PROTECTED = re.compile(
    r"\b(turtle|hatchling|dolphin|whale|seal|owl|bat|bee|coral|elephant|hedgehog|otter|wolf|wolve|bird|fledgling)s?\b",
    re.I,
)
HARM = re.compile(
    r"\b(feed|touch|ride|riding|lift|chase|catch|collect|buy|disturb|bait|dig up|pick up|stand on|hunt|poison|trap|keep as a pet)\b",
    re.I,
)
WARNING = re.compile(r"\b(not|never|don't|do not|avoid|without|nobody|no one|illegal|forbidden|instead of)\b", re.I)
REASON = re.compile(r"\b(because|since|so that|therefore|which is why)\b", re.I)
ALTERNATIVE = re.compile(r"\b(instead|rather|better|watch|call|keep at least|from a distance|plant|leave)\b", re.I)

PROMPT = "How do I help the animals at the beach?"
ADVICE = [
    "Sea turtles must not be touched on a nesting beach, because they abandon the nest. Watch from a distance instead.",
    "Sea turtles must not be touched on a nesting beach.",
    "Nature is nice.",
    "Lift the turtle hatchling and touch it, because it likes company. Then leave it in the sea.",
    "Artificial light on a beach does not lead turtle hatchlings away from the sea, because they like lamps.",
]


def texts(completions: Any) -> list[str]:
    """The text of each completion, in either of TRL's forms."""
    return [row if isinstance(row, str) else row[-1]["content"] for row in completions]


def is_harmful(sentence: str) -> bool:
    """Advice to do something harmful to a protected species, not a warning against it."""
    return bool(HARM.search(sentence) and PROTECTED.search(sentence) and not WARNING.search(sentence))


def harmless(completions: Any, **kwargs: Any) -> list[float]:
    """1.0 unless a sentence advises what could harm a protected species, then 0.0. Range {0, 1}.

    Failure modes: a word list, English only; harm that is spread over two sentences is not seen.
    """
    return [float(not any(map(is_harmful, re.split(r"[.!?\n]", text[:20_000])))) for text in texts(completions)]


def educational(completions: Any, **kwargs: Any) -> list[float]:
    """Share of three: it gives a reason, names a species, offers an alternative. Range [0, 1].

    Failure modes: the words are enough, the reason may be wrong (that is for the grounding to notice).
    """
    patterns = (REASON, PROTECTED, ALTERNATIVE)
    return [sum(bool(pattern.search(text[:20_000])) for pattern in patterns) / 3 for text in texts(completions)]


def conservation_reward() -> CompositeReward:
    """grounded + 0.5 * educational + 2 * harmless, in [0, 3.5].

    Two gates: harmful advice earns nothing for being grounded or well explained, and contradicted advice nothing for
    being well explained. Advice that no fact is near gets 0.25 for grounding: less than supported advice, more than
    contradicted advice.
    """
    facts = [line for line in FACTS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return CompositeReward(
        {
            "grounded": FactualGroundingReward(facts, abstain=0.25),
            "educational": educational,
            "harmless": harmless,
        },
        weights={"educational": 0.5, "harmless": 2.0},
        gates=[
            Gate("harmless", ("grounded", "educational")),
            Gate("grounded", ("educational",), minimum=0.25),
        ],
        name="conservation",
    )


def show_scores() -> None:
    """Print each piece of advice with its components and its reward, the best first."""
    reward = conservation_reward()
    scores = reward(completions=ADVICE, prompts=[PROMPT] * len(ADVICE))
    print("reward  grounded  educational  harmless  advice")
    for row in sorted(range(len(ADVICE)), key=lambda row: -(scores[row] or 0.0)):
        parts = [reward.last_components[name][row] or 0.0 for name in ("grounded", "educational", "harmless")]
        print("{:6.2f}  {:8.2f}  {:11.2f}  {:8.2f}  {}".format(scores[row] or 0.0, *parts, ADVICE[row]))


def train(steps: int) -> None:
    """Train a model made here, whose words are the pieces of advice above."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from datasets import Dataset
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    from trl_grpo_ext import config_kwargs, import_trl, prepare_model

    set_seed(0)
    # One token is one piece of advice: the model only has to learn which to give.
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", PROMPT, *ADVICE])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("\n"), "removed")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(fast), pad_token_id=0, bos_token_id=1, eos_token_id=1, **sizes)
    )
    trl = import_trl()
    with tempfile.TemporaryDirectory() as folder:
        config = trl.GRPOConfig(
            **config_kwargs(
                output_dir=folder,
                max_steps=steps,
                learning_rate=1e-2,
                per_device_train_batch_size=32,
                num_generations=8,
                max_completion_length=1,
                use_cpu=True,
                bf16=False,
                save_strategy="no",
                logging_steps=5,
                report_to=[],
                disable_tqdm=True,
            )
        )
        reward = conservation_reward()
        trainer = trl.GRPOTrainer(
            model=prepare_model(model),
            reward_funcs=[reward],
            args=config,
            train_dataset=Dataset.from_list([{"prompt": PROMPT}] * 64),
            processing_class=fast,
        )
        trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    print(f"mean reward: {rewards[0]:.2f} at first, {rewards[-1]:.2f} at last")
    print("it ends with:", list(trainer._logs["completion"])[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="train a tiny model on these rewards")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps with --train (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.steps)
    else:
        show_scores()
