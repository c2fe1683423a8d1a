"""Scripts: the same bytes as those on disk, right for bash, and whatever a name holds is data in them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slurm import script, site
from slurm.allocation import Allocation, render_allocation
from slurm.errors import SiteError, SpecError
from slurm.site import load_site
from slurm.spec import Resources
from slurm.strict_yaml import loads
from tests.conftest import ROOT
from tests.slurm import golden
from tests.slurm.golden import job
from workflows import workflow
from workflows.config import parse

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


def parts(text: str) -> tuple[str, str]:
    """Return a script without the configuration in it, and that."""
    head, _, rest = text.partition("END_OF_RUN_YAML' || exit 2\n")
    config, _, tail = rest.partition("END_OF_RUN_YAML\n")
    return head + tail, config


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_a_script_is_as_it_stands_on_disk(path):
    stands, rendered = parts(path.read_text()), parts(TEXTS[path])
    assert stands[0] == rendered[0], "write it anew with: python -m tests.slurm.golden"
    if path.parent.name == "golden":
        assert stands[1] == rendered[1]
    else:  # a key that came since, with a default, changes no run
        held, wanted = loads(stands[1]).data, loads(rendered[1]).data
        config = workflow.get(held["workflow"]).config
        assert parse(config, held.pop("config"), str) == parse(config, wanted.pop("config"), str)
        assert held == wanted


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


def under_bash(text: str, fake_slurm) -> subprocess.CompletedProcess:
    """Run a script as the batch step of job 7 with an srun that only notes its arguments."""
    env = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}
    argv = ["bash", "-u", "-c", text]
    return subprocess.run(argv, capture_output=True, text=True, cwd=fake_slurm.here, env=env, timeout=60)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_path_is_data(name, tmp_path, fake_slurm):
    run_dir, elsewhere = tmp_path / name / "run", tmp_path / f"in{name}"
    elsewhere.mkdir()
    config = f"text: {name!r}\n$(touch pwned)\n"
    spec = job(run_dir=run_dir, directory=elsewhere, python=elsewhere / "python", config=config)
    done = under_bash(script.render(spec, load_site("loopback")), fake_slurm)
    assert (done.returncode, done.stderr) == (0, "")
    [srun] = fake_slurm.calls("srun")
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


@pytest.mark.parametrize("restarts_max", [None, 2], ids=["pilot", "study in a job"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_path_is_data_in_an_allocation_too(name, restarts_max, tmp_path, fake_slurm):
    study = tmp_path / name / "study"
    study.mkdir(parents=True)
    allocation = Allocation(
        name="small.pilot",
        node_count=1,
        walltime_s=600,
        argv=("printf", "[%s]", name, "$PYTHONPATH"),
        run_dir=study,
        python=study / "python",
        environment={"PYTHONPATH": name},
        restarts_max=restarts_max,
    )
    done = under_bash(render_allocation(allocation, load_site("loopback")), fake_slurm)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"[{name}][$PYTHONPATH]" in done.stdout
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
        ({"components": (Resources(1), Resources(2)), "archive": Path("a.tar")}, "archive: sbcast"),
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


@pytest.mark.parametrize(
    ("ranks", "requeues", "code"),
    [
        (["0"], 0, 0),
        (["3"], 0, 3),
        (["137"], 0, 137),  # a lost rank is a failure, and no wish for another attempt
        (["75", "0"], 1, 0),
        (["75", "75", "75", "75"], 2, 75),  # restarts_max=2 without a checkpoint in between
        (["75 step-00000001", "75", "75", "75"], 3, 75),
        (["75", "75", "75 step-00000001", "75", "75 step-00000002", "0"], 5, 0),
    ],
)
def test_a_job_requeues_itself_as_long_as_checkpoints_get_on(ranks, requeues, code, tmp_path, fake_slurm):
    text = script.render(job(run_dir=tmp_path / "run", restarts_max=2), load_site("loopback"))
    fake_slurm.say(srun=[*ranks, "0"])
    for attempt in range(1, len(ranks) + 1):
        done = under_bash(text, fake_slurm)
        assert fake_slurm.calls("srun")[-1][-1] == str(attempt)
        assert (tmp_path / "run" / f"attempt-{attempt:03d}.err").exists()
        if len(fake_slurm.calls("scontrol")) < attempt:
            break
    assert fake_slurm.calls("scontrol") == [["requeue", "7"]] * requeues
    assert done.returncode == code
    assert ("giving up: 2 restarts without a new checkpoint" in done.stdout) == (code == 75)


def test_another_job_of_the_run_starts_with_a_fresh_budget(tmp_path, fake_slurm):
    text = script.render(job(run_dir=tmp_path / "run", restarts_max=1), load_site("loopback"))
    fake_slurm.say(srun=["75"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "restarts").write_text("6 1\n")
    assert "requeueing" in under_bash(text, fake_slurm).stdout
    assert "giving up" in under_bash(text, fake_slurm).stdout


def test_the_configuration_in_a_ready_script_is_that_of_the_run():
    text = TEXTS[ROOT / "slurm" / "scripts" / "frontier-llm.sh"]
    held = loads(parts(text)[1]).data
    assert (held["study"], held["config"]["model"]["width"]) == ("frontier-22b", 6144)
    assert "run=runs/frontier-22b/" + held["id"] in text


def test_the_floor_is_quick_to_import():
    """Neither pydantic nor numpy nor anything like them: a login node loads this for every command."""
    heavy = "{'pydantic', 'numpy', 'torch', 'mpi4py', 'parsl', 'h5py', 'scipy', 'rich', 'typer'} & set(sys.modules)"
    modules = ", ".join(f"slurm.{path.stem}" for path in (ROOT / "slurm").glob("*.py"))
    argv = [sys.executable, "-c", f"import sys, {modules}; print({heavy})"]
    assert subprocess.run(argv, capture_output=True, text=True, cwd=ROOT).stdout == "set()\n"
