"""Scripts: the same bytes as those on disk, right for bash, and whatever a name holds is data in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slurm import script, site
from slurm.errors import SiteError, SpecError
from slurm.site import load_site
from slurm.spec import Resources
from slurm.strict_yaml import loads
from tests.conftest import ROOT
from tests.slurm import golden
from tests.slurm.golden import job
from workflows import workflow

TEXTS = golden.texts()
HOSTILE = [
    "a b",
    "'; touch pwned #",
    '"; touch pwned #',
    "$(touch pwned)",
    "`touch pwned`",
    "\\",
    "a\\",
    "*",
    "&",
    "~",
]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_a_script_is_as_it_stands_on_disk(path):
    assert path.read_text() == TEXTS[path], "write it anew with: python -m tests.slurm.golden"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_bash_takes_the_script_without_a_word(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_there_is_a_ready_script_for_every_site_with_a_scheduler_and_kind_of_run():
    sites = [name for name in site.names() if load_site(name).scheduler]
    wanted = {f"{name}-{kind}.sh" for name in sites for kind in workflow.names()}
    assert {path.name for path in (ROOT / "slurm" / "scripts").glob("*.sh")} == wanted


def test_rendering_is_pure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = job(run_dir=tmp_path / "runs" / "s" / "r")
    assert script.render(spec, load_site("loopback")) == script.render(spec, load_site("loopback"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def pretend(tmp_path):
    """Return `run(text) -> (CompletedProcess, calls)`: bash with an srun that only notes its arguments."""
    log, tools, here = tmp_path / "calls", tmp_path / "bin", tmp_path / "here"
    tools.mkdir()
    here.mkdir()
    for name in ("srun", "scontrol", "sbcast"):
        note = (
            f"import json, sys; open({str(log)!r}, 'a').write(json.dumps([{name!r}, *sys.argv[1:]]) + '\\n')"
        )
        (tools / name).write_text(f"#!{sys.executable}\n{note}\n")
        (tools / name).chmod(0o755)

    def run(text: str):
        env = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}
        argv = ["bash", "-u", "-c", text]
        done = subprocess.run(argv, capture_output=True, text=True, cwd=here, env=env, timeout=30)
        calls = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return done, calls

    return run


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_path_is_data(name, tmp_path, pretend):
    run_dir, elsewhere = tmp_path / name / "run", tmp_path / f"in{name}"
    elsewhere.mkdir()
    config = f"text: {name!r}\n$(touch pwned)\n"
    spec = job(run_dir=run_dir, directory=elsewhere, python=elsewhere / "python", config=config)
    done, calls = pretend(script.render(spec, load_site("loopback")))
    assert (done.returncode, done.stderr) == (0, "")
    [srun] = calls
    python = str(elsewhere / "python")
    assert srun[srun.index(python) + 1 :] == [
        "-m",
        "mpi4py",
        "-m",
        spec.program,
        str(run_dir),
        "--attempt",
        "1",
    ]
    assert (run_dir / "run.yaml").read_text() == config
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("name", [*HOSTILE[:6], "a\nb", "-x", "..", "", "a" * 300, "a;b", "\u202e", "\0"])
def test_a_hostile_job_name_is_refused(name):
    with pytest.raises(SpecError, match="job name"):
        job(name=name)


@pytest.mark.parametrize(
    "path", ["a\nb", "-x", "../x", "a/../b", "a" * 300, "/a\0b", "a\u2028b", "b/" * 2500]
)
@pytest.mark.parametrize("field", ["run_dir", "python", "directory", "archive"])
def test_a_path_that_nobody_means_is_refused(field, path):
    with pytest.raises(SpecError, match=field):
        job(**{field: Path(path)})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"program": "os; import x"}, "program"),
        ({"account": "a b"}, "account"),
        ({"account": "--wrap=x"}, "account"),
        ({"walltime_s": 59}, "walltime of 59 s"),
        ({"components": ()}, "components"),
        ({"restarts_max": -1}, "restarts_max=-1"),
        ({"environment": {"A B": "x"}}, "'A B' is no name"),
        ({"environment": {"A": "x\ny"}}, "one line"),
        ({"environment": {"HF_TOKEN": "x"}}, "HF_TOKEN may be a secret"),
        ({"config": "a\0b"}, "NUL"),
    ],
)
def test_a_wrong_field_is_named(changes, words):
    with pytest.raises(SpecError, match=words):
        job(**changes)


def test_a_run_on_gpus_gets_a_gpu_and_its_cores_for_each_rank():
    text = script.render(job(components=(Resources(64, 7),)), load_site("frontier"))
    assert "\nsrun -N 8 -n 64 --ntasks-per-node=8 -c7 --gpus-per-task=1 --gpu-bind=closest " in text
    assert "#SBATCH --time=02:00:00\n" in text
    assert "NCCL_NET=OFI" in text
    assert "NCCL_NET=OFI" not in script.render(job(components=(Resources(8, 7),)), load_site("frontier"))


@pytest.mark.parametrize(("nodes", "limit"), [(91, "02"), (92, "06"), (183, "06"), (184, "12"), (9472, "12")])
def test_the_walltime_is_that_of_the_bin(nodes, limit):
    text = script.render(job(components=(Resources(8 * nodes, 7),)), load_site("frontier"))
    assert f"#SBATCH --time={limit}:00:00\n#SBATCH --nodes={nodes}\n" in text


def test_what_the_site_does_not_hold_is_refused():
    frontier = load_site("frontier")
    with pytest.raises(SpecError, match=r"9473 nodes: queue 'batch' takes at most 9472"):
        script.render(job(components=(Resources(8 * 9473, 7),)), frontier)
    with pytest.raises(SpecError, match=r"threads=57: a node has 56 cores"):
        script.render(job(components=(Resources(1, 57),)), frontier)
    with pytest.raises(SiteError, match="no queue 'fast'; there is batch, extended, debug"):
        script.render(job(queue="fast"), frontier)
    with pytest.raises(SiteError, match="site 'local' has no scheduler"):
        script.render(job(), load_site("local"))


def test_the_configuration_in_a_ready_script_is_that_of_the_run():
    text = TEXTS[ROOT / "slurm" / "scripts" / "frontier-llm.sh"]
    held = loads(text.split("END_OF_RUN_YAML' || exit 2\n")[1].split("END_OF_RUN_YAML")[0]).data
    assert (held["study"], held["config"]["model"]["width"]) == ("frontier-22b", 6144)
    assert "run=runs/frontier-22b/" + held["id"] in text


def test_the_floor_is_quick_to_import():
    """Neither pydantic nor numpy nor anything like them: a login node loads this for every command."""
    heavy = "{'pydantic', 'numpy', 'torch', 'mpi4py', 'parsl', 'h5py', 'scipy', 'rich', 'typer'} & set(sys.modules)"
    modules = ", ".join(f"slurm.{path.stem}" for path in (ROOT / "slurm").glob("*.py"))
    argv = [sys.executable, "-c", f"import sys, {modules}; print({heavy})"]
    assert subprocess.run(argv, capture_output=True, text=True, cwd=ROOT).stdout == "set()\n"
