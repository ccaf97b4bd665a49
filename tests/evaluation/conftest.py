"""One thread: two on two busy cores are slower than one."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)
