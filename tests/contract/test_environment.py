"""`make test-contract` lays another transformers over line A: this run must really import it."""

import os

import pytest


def test_imported_transformers_is_the_one_the_makefile_laid_over() -> None:
    expected = os.environ.get("EXPECTED_TRANSFORMERS")
    if expected is None:
        pytest.skip("EXPECTED_TRANSFORMERS is not set: not run by make test-contract")
    import transformers

    assert transformers.__version__ == expected
