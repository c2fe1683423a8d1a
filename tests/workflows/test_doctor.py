"""Doctor says what is wrong with a machine, on machines with something wrong."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from slurm.site import load_site
from tests.conftest import ROOT
from tests.workflows.conftest import ISOFLOP
from workflows.doctor import driver, file_system, judged, network_plugin

TWICE = """\
#!/bin/sh
# a launcher that starts each rank as a world of its own, as srun does with a foreign MPI
shift 2
"$@"
"$@"
"""


@pytest.fixture
def doctor(tmp_path, isoflop):
    """Return `examine(*args) -> (status, {check: finding})`."""

    def examine(*args: str):
        done = isoflop("doctor", "--runs-dir", tmp_path / "runs", "--json", *args)
        assert "Traceback" not in done.stderr, done.stderr
        return done.status, {finding["check"]: finding for finding in json.loads(done.stdout)}

    return examine


def test_a_sound_machine_has_nothing_wrong(doctor, tmp_path):
    status, found = doctor()
    assert status == 0
    assert {finding["verdict"] for finding in found.values()} <= {"ok", "not checked"}, found
    assert set(found) >= {"names", "world size", "HDF5 and locks", "quota", "clock of files"}
    assert list((tmp_path / "runs").iterdir()) == [], "nothing is left behind"


def test_a_name_that_another_distribution_owns_is_found(doctor, tmp_path, monkeypatch):
    info = tmp_path / "other" / "slurm_scripts-9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slurm-scripts\nVersion: 9\n")
    (info / "top_level.txt").write_text("slurm\n")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{info.parent}")
    status, found = doctor()
    assert (status, found["names"]["verdict"]) == (3, "wrong")
    assert "slurm belongs to slurm-scripts, too" in found["names"]["sentence"]


def test_a_package_in_the_place_of_ours_is_found(doctor, tmp_path, monkeypatch):
    foreign = tmp_path / "other" / "mpi_ops" / "__init__.py"
    foreign.parent.mkdir(parents=True)
    foreign.touch()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'other'}:{ROOT}")
    status, found = doctor()
    assert status == 3
    assert f"`import mpi_ops` finds {foreign}" in found["names"]["sentence"]


def test_a_launcher_of_another_mpi_is_found(doctor, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "twice").write_text(TWICE)
    (tmp_path / "bin" / "twice").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "mine.yaml").write_text("name: mine\ndescription: x\nlauncher: twice\n")
    status, found = doctor("--site", str(tmp_path / "mine.yaml"))
    assert status == 3
    assert "twice -n 2 starts worlds of [1, 1] ranks: mpi4py uses MPICH" in found["world size"]["sentence"]


@pytest.mark.parametrize(
    ("setsid", "sentence"),
    [
        ("", "setsid: No such file or directory; it comes with util-linux"),
        ("echo what is pdeathsig? >&2; exit 1", "what is pdeathsig?; a newer util-linux is needed"),
    ],
)
def test_a_driver_that_could_not_be_detached_is_said(tmp_path, monkeypatch, setsid, sentence):
    if setsid:
        (tmp_path / "setsid").write_text(f"#!/bin/sh\n{setsid}\n")
        (tmp_path / "setsid").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    [finding] = driver(load_site("loopback"))
    assert finding.verdict == "wrong"
    assert finding.sentence.endswith(sentence)
    assert list(driver(load_site("local"))) == []


def test_a_launcher_that_is_not_there_is_said(doctor, tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\ndescription: x\nlauncher: nowhere\n")
    status, found = doctor("--site", str(tmp_path / "mine.yaml"))
    assert (status, found["ranks"]["verdict"]) == (3, "wrong")
    assert "launcher 'nowhere' not found" in found["ranks"]["sentence"]


def test_a_full_quota_is_found_by_writing(tmp_path):
    argv = ["bash", "-c", f"ulimit -f 64; exec {ISOFLOP} doctor --json --runs-dir {tmp_path / 'runs'}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, cwd=ROOT)
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert (done.returncode, found["quota"]["verdict"]) == (3, "wrong")
    assert "1 MiB cannot be written" in found["quota"]["sentence"]


def test_what_ranks_say_is_judged():
    def word(**changes):
        return {"size": 2, "host": "n1", "time_s": 5.0, "library": "MPICH", "gpu": "", **changes}

    def verdicts(*words):
        return {finding.check: finding.verdict for finding in judged("srun", list(words))}

    assert verdicts(word(), word()) == {
        "world size": "ok",
        "clocks of ranks": "ok",
        "GPU-aware MPI": "not checked",
    }
    assert verdicts(word(), word(time_s=8.0))["clocks of ranks"] == "warning"
    assert verdicts(word(gpu="right"), word(gpu="right"))["GPU-aware MPI"] == "ok"
    assert verdicts(word(gpu="right"), word(gpu="a wrong sum"))["GPU-aware MPI"] == "wrong"
    assert verdicts(word()) == verdicts(word(size=1), word(size=1)) == verdicts() == {"world size": "wrong"}


def test_the_plugin_of_the_network_is_looked_for_where_there_are_gpus(tmp_path):
    frontier, environment = load_site("frontier"), {"LD_LIBRARY_PATH": f"/nowhere:{tmp_path}"}
    assert [finding.verdict for finding in network_plugin(frontier, environment)] == ["warning"]
    (tmp_path / "librccl-net.so.0").touch()
    assert [finding.verdict for finding in network_plugin(frontier, environment)] == ["ok"]
    assert list(network_plugin(load_site("local"), environment)) == []


def test_the_file_system_is_that_of_the_longest_mount(tmp_path):
    mounts = f"/dev/a / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\nproc /proc proc rw 0 0\n"
    assert file_system(tmp_path / "runs", mounts) == "nfs4"
    assert file_system(tmp_path.parent, mounts) == "ext4"
