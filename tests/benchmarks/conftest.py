"""Makes the benchmarks importable. At the end of the path: their names must not hide anyone else's."""

import logging
import sys
import warnings
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "benchmarks"))


@pytest.fixture(autouse=True)
def loud_again():
    """A benchmark run in this process silences what other tests listen to."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        yield
    logging.disable(disabled)
