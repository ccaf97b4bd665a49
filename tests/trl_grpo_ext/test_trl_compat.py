"""The shims, each against the upstream behaviour that makes it necessary."""

import importlib.util
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from trl_grpo_ext import config_kwargs, grpo_config_fields, prepare_model
from trl_grpo_ext._compat import _repair_availability_flags, read_onto_indexed_cpu

AFTER_A_FAILED_IMPORT = """
from transformers.utils import import_utils
original = import_utils._is_package_available
try:
    from trl import GRPOTrainer
except Exception as error:
    assert "mergekit" in str(error), error
from trl_grpo_ext import import_trl
assert import_trl() is import_trl()
from trl import GRPOTrainer
assert import_utils._is_package_available is original
"""
BEFORE_LLAMAFACTORY = """
from trl_grpo_ext import import_trl
import_trl()
import llamafactory.extras.packages
from trl import GRPOTrainer
"""
AFTER_LLAMAFACTORY = """
import llamafactory.extras.packages
from trl_grpo_ext import import_trl
import_trl()
from trl import GRPOTrainer
"""
needs_llamafactory = pytest.mark.skipif(
    importlib.util.find_spec("llamafactory") is None, reason="LLaMA-Factory is not installed (line B)"
)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(AFTER_A_FAILED_IMPORT, id="after_a_failed_import"),
        pytest.param(BEFORE_LLAMAFACTORY, id="before_llamafactory", marks=[needs_llamafactory, pytest.mark.line_a]),
        pytest.param(AFTER_LLAMAFACTORY, id="after_llamafactory", marks=[needs_llamafactory, pytest.mark.line_a]),
    ],
)
def test_trainer_imports(code, subprocess_environment):
    run = subprocess.run([sys.executable, "-c", code], env=subprocess_environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_only_plain_tuples_are_repaired():
    class TrueToItself(tuple):
        def __bool__(self):
            return self[0]

    theirs = TrueToItself((False, "N/A"))
    module = ModuleType("import_utils")
    vars(module).update(_a_available=(False, "N/A"), _b_available=(True, "1.0"), _c_available=True)
    vars(module).update(_d_available=theirs, _e_version=("1", "2"))
    for _ in range(2):
        _repair_availability_flags(module)
        assert (module._a_available, module._b_available, module._c_available) == (False, True, True)
        assert module._d_available is theirs
        assert module._e_version == ("1", "2")


def test_prepare_model_adds_what_is_missing_and_keeps_what_is_there():
    bare, full = SimpleNamespace(), SimpleNamespace(warnings_issued={"kept": True})
    assert prepare_model(bare) is bare
    assert bare.warnings_issued == {}
    assert prepare_model(full).warnings_issued == {"kept": True}
    with pytest.raises(TypeError, match=r"not the name 'org/name'; load it first with .*from_pretrained"):
        prepare_model("org/name")


def test_config_fields_of_the_installed_trl():
    assert {"num_generations", "beta", "epsilon_high", "output_dir"} <= grpo_config_fields()
    assert config_kwargs(beta=0.1, num_generations=4) == {"beta": 0.1, "num_generations": 4}


def test_unknown_config_field_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"GRPOConfig of TRL \d+\.\d+.* 'num_generation', did you mean 'num_generations'"
    ):
        config_kwargs(beta=0.1, num_generation=4)


def test_an_optimizer_is_read_onto_the_cpu_of_a_rank(tmp_path):
    import torch

    torch.save({"moments": torch.arange(3.0)}, tmp_path / "optimizer.pt")
    read_onto_indexed_cpu()
    read_onto_indexed_cpu()
    for place in ("cpu:1", torch.device("cpu", 0)):
        read = torch.load(tmp_path / "optimizer.pt", map_location=place, weights_only=True)["moments"]
        assert read.device.type == "cpu" and read.tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(RuntimeError, match="restore data location"):
        torch.load(tmp_path / "optimizer.pt", map_location="nowhere", weights_only=True)
