"""The same on two gloo ranks, started by torchrun as users do."""

from tests.ranks import run_ranks


def test_two_ranks(model, tmp_path):
    run_ranks("tests.conformance.two_ranks", model, tmp_path)
