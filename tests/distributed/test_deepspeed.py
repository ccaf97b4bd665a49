"""Stage grpo under DeepSpeed ZeRO-2 and ZeRO-3 on two CPU ranks, through the real command, against plain DDP."""

import pytest

pytest.importorskip("llamafactory", reason="needs LLaMA-Factory (line A)")

from tests.distributed.zero_runs import MISSING, build, furthest, trained, trained_by_fork, weights, zero

pytestmark = [
    pytest.mark.line_a,
    pytest.mark.skipif(MISSING, reason="needs deepspeed (the extra [deepspeed], or DEEPSPEED_FOLDER)"),
]
SAVING = {"save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("deepspeed"))


@pytest.fixture(scope="module")
def ddp(folder):
    done = weights(trained_by_fork(folder, "ddp"))
    assert furthest(done, weights(folder / "model")) > 1e-3
    return done


def test_zero3_trains_what_ddp_trains(folder, ddp):
    assert furthest(weights(trained(folder, "zero3", **zero(3))), ddp) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_resumed_run_is_the_straight_one(stage, folder, ddp):
    output = trained(folder, f"straight{stage}", **SAVING, **zero(stage))
    assert furthest(weights(output), ddp) < 1e-5
    assert (output / "checkpoint-1" / "grpo_state_1.pt").is_file() and not (output / "_saving").exists()
    checkpoint = {"resume_from_checkpoint": str(output / "checkpoint-1")}
    resumed = trained(folder, f"resumed{stage}", **SAVING, **checkpoint, **zero(stage))
    assert furthest(weights(resumed), weights(output)) == 0.0


@pytest.mark.slow
def test_a_reference_that_moves(folder, ddp):
    """Also after a resume: it is written whole, and not as this rank's part."""
    moving = {"grpo_config": {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.9}}
    expected = weights(trained_by_fork(folder, "moving", **moving))
    assert furthest(expected, ddp) > 1e-4
    output = trained(folder, "moving3", **SAVING, **moving, **zero(3))
    assert furthest(weights(output), expected) < 1e-5
    checkpoint = {"resume_from_checkpoint": str(output / "checkpoint-1")}
    resumed = trained(folder, "moving3-resumed", **SAVING, **moving, **checkpoint, **zero(3))
    assert furthest(weights(resumed), weights(output)) == 0.0


@pytest.mark.slow
def test_the_command_trains_what_the_forks_train(folder, ddp):
    assert furthest(weights(trained(folder, "command", use_cpu=True)), ddp) < 1e-5
