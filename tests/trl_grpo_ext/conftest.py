"""The tiny tokenizer, model and trainer of `adapter_runs` as fixtures: no network, no files."""

import os
from pathlib import Path

import pytest
from adapter_runs import make_model, make_tokenizer, make_trainer

# For child processes only: other test folders share this process.
CHILD_SETTINGS = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
}
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def repository():
    return REPOSITORY


@pytest.fixture
def subprocess_environment():
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | CHILD_SETTINGS | {"PYTHONPATH": path}


@pytest.fixture(scope="session")
def tiny_tokenizer():
    return make_tokenizer()


@pytest.fixture
def tiny_model(tiny_tokenizer):
    return make_model(tiny_tokenizer)


@pytest.fixture
def make_tiny_trainer(tiny_model, tiny_tokenizer, tmp_path):
    """`make_tiny_trainer(rewards, rows, steps=3, callbacks=None, eval_rows=None, **GRPOConfig's fields)`."""

    def make(rewards, rows, steps=3, **settings):
        return make_trainer(tiny_model, tiny_tokenizer, tmp_path, rewards, rows, steps, **settings)

    return make
