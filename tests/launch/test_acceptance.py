"""The first look at a node: its CPU half is done here, and what takes a GPU is said not to have been."""

from __future__ import annotations

import pytest


def test_a_node_without_gpus_passes_and_is_told_what_was_not_run(mpiexec):
    ended = mpiexec(2, "-m", "launch.acceptance")
    lines = dict(line.split(": ", 1) for line in ended.stdout.splitlines())
    assert ended.status == 0, ended.stdout + ended.stderr
    assert ended.stderr == ""
    assert sum(word == "ok" for word in lines.values()) == 2 * 2 * 6, "backends, dtypes, collectives"
    assert {name for name, word in lines.items() if word.startswith("not run")} == {
        "binding",
        "collectives over nccl",
        "GPU-aware MPI",
        "matrix product on a GPU",
    }


@pytest.mark.parametrize("wrong", ["numbers", "error"])
def test_a_wrong_collective_fails(wrong):
    from mpi4py import MPI  # isort: skip
    import torch

    from launch import acceptance

    def collective(_group, rank, _size, brings):
        if wrong == "error":
            raise RuntimeError("no such operation\nmore")
        return brings(rank), brings(rank) + 1

    said = acceptance.outcome(collective, None, MPI.COMM_SELF, torch.float32, torch.device("cpu"))
    assert said.startswith("FAILED: ")


def test_a_node_that_does_not_bind_its_ranks_ends_with_3(mpiexec):
    ended = mpiexec(1, "-m", "launch.acceptance", "frontier", env={"ROCR_VISIBLE_DEVICES": ""})
    assert ended.status == 3
    assert ended.stdout.startswith("binding: FAILED: rank 0 ")


@pytest.mark.gpu
def test_collectives_on_gpus(gpus, mpiexec):
    ended = mpiexec(2, "-m", "tests.sharing_gpus", "launch.acceptance", timeout_s=110)
    lines = dict(line.split(": ", 1) for line in ended.stdout.splitlines() if ": " in line)
    over_nccl = {name: word for name, word in lines.items() if name.endswith("over nccl")}
    assert len(over_nccl) == 2 * 6, ended.stdout + ended.stderr
    assert set(over_nccl.values()) == {"ok"}
    assert lines["matrix product on a GPU"].startswith("ok")
