import pytest

from .proxies import make_library


@pytest.fixture
def library(tmp_path):
    return make_library(tmp_path / "library.db", "add first", "check the sign")
