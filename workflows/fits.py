"""Fits of tables and studies as the command asks for them: where the points come from, and what is told of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from analysis import laws
from analysis.allocation import Allocation, curves_of, envelope, isoflop
from analysis.compare import Comparison, Trial, compare, largest
from analysis.errors import AnalysisError, DataError
from analysis.fitting import Spread, fit, profile_of
from analysis.hpc import Scaling, scaling
from analysis.markdown import fit_markdown
from analysis.resampling import parse_resampling
from analysis.result import FitResult
from analysis.sources import METRICS_COLUMNS, is_metrics
from analysis.summary import runs_of_points
from analysis.table import Observations, parse_columns, read_table
from launch.attempt import find_launcher
from workflows.conclude import observations, summaries, trial
from workflows.study import Study, read_study

APPROACHES = ("parametric", "isoflop", "envelope")
A_DECADE = (1e20, 1e21)
A_QUARTER = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where points come from, and which of them are fitted how."""

    data: Path
    law: str = "chinchilla"
    columns: str = ""
    where: list[str] = field(default_factory=list)
    drop_highest_loss: int = 0
    hold: list[str] = field(default_factory=list)
    bootstrap: int = 1000
    resample: str = "point"
    seed: int = 0
    delta: float | None = None
    tau: float = 0.5
    scale: str | None = None
    spread: Spread = map
    """Who fits the resamples."""

    @property
    def held(self) -> dict[str, float]:
        """Return the parameters to hold. Raises DataError for one without a number."""
        return numbers("--hold", ",".join(self.hold))

    def points(self) -> Observations:
        """Return the finished runs of a study's directory, or the rows of a table. Raises DataError."""
        if self.is_study:
            study = self.study()
            return observations(study, summaries(study), self.law).drop_highest_loss(self.drop_highest_loss)
        chosen = laws.get(self.law)
        where = {name: text for name, _, text in (pair.partition("=") for pair in self.where)}
        columns = parse_columns(self.columns)
        if not columns and is_metrics(self.data):
            columns = METRICS_COLUMNS
        points = read_table(self.data, columns, chosen.inputs, chosen.outcome, where)
        return points.drop_highest_loss(self.drop_highest_loss)

    def curves(self) -> list[tuple[float, Any, Any]]:
        """Return (N, tokens, loss) of every run: a study's validation curves, or a table's rows by run."""
        if not self.is_study:
            return curves_of(self.points())
        study = self.study()
        seen = [run for run in summaries(study) if not (run.held_out or run.excluded)]
        curves = [(run.N, run.curves["val_loss"]) for run in seen if "val_loss" in run.curves]
        return [
            (N, rows["tokens"][rows["tokens"] > 0], rows["value"][rows["tokens"] > 0]) for N, rows in curves
        ]

    @property
    def is_study(self) -> bool:
        """Whether the data is a study's directory."""
        return (self.data / "study.yaml").exists()

    def study(self) -> Study:
        """Return the study whose directory this is. Raises ConfigError."""
        return read_study(self.data / "study.yaml", [f"runs_dir={self.data.parent}"])

    def trial(self, points: Observations, share: float | None) -> Trial | None:
        """Return what laws have to foretell: a study's own hold-outs, or the `share` of largest compute.

        None where the share is 0, or a study has no hold-outs. Raises DataError.
        """
        if share is None and self.is_study:
            study = self.study()
            return trial(study, summaries(study), self.law)
        share = A_QUARTER if share is None else share
        return largest(points, share) if share else None

    def fit(self, points: Observations) -> FitResult:
        """Return the law fitted to the points. Raises as `analysis.fit`."""
        resampling = parse_resampling(self.resample)
        return fit(
            self.law,
            points,
            hold=self.held,
            delta=self.delta,
            tau=self.tau,
            scale=self.scale,
            bootstrap=self.bootstrap,
            resampling=resampling,
            seed=self.seed,
            spread=self.spread,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What `fit` tells: the law where the approach is parametric, and the exponents of every approach."""

    approach: str
    points: Observations
    fitted: FitResult | None
    profiles: dict[str, tuple[float, float]]
    allocations: dict[str, Allocation | str]

    @property
    def chosen(self) -> Allocation | None:
        """Return the allocation that was asked for."""
        one = self.allocations.get(self.approach)
        return one if isinstance(one, Allocation) else None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able data, the law's fields first."""
        law = self.fitted.to_json() if self.fitted else {}
        return {
            **law,
            "approach": self.approach,
            "profiles": self.profiles,
            "allocations": {
                name: {"problem": one} if isinstance(one, str) else asdict(one)
                for name, one in self.allocations.items()
            },
        }


def fit_all(source: Source, approach: str, profiles: list[str]) -> Found:
    """Return what was asked for, beside what the other approaches say.

    Raises:
        DataError, NotConvergedError: as `analysis.fit`; the approach is not known, or shows no exponent.
    """
    if approach not in APPROACHES:
        raise DataError(f"--approach {approach}: there is {', '.join(APPROACHES)}")
    points = source.points()
    fitted = source.fit(points)
    asked_for = (
        [name for name in fitted.params if name not in fitted.held] if profiles == ["all"] else profiles
    )
    ends = {name: profile_of(fitted, points, name, source.held) for name in asked_for}
    asked = approach != "parametric"
    allocated = allocations(source, points, fitted) if fitted.trades or asked else {}
    if asked and isinstance(reason := allocated[approach], str):
        raise DataError(reason)
    return Found(
        approach=approach,
        points=points,
        fitted=None if asked else fitted,
        profiles=ends,
        allocations=allocated,
    )


def keep(found: Found, out: Path) -> list[Path]:
    """Write a fitted law into the directory `out`: `fit.{json,h5,md}`, `report.html` and `plots/`; return the files.

    Raises:
        DataError: there is no fitted law to keep, or `out` cannot be written.
    """
    from analysis.report import write_report  # only now: matplotlib takes as long as a fit

    fitted, points = found.fitted, found.points
    if fitted is None:
        raise DataError(f"--out {out}: --approach {found.approach} fits no law that could be kept")
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be made ({error.strerror})") from None
    fitted.write(out, fit_markdown(fitted, found.profiles))
    by_size = {"N", "D"} <= set(fitted.ranges) and set(laws.get(fitted.law).inputs) <= set("NDCMx")
    runs = runs_of_points(points) if by_size else []
    report = write_report(out, Path(fitted.source).name, runs, fitted, points=points)
    return [*(out / f"fit.{kind}" for kind in ("json", "md", "h5")), report]


def on_ranks(ranks: int, argv: Sequence[str]) -> int:
    """Fit with these arguments on MPI ranks of this machine and return the exit code.

    Raises:
        LaunchError: there is no launcher.
    """
    command = [find_launcher("mpiexec"), "-n", str(ranks), sys.executable, "-m", "mpi4py"]
    return subprocess.run([*command, "-m", "workflows.bootstrap", *argv], check=False).returncode


def numbers(option: str, text: str) -> dict[str, float]:
    """Return {"N": 1e9, ...} from `N=1e9,D=2e10`. Raises DataError for what is no number."""
    found = {}
    for name, value in parse_columns(text).items():
        try:
            found[name] = float(value)
        except ValueError:
            raise DataError(f"{option}: {name}={value}, a number is needed") from None
    return found


def allocations(source: Source, points: Observations, fitted: FitResult) -> dict[str, Allocation | str]:
    """Return the exponents of every approach, or why it says nothing: they are to be read side by side."""

    def tried(action: Callable[[], Allocation]) -> Allocation | str:
        try:
            return action()
        except AnalysisError as error:
            return str(error)

    minima = partial(isoflop, points, bootstrap=source.bootstrap, seed=source.seed)
    return {
        "parametric": tried(lambda: parametric(fitted)),
        "isoflop": tried(lambda: minima(vertex="parabola")),
        "isoflop, interpolation": tried(lambda: minima(vertex="interpolation")),
        "envelope": tried(lambda: envelope(source.curves())),
    }


def parametric(fitted: FitResult) -> Allocation:
    """Return the exponents that follow from a fitted law, over one decade of compute.

    Raises:
        DataError: the law, or its fit, trades no size for tokens.
    """
    low, high = (fitted.compute_optimal(flops) for flops in A_DECADE)
    if not np.isfinite([low["N"], high["N"]]).all():
        raise DataError("no trade between size and tokens: a term of the fitted law vanishes")
    a = float(np.log(high["N"] / low["N"]) / np.log(A_DECADE[1] / A_DECADE[0]))
    sizes = [laws.get(fitted.law).compute_optimal(fitted.sampled(), flops)["N"] for flops in A_DECADE]
    slopes = np.log(sizes[1] / sizes[0]) / np.log(A_DECADE[1] / A_DECADE[0])
    known = slopes[np.isfinite(slopes)]
    interval = tuple(np.percentile(known, [2.5, 97.5]).tolist()) if len(known) > 1 else None
    return Allocation(
        approach="parametric",
        a=a,
        b=1 - a,
        coefficient=float(low["N"] / A_DECADE[0] ** a),
        interval=interval,
        optima=[(best["C"], best["N"], best["L"]) for best in (low, high)],
        dropped=[],
    )


def compared(source: Source, candidates: str, share: float | None) -> list[Comparison]:
    """Return laws side by side on one table or study. Raises as `analysis.compare`."""
    points = source.points()
    names = [name for name in candidates.split(",") if name]
    return compare(points, names, source.trial(points, share), source.held, source.bootstrap)


def predicted(source: Source, at: str) -> dict[str, Any]:
    """Return the law's prediction at inputs such as `N=1e9,D=2e10`, its interval, and what is to be said against it."""
    fitted, x = source.fit(source.points()), numbers("--at", at)
    doubts = [fitted.far(**x), *fitted.warnings]
    doubts += [f"{name} is not identified: {why}" for name, why in fitted.unidentified.items()]
    return {
        "law": fitted.law,
        "at": x,
        fitted.outcome: fitted.predict(**x),
        "interval": fitted.interval(**x),
        "warnings": [sentence for sentence in doubts if sentence],
    }


def optimal(source: Source, flops: list[float]) -> list[dict[str, Any]]:
    """Return the best N, D and L at each compute, with intervals, and how far it lies outside."""
    fitted = source.fit(source.points())
    found = []
    for compute in flops:
        best = fitted.compute_optimal(compute)
        known = np.isfinite(best["N"])
        far = (
            fitted.far(N=best["N"], D=best["D"])
            if known
            else "no trade between size and tokens: a term vanishes"
        )
        found.append({**best, "warnings": [far] if far else []})
    return found


def scaled(data: Path, columns: str, weak: bool, bootstrap: int, seed: int) -> Scaling:
    """Return efficiencies and laws of a table of times t over devices p. Raises DataError."""
    points = read_table(data, parse_columns(columns), ("p",), "t")
    return scaling(points, weak=weak, bootstrap=bootstrap, seed=seed)
