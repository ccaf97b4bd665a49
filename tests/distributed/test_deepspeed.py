"""Stage grpo under DeepSpeed ZeRO-2 and ZeRO-3 on two CPU ranks, through the real command, against plain DDP."""

import importlib.util
import os
import subprocess
import sys

import pytest
import yaml

pytestmark = [
    pytest.mark.line_a,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed (the extra [deepspeed])"
    ),
]

RANKS = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}
CHILD = {
    "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false", "WANDB_DISABLED": "true",
}  # fmt: skip
AUTO = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
# LLaMA-Factory's examples/deepspeed/ds_z2_config.json and ds_z3_config.json, without the numbers that are for GPUs.
STAGES = {2: {"stage": 2}, 3: {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}}
REWARD = """
def vowels(completions, **kwargs):
    texts = [completion[0]["content"] for completion in completions]
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in texts]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tests.llamafactory_plugin import tiny

    folder = tmp_path_factory.mktemp("deepspeed")
    tiny.build_model(folder / "model")
    tiny.write_dataset(folder / "data", "words", tiny.questions(16))
    (folder / "rewards.py").write_text(REWARD)
    for stage, settings in STAGES.items():
        config = dict.fromkeys(AUTO, "auto") | {"zero_allow_untested_optimizer": True, "zero_optimization": settings}
        config |= {"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}}
        (folder / f"ds_z{stage}_config.json").write_text(yaml.safe_dump(config, default_flow_style=True, width=10_000))
    return folder


def trained(folder, name, **settings):
    """Two steps with a KL term: a generation, a policy and a reference model are sharded alike."""
    run = {
        "stage": "grpo", "do_train": True, "model_name_or_path": str(folder / "model"), "finetuning_type": "full",
        "dataset": "words", "dataset_dir": str(folder / "data"), "template": "qwen", "output_dir": str(folder / name),
        "reward_funcs": f"{folder / 'rewards.py'}:vowels", "grpo_beta": 0.1, "per_device_train_batch_size": 4,
        "grpo_group_size": 4, "grpo_max_completion_length": 6, "max_steps": 2, "logging_steps": 1, "save_steps": 1,
        "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "bf16": False, "report_to": "none",
        "overwrite_cache": True, "grpo_disable_report": True, "grpo_disable_live": True,
    } | settings  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(run))
    environment = os.environ | CHILD | RANKS | ({"DS_ACCELERATOR": "cpu"} if "deepspeed" in run else {})
    command = [f"{sys.prefix}/bin/llamafactory-cli", "train", str(file)]
    # DeepSpeed compiles an operator of its own the first time.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    # A run that silently had one rank would have half the rows.
    assert done.stdout.count("'num_tokens'") == 2 and "Initializing 2 distributed tasks" in done.stdout + done.stderr
    return folder / name


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def furthest(ours, theirs):
    return max((value.float() - theirs[name].float()).abs().max().item() for name, value in ours.items())


@pytest.fixture(scope="module")
def ddp(folder):
    done = weights(trained(folder, "ddp", use_cpu=True))
    assert furthest(done, weights(folder / "model")) > 1e-3
    return done


@pytest.mark.parametrize("stage", STAGES)
def test_zero_trains_what_ddp_trains(stage, folder, ddp):
    config = {"deepspeed": str(folder / f"ds_z{stage}_config.json")}
    output = trained(folder, f"zero{stage}", **config)
    assert furthest(weights(output), ddp) < 1e-5
    assert (output / "checkpoint-1" / "grpo_state_1.pt").is_file() and not (output / ".saving").exists()
    resumed = trained(folder, f"zero{stage}-resumed", resume_from_checkpoint=str(output / "checkpoint-1"), **config)
    assert furthest(weights(resumed), weights(output)) == 0.0
