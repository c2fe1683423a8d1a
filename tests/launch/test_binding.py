"""A rank uses the GPU that is near to its cores, or the job ends and says which rank has which.

Frontier's and Perlmutter's numbers are those of their documentation; no test here ran on a GPU.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import pytest

from launch.binding import BindingError, Given, choose, given, near_gpus, nics, spans
from launch.rundir import RunDir
from slurm.site import load_site
from slurm.strict_yaml import dumps

FRONTIER, PERLMUTTER = load_site("frontier").slurm().gpus, load_site("perlmutter").slurm().gpus
GCDS = (4, 5, 2, 3, 6, 7, 0, 1)


def frontier(rank: int, gpu: int | str | None = None) -> Given:
    """Return what `srun -c7 --gpus-per-task=1 --gpu-bind=closest` gives a rank of a node."""
    cores = frozenset(range(8 * rank + 1, 8 * rank + 8))  # the first of each cache is the system's
    return Given(rank, cores, (str(GCDS[rank] if gpu is None else gpu),))


def perlmutter(rank: int, threads: int = 16) -> Given:
    """Return what `srun -c 32 --gpus-per-node=4 --gpu-bind=none --cpu-bind=cores` gives one."""
    cores = range(threads * rank, threads * (rank + 1))
    return Given(rank, frozenset([*cores, *(core + 64 for core in cores)]), ("0", "1", "2", "3"))


def test_on_frontier_each_rank_has_the_gcd_of_its_cache_as_device_0():
    node = [frontier(rank) for rank in range(8)]
    made = [choose(node, rank, FRONTIER) for rank in range(8)]
    assert [(each.gpu, each.device) for each in made] == [(gcd, 0) for gcd in GCDS]


def test_on_perlmutter_each_rank_takes_the_nearest_of_four():
    node = [perlmutter(rank) for rank in range(4)]
    made = [choose(node, rank, PERLMUTTER) for rank in range(4)]
    assert [(each.gpu, each.device) for each in made] == [(3, 3), (2, 2), (1, 1), (0, 0)]


def test_a_hidden_gpu_shifts_the_devices():
    assert choose([Given(0, frozenset(range(16)), ("2", "3"))], 0, PERLMUTTER).device == 1


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        ({"ROCR_VISIBLE_DEVICES": "4", "SLURM_GPUS_ON_NODE": "8"}, ("4",)),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, ("0", "1")),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURMD_TRES_BIND": "gpu:none"}, ("0", "1", "2", "3")),
        ({"CUDA_VISIBLE_DEVICES": "", "SLURM_GPUS_ON_NODE": "4"}, ()),
        ({}, ()),
    ],
)
def test_what_a_rank_sees_is_read_from_its_environment(environment, gpus):
    assert given(3, environment) == Given(3, frozenset(os.sched_getaffinity(0)), gpus)


@pytest.mark.parametrize(
    ("node", "site", "sentence"),
    [
        (
            [frontier(0), frontier(1, 4)],
            FRONTIER,
            "rank 1 with cores 9-15: expected GPU 5, got GPU 4",
        ),
        (
            [frontier(0), Given(1, frozenset(range(9, 16)), ())],
            FRONTIER,
            "rank 1 with cores 9-15: expected GPU 5, got none in ROCR_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES",
        ),
        ([frontier(0), frontier(1, "8")], FRONTIER, "rank 1 with cores 9-15: expected GPU 5, got '8' in"),
        ([frontier(0), frontier(1, "GPU-5")], FRONTIER, "expected GPU 5, got 'GPU-5' in"),
        (
            [perlmutter(0, 8), perlmutter(1, 8)],
            PERLMUTTER,
            "rank 1 with cores 8-15,72-79: expected a GPU of its own, got GPU 3, as rank 0 did",
        ),
        (
            [frontier(0), Given(1, frozenset(range(4, 16)), ("5",))],
            FRONTIER,
            "rank 1: expected cores of its own, got 4-15, of which rank 0 has 4-7",
        ),
    ],
)
def test_a_wrong_binding_names_rank_expected_and_got(node, site, sentence):
    with pytest.raises(BindingError) as caught:
        choose(node, 1, site)
    assert str(caught.value).startswith(sentence) or sentence in str(caught.value)
    assert caught.value.exit_code == 3


def test_interfaces_are_those_on_the_numa_domain_of_the_cores(tmp_path):
    for core in range(8):
        (tmp_path / f"devices/system/cpu/cpu{core}/node{core // 2}").mkdir(parents=True)
    for nic, domain in enumerate((3, 1, 0, 2)):
        (tmp_path / f"class/net/hsn{nic}/device").mkdir(parents=True)
        (tmp_path / f"class/net/hsn{nic}/device/numa_node").write_text(f"{domain}\n")
    assert nics({2, 3}, tmp_path) == ("hsn1",)
    assert nics({0, 7}, tmp_path) == ("hsn0", "hsn2")
    assert nics({9}, tmp_path) == ()


def test_cores_are_told_in_spans():
    assert spans([]) == ""
    assert spans([5]) == "5"
    assert spans({0, 1, 2, 64, 66, 67}) == "0-2,64,66-67"


@pytest.fixture
def one_core():
    """Leave this process, and the ranks that it starts, a single core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield min(before)
    os.sched_setaffinity(0, before)


def start(mpiexec, place: Path, gpu: int):
    (place / "run.yaml").write_text(dumps({"site": "a user's own", "gpus": asdict(FRONTIER)}))
    (place / "behaviour").write_text("finish")
    return mpiexec(1, "-m", "tests.launch.ranks", str(place), env={"ROCR_VISIBLE_DEVICES": str(gpu)})


def test_a_rank_with_a_far_gpu_ends_the_job_before_it_begins(mpiexec, tmp_path, one_core):
    [near] = near_gpus({one_core}, FRONTIER)
    far = (near + 1) % 8
    ended, run = start(mpiexec, tmp_path, far), RunDir(tmp_path)
    sentence = f"rank 0 with cores {one_core}: expected GPU {near}, got GPU {far}"
    assert (ended.status, ended.stderr.splitlines()[0]) == (3, f"rank 0: {sentence}")
    assert (run.last_exit().code, run.last_exit().cause) == (3, sentence)
    assert start(mpiexec, tmp_path, near).status == 0
