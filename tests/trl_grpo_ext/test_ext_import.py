"""The public API: what it lists, and that listing it costs nothing."""

import subprocess
import sys

import pytest

import trl_grpo_ext

PURE = """
import sys
import trl_grpo_ext
loaded = set(sys.modules)
assert not {{"torch", "trl", "transformers"}} & loaded, "import of the package"
assert not any(name.startswith("trl_grpo_ext.") for name in loaded), "eager submodule"
trl_grpo_ext.{name}
assert not {{"torch", "trl", "transformers"}} & set(sys.modules), "use of {name}"
"""


@pytest.mark.parametrize("name", ["REWARDS", "check_reward_columns", "config_kwargs"])
def test_import_loads_neither_torch_nor_trl(name, subprocess_environment):
    command = [sys.executable, "-c", PURE.format(name=name)]
    run = subprocess.run(command, env=subprocess_environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_every_public_name_resolves():
    assert len(trl_grpo_ext.__all__) == len(set(trl_grpo_ext.__all__))
    assert set(trl_grpo_ext.__all__) == {*trl_grpo_ext._HOME, "__version__"}
    assert set(dir(trl_grpo_ext)) == set(trl_grpo_ext.__all__)
    for name in trl_grpo_ext.__all__:
        assert getattr(trl_grpo_ext, name) is not None
    assert trl_grpo_ext.__version__ == "0.1.0"


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'trl_grpo_ext' has no attribute 'nothing'"):
        trl_grpo_ext.nothing  # noqa: B018
