"""The same on two gloo ranks, started by torchrun as users do."""

from tests.ranks import run_ranks


def test_two_ranks(tmp_path):
    run_ranks("tests.batching.two_ranks", tmp_path)
