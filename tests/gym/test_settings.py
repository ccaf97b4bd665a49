"""Names of settings: what is honoured, and what is refused in one sentence."""

import copy
import pickle
import subprocess
import sys

import pytest

from tests.gym.catalogue import REPOSITORY
from trl_grpo_ext.gym import ExperimentConfig, GRPOArguments, GRPOConfig
from trl_grpo_ext.gym.settings import OTHER_NAMES
from trl_grpo_ext.gym.translation import gradient_config, lesson_config

# Each of the documents' names: TRL's, a value, and what TRL's setting then is.
VALUES = {
    "clip_eps": ("epsilon", 0.3, 0.3),
    "clip_range": ("epsilon", 0.3, 0.3),
    "gradient_accumulation": ("gradient_accumulation_steps", 4, 4),
    "group_size": ("num_generations", 5, 5),
    "kl_coef": ("beta", 0.05, 0.05),
    "lr": ("learning_rate", 1e-5, 1e-5),
    "max_epochs": ("num_train_epochs", 2, 2),
    "normalize_advantages": ("scale_rewards", False, "none"),
    "num_epochs_per_update": ("num_iterations", 3, 3),
    "response_length": ("max_completion_length", 64, 64),
    "temperature_eval": ("eval_temperature", 0.2, 0.2),
    "temperature_train": ("temperature", 0.6, 0.6),
}
SHARED = {"group_size", "max_epochs", "response_length", "temperature_eval", "temperature_train"}


def test_every_other_name_is_tried_here_and_in_the_page():
    assert VALUES.keys() == OTHER_NAMES.keys()
    lines = (REPOSITORY / "docs" / "gym.md").read_text().splitlines()
    table = [line.split("|")[1:3] for line in lines if line.startswith("| `")]
    for name, known in OTHER_NAMES.items():
        assert any(f"`{name}" in first and f"`{known}" in second for first, second in table), name


@pytest.mark.parametrize("name", VALUES)
def test_a_name_of_the_documents_is_trls_setting(name):
    known, given, expected = VALUES[name]
    config = GRPOConfig(**{name: given})
    assert getattr(gradient_config(config), known) == expected
    assert getattr(config, name) == given and getattr(config, known) == expected
    if name in SHARED:
        assert getattr(lesson_config(config)[0], known) == expected
    else:
        with pytest.raises(ValueError, match=rf"{name}.* belongs to training with a gradient"):
            lesson_config(config)


def test_without_settings_it_is_trls_config():
    ours, trls = gradient_config(GRPOConfig()), gradient_config(GRPOConfig(bf16=False))
    different = {name for name in vars(ours) if repr(getattr(ours, name)) != repr(getattr(trls, name))}
    assert different <= {"logging_dir", "run_name"}
    assert (ours.num_generations, ours.per_device_train_batch_size, ours.beta) == (8, 8, 0.0)
    assert lesson_config(GRPOConfig())[0].num_generations == 5


@pytest.mark.parametrize(("group", "rows_per_device"), [(2, 8), (3, 3), (4, 8), (5, 5), (8, 8), (16, 16)])
def test_a_batch_holds_whole_groups(group, rows_per_device):
    args = gradient_config(GRPOConfig(group_size=group))
    assert args.per_device_train_batch_size == args.per_device_eval_batch_size == rows_per_device


def test_a_batch_size_that_is_given_is_kept():
    args = gradient_config(GRPOConfig(group_size=5, generation_batch_size=40))
    assert (args.per_device_train_batch_size, args.generation_batch_size) == (8, 40)
    with pytest.raises(ValueError, match=r"num_generations \(group_size\)"):
        gradient_config(GRPOConfig(group_size=5, per_device_train_batch_size=4))


def test_unknown_names_are_refused_where_they_are_set():
    with pytest.raises(AttributeError, match="no setting 'grup_size', did you mean 'group_size'"):
        GRPOConfig(grup_size=4)
    args = GRPOArguments()
    with pytest.raises(AttributeError, match="no setting 'lrr'"):
        args.lrr = 1e-5
    with pytest.raises(AttributeError, match="no setting 'epohcs'"):
        args.epohcs  # noqa: B018


def test_two_names_of_one_setting_are_refused():
    with pytest.raises(ValueError, match=r"epsilon \(clip_eps, clip_range\) is given by two names"):
        GRPOConfig(clip_range=0.2, clip_eps=0.2)


def test_a_later_assignment_wins():
    args = GRPOArguments(learning_rate=1e-5)
    args.lr = 2e-5
    assert gradient_config(args).learning_rate == 2e-5


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kl_coef": -0.1}, r"beta \(kl_coef\) must be a number at least 0, not -0.1"),
        ({"clip_range": 0}, r"epsilon \(clip_eps, clip_range\) must be a number above 0, not 0"),
        ({"temperature_train": 0.0}, r"temperature \(temperature_train\) must be a number above 0"),
        ({"lr": "fast"}, r"learning_rate \(lr\) must be a number at least 0, not 'fast'"),
        ({"lessons_per_group": 2}, "lessons_per_group is a setting of TrainingFreeGRPO"),
        ({"group_size": 1}, "num_generations"),
    ],
)
def test_values_that_cannot_work_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        gradient_config(GRPOConfig(**settings))


def test_normalize_advantages_is_true_or_false():
    with pytest.raises(ValueError, match="normalize_advantages must be True or False, not 1"):
        GRPOConfig(normalize_advantages=1)


def test_copies_are_independent():
    config = GRPOConfig(group_size=4)
    for other in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        other.group_size = 6
        assert (config.group_size, other.group_size) == (4, 6)
    assert repr(config) == "GRPOConfig(num_generations=4)"


def test_yaml(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("learning_rate: 1e-5\nkl_coef: 0.05\ngroup_size: 4\n")
    config = ExperimentConfig.from_yaml(path)
    assert (config.learning_rate, config.beta, config.num_generations) == (1e-5, 0.05, 4)
    # Not in the file: TRL's default.
    assert config.num_iterations == 1
    path.write_text("training: {learning_rate: 1e-5}\n")
    with pytest.raises(AttributeError, match="no setting 'training'"):
        ExperimentConfig.from_yaml(path)
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="must hold one mapping of settings to values, not list"):
        ExperimentConfig.from_yaml(path)


def test_importing_needs_neither_torch_nor_trl():
    code = "import sys, trl_grpo_ext.gym as g; g.GRPOConfig(group_size=4, max_epochs=2); print({'torch', 'trl'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
