"""Every feature on several gloo ranks against one rank at the same global batch: same parameters, library, metrics."""

import os
import socket
import subprocess

import pytest
import torch

from tests.conformance.runs import assert_moved, assert_same, build_model
from tests.distributed import equal_ranks
from tests.ranks import CHILD, REPOSITORY, run_ranks


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """The model, and what training on one rank makes of it."""
    folder = tmp_path_factory.mktemp("one")
    model = build_model(folder / "model")
    equal_ranks.main(model, folder)
    return model, folder


def assert_equal(one_rank, folder, ranks):
    model, alone = one_rank
    start = dict(equal_ranks.extended(model, folder / "start").model.named_parameters())
    for name in equal_ranks.FEATURES:
        theirs = torch.load(alone / f"{name}-0.pt", weights_only=False)
        assert_moved(theirs["parameters"], start)
        for rank in range(ranks):
            ours = torch.load(folder / f"{name}-{rank}.pt", weights_only=False)
            assert_same(ours.pop("parameters"), theirs["parameters"], 1e-5)
            metrics = zip(ours.pop("metrics"), theirs["metrics"], strict=True)
            for mine, other in metrics:
                assert mine == pytest.approx(other, abs=1e-5, nan_ok=True), name
            for what, value in ours.items():
                assert value == theirs[what], (name, rank, what)
    assert (folder / "experiences" / "run" / "bitdelta" / "bitdelta_model.safetensors").is_file()


def test_two_ranks_are_one(one_rank, tmp_path):
    run_ranks("tests.distributed.equal_ranks", one_rank[0], tmp_path)
    assert_equal(one_rank, tmp_path, 2)


@pytest.mark.slow
def test_four_ranks_are_one(one_rank, tmp_path):
    run_ranks("tests.distributed.equal_ranks", one_rank[0], tmp_path, ranks=4, timeout=600)
    assert_equal(one_rank, tmp_path, 4)


@pytest.mark.slow
def test_two_nodes_are_one(one_rank, tmp_path):
    """Two launchers, each with an address of its own on the loopback network, two ranks in all."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = []
    for node in range(2):
        command = ["torchrun", "--nnodes", "2", "--node_rank", str(node), "--nproc_per_node", "1"]
        command += ["--master_addr", "127.0.0.1", "--master_port", str(port), "--local_addr", f"127.0.0.{node + 1}"]
        command += ["-m", "tests.distributed.equal_ranks", str(one_rank[0]), str(tmp_path)]
        environment = os.environ | CHILD | {"GLOO_SOCKET_IFNAME": "lo"}
        nodes.append(subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True))
    try:
        outputs = [node.communicate(timeout=600)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert all(output.count("a rank has ended well") == 1 for output in outputs)
    assert_equal(one_rank, tmp_path, 2)
