"""A run as a job of its own: what `isoflop render` prints."""

from __future__ import annotations

import re

import pytest

from slurm.strict_yaml import loads
from tests.conftest import ROOT

FRONTIER = {"22b": (8, "02:00:00"), "175b": (16, "02:00:00"), "1t": (384, "12:00:00")}


@pytest.mark.parametrize("size", FRONTIER)
def test_a_study_for_frontier_renders(isoflop, size):
    done = isoflop("render", ROOT / "studies" / f"frontier_{size}.yaml")
    assert (done.status, done.stderr) == (0, "")
    nodes, walltime = FRONTIER[size]
    assert (
        f"#SBATCH --time={walltime}\n#SBATCH --nodes={nodes}\n#SBATCH --ntasks={8 * nodes}\n" in done.stdout
    )
    assert f"\nsrun -N {nodes} -n {8 * nodes} --ntasks-per-node=8 -c7 --gpus-per-task=1" in done.stdout


def test_a_script_has_the_very_configuration_that_a_driver_would_write(small, isoflop):
    [run, *_] = re.findall(r"^(width16-\S+)", isoflop("plan", small).stdout, re.MULTILINE)
    done = isoflop("render", small, "--site", "loopback", "--run", run, "--walltime", "10")
    held = loads(done.stdout.split("END_OF_RUN_YAML' || exit 2\n")[1].split("END_OF_RUN_YAML")[0]).data
    assert (held["id"], held["site"], held["config"]["model"]["width"]) == (run, "loopback", 16)
    assert f"run={small.parent}/runs/small/{run}\n" in done.stdout
    assert "#SBATCH --time=00:10:00\n" in done.stdout
    assert not (small.parent / "runs").exists(), "rendering touches nothing"


def test_no_secret_of_the_shell_gets_into_a_script(small, isoflop, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hush-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-2")
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "FALSE")
    text = isoflop("render", small, "--site", "loopback", "--set", "sweep.grid={}").stdout
    assert "export HDF5_USE_FILE_LOCKING=FALSE\n" in text
    assert "hush" not in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--site", "local"), "a job is one run, this study has 2; name one with --run; there is width16-"),
        (("--run", "nix"), "no run 'nix'; there is width16-"),
        (("--set", "sweep.grid={}"), "site 'local' has no scheduler"),
        (("--set", "sweep.grid={}", "--site", "loopback", "--walltime", "2h"), "walltime '2h'"),
        (
            ("--set", "sweep.grid={}", "--site", "loopback", "--queue", "gold"),
            "no queue 'gold'; there is batch",
        ),
        (("--set", "sweep.grid={}", "--site", "loopback", "--account", "a;b"), "account 'a;b'"),
        (
            ("--set", "sweep.grid={}", "--site", "loopback", "--set", "resources.threads=9"),
            "threads=9: a node has 8",
        ),
    ],
)
def test_what_cannot_be_rendered_is_said_in_a_sentence(small, isoflop, args, words):
    done = isoflop("render", small, *args)
    assert (done.status, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
