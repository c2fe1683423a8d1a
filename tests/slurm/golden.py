"""Scripts as they are to be, and how they are made. `python -m tests.slurm.golden` writes all of them anew."""

from __future__ import annotations

from pathlib import Path

from slurm.script import render
from slurm.site import load_site
from slurm.spec import JobSpec, Resources
from tests.conftest import ROOT
from workflows.batch import Wishes, script
from workflows.study import read_study

LARGE = ["base.graph.rmat.scale=28", "resources={ranks: 64, threads: 7}"]
READY = {  # slurm/scripts/SITE-WORKFLOW.sh: the study it is a run of, and what is overridden
    "frontier-embedding": ("embedding_rmat", LARGE),
    "frontier-llm": ("frontier_22b", []),
    "loopback-embedding": ("embedding_rmat", []),
    "loopback-llm": ("llm_layouts", []),
    "perlmutter-embedding": ("embedding_rmat", LARGE),
    "perlmutter-llm": ("frontier_22b", []),
}


def job(**changes: object) -> JobSpec:
    """Return a plain job with some fields changed."""
    plain = {
        "name": "study.run-0a1b2c3d",
        "program": "workflows.llm.program",
        "run_dir": Path("/scratch/runs/study/run-0a1b2c3d"),
        "config": "id: run-0a1b2c3d\nconfig: {}\n",
        "components": (Resources(ranks=2),),
        "python": Path("/opt/venv/bin/python"),
    }
    return JobSpec(**{**plain, **changes})


HARD = {  # tests/golden/NAME.sh
    "staged": (
        job(components=(Resources(64, 7),), archive=Path("/ccs/env.tar.gz"), account="abc123"),
        "frontier",
    ),
    "heterogeneous": (
        job(
            components=(Resources(8, 7), Resources(100, 2, on_gpus=False)),
            walltime_s=5400,
            queue="extended",
            account="abc123",
        ),
        "frontier",
    ),
    "hostile": (
        job(
            directory=Path("/home/o'hara/$(touch pwned)"),
            run_dir=Path("/scratch/a b/'; touch pwned #/`touch pwned`/\\/*"),
            python=Path('/opt/"venv"/bin/python'),
            config="END_OF_RUN_YAML\n$(touch pwned)\n'\"\\\nEND_OF_RUN_YAML1\n",
            environment={"PYTHONPATH": "/a b:$HOME/'`touch pwned`"},
        ),
        "loopback",
    ),
}


def ready(name: str) -> str:
    """Return the ready script of that name as it is rendered now."""
    name_of_study, overrides = READY[name]
    study = read_study(ROOT / "studies" / f"{name_of_study}.yaml", overrides, name.partition("-")[0])
    return script(study, study.runs[0].id, Wishes(portable=True))


def texts() -> dict[Path, str]:
    """Return every script by its path."""
    shipped = {ROOT / "slurm" / "scripts" / f"{name}.sh": ready(name) for name in READY}
    hard = {
        ROOT / "tests" / "golden" / f"{name}.sh": render(made, load_site(site))
        for name, (made, site) in HARD.items()
    }
    return {**shipped, **hard}


if __name__ == "__main__":
    for path, text in texts().items():
        path.write_text(text)
