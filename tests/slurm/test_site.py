"""A site is one YAML file; a wrong one is named with its line."""

from __future__ import annotations

import os

import pytest

from slurm.errors import SiteError
from slurm.site import load_site, names

GOOD = "name: mine\ndescription: a test\nlauncher: mpiexec\n"


@pytest.mark.parametrize("name", names())
def test_every_shipped_site_loads_and_bears_its_own_name(name):
    assert load_site(name).name == name


def test_a_site_without_cores_has_those_of_this_process():
    assert load_site("local").usable_cores() == len(os.sched_getaffinity(0))


def test_a_path_to_a_file_is_a_site(tmp_path):
    (tmp_path / "mine.yaml").write_text(GOOD + "cores: 7\n")
    assert load_site(str(tmp_path / "mine.yaml")).usable_cores() == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + "corse: 3\n", r":4: unknown key 'corse'; did you mean cores\?"),
        (GOOD + "cores: many\n", r":4: cores holds 'many'"),
        (GOOD + "cores: -1\n", r":4: cores holds -1"),
        (GOOD + "cores: true\n", r":4: cores holds True"),
        ("name: mine\ndescription: x\n", "'launcher' is missing"),
        ("- a\n", "mapping"),
    ],
)
def test_a_wrong_site_file_is_refused(tmp_path, text, words):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(SiteError, match=words):
        load_site(str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize("name", ["frontierr", "", "../local", "local/../local"])
def test_an_unknown_site_lists_the_known_ones(name):
    with pytest.raises(SiteError, match="local"):
        load_site(name)


SCHEDULER = """\
scheduler:
  node_cores: 8
  queues:
    - name: batch
      options: [--partition=batch]
      bins: [{nodes: 4, hours: 2}]
"""


@pytest.mark.parametrize(
    ("was", "becomes", "words"),
    [
        (
            "node_cores: 8",
            "node_coers: 8",
            r":5: unknown key 'scheduler.node_coers'; did you mean node_cores\?",
        ),
        ("node_cores: 8", "node_cores: 0", "queues and node_cores"),
        (
            "node_cores: 8",
            "node_cores: 8\n  srun: --mpi=pmi2",
            r":6: scheduler.srun holds '--mpi=pmi2', it takes a list",
        ),
        ("node_cores: 8", "node_cores: 8\n  srun: ['--mpi=pmi2; id']", "srun holds '--mpi=pmi2; id'"),
        ("node_cores: 8", "node_cores: 8\n  modules: ['a b']", "modules holds 'a b'"),
        ("node_cores: 8", "node_cores: 8\n  signal: USR2", "signal holds 'USR2'"),
        ("node_cores: 8", "node_cores: 8\n  environment: {A: 1}", r"environment.A holds 1, it takes text"),
        ("node_cores: 8", "node_cores: 8\n  environment: {HF_TOKEN: x}", "HF_TOKEN may be a secret"),
        (
            "node_cores: 8",
            "node_cores: 8\n  account_needed: 1",
            "account_needed holds 1, it takes true or false",
        ),
        ("node_cores: 8", "node_cores: 8\n  node_gpus: 2\n  gpu_of_l3: [0, 0]", "each of 0 to 1 once"),
        (
            "node_cores: 8",
            "node_cores: 8\n  node_gpus: 2\n  gpu_of_l3: [0, 1]\n  cores_of_l3: 3",
            "cores_of_l3 holds 3",
        ),
        ("node_cores: 8", "node_cores: 8\n  poll_s: [3, 1]", "poll_s holds"),
        ("node_cores: 8", "node_cores: 8\n  stage_root: nvme", "an absolute path"),
        ("nodes: 4, hours: 2", "nodes: 4", r":9: key 'scheduler.queues.0.bins.0.hours' is missing"),
        ("[{nodes: 4, hours: 2}]", "[{nodes: 4, hours: 2}, {nodes: 2, hours: 3}]", "ascending"),
        ("[--partition=batch]", "[partition]", "options holds 'partition'"),
    ],
)
def test_a_wrong_scheduler_is_refused(tmp_path, was, becomes, words):
    (tmp_path / "mine.yaml").write_text(GOOD + SCHEDULER)
    assert load_site(str(tmp_path / "mine.yaml")).slurm().queues[0].walltime_max_s(4) == 7200
    (tmp_path / "mine.yaml").write_text((GOOD + SCHEDULER).replace(was, becomes))
    with pytest.raises(SiteError, match=words):
        load_site(str(tmp_path / "mine.yaml"))
