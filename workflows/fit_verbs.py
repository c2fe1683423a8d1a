"""The verbs of the analysis: fit, compare, predict, optimal, scaling. Every import that costs is made by its verb."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workflows.arguments import Json, emit, say

if TYPE_CHECKING:
    from workflows.fits import Source

verbs = typer.Typer()

Data = Annotated[
    Path, typer.Option(help="a study's or run's directory, .h5, .csv, .tsv, .jsonl, or TensorBoard's events")
]
LawName = Annotated[str, typer.Option(help="a name from `isoflop list laws`")]
Columns = Annotated[
    str, typer.Option(help="N=column,D=column,L=column; any two of N, D, C; run, size, flops, data: text")
]
Where = Annotated[list[str] | None, typer.Option(help="COLUMN=TEXT: rows that hold it; repeatable")]
Drop = Annotated[int, typer.Option(min=0, help="leave out so many of the worst rows")]
Hold = Annotated[list[str] | None, typer.Option(help="E=1.69: a parameter that is not fitted; repeatable")]
Bootstrap = Annotated[int, typer.Option(min=0, help="resamples behind the intervals")]
Resample = Annotated[str, typer.Option(help="what is drawn: point, run or block:SIZE")]
Seed = Annotated[int, typer.Option(help="of the resampling")]
Delta = Annotated[
    float | None,
    typer.Option(help="residual from which on a point pulls with constant force; 1: least squares"),
]
Tau = Annotated[
    float, typer.Option(help="share of the pull of points above the law; 0.1: through the best runs")
]
Scale = Annotated[str | None, typer.Option(help="residuals are logarithms (log) or differences (linear)")]


@verbs.command()
def fit(
    context: typer.Context,
    data: Data,
    law: LawName = "chinchilla",
    columns: Columns = "",
    where: Where = None,
    drop_highest_loss: Drop = 0,
    hold: Hold = None,
    bootstrap: Bootstrap = 1000,
    resample: Resample = "point",
    seed: Seed = 0,
    delta: Delta = None,
    tau: Tau = 0.5,
    scale: Scale = None,
    approach: Annotated[str, typer.Option(help="parametric, isoflop or envelope")] = "parametric",
    profile: Annotated[
        str, typer.Option(help="E,alpha or all: intervals from the profile of the objective")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="a directory for fit.json, fit.h5, fit.md, report.html and plots/")
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="MPI ranks that share the resamples")] = 1,
    as_json: Json = False,
) -> None:
    """Fit a law to a table, or to the finished runs of a study; the exponents of all approaches side by side."""
    from workflows import fits, show_fits

    if ranks > 1 and context.obj is None:
        raise typer.Exit(fits.on_ranks(ranks, sys.argv[2:]))
    source = _source(
        data=data,
        law=law,
        columns=columns,
        where=where,
        drop_highest_loss=drop_highest_loss,
        hold=hold,
        bootstrap=bootstrap,
        resample=resample,
        seed=seed,
        delta=delta,
        tau=tau,
        scale=scale,
        spread=context.obj,
    )
    found = fits.fit_all(source, approach, [name for name in profile.split(",") if name])
    if out:
        for path in fits.keep(found, out):
            say(str(path))
    emit(found.to_json() if as_json else show_fits.fit_text(found))


@verbs.command()
def compare(
    data: Data,
    laws: Annotated[str, typer.Option(help="two or more laws of the same inputs: chinchilla,kaplan")],
    columns: Columns = "",
    where: Where = None,
    drop_highest_loss: Drop = 0,
    hold: Hold = None,
    hold_out: Annotated[
        float | None,
        typer.Option(
            help="share of largest runs that each law foretells; default: a study's hold-outs, a table's 0.25"
        ),
    ] = None,
    bootstrap: Bootstrap = 0,
    as_json: Json = False,
) -> None:
    """Hold laws against each other: by AICc, and by how well smaller runs foretell larger ones."""
    from workflows import fits, show_fits

    source = _source(
        data=data,
        law=laws.split(",")[0],
        columns=columns,
        where=where,
        drop_highest_loss=drop_highest_loss,
        hold=hold,
        bootstrap=bootstrap,
    )
    rows = fits.compared(source, laws, hold_out)
    emit(show_fits.comparison_data(rows) if as_json else show_fits.comparison_text(rows))


@verbs.command()
def predict(
    data: Data,
    at: Annotated[str, typer.Option(help="N=1e9,D=2e10: the inputs of the run to foretell")],
    law: LawName = "chinchilla",
    columns: Columns = "",
    where: Where = None,
    drop_highest_loss: Drop = 0,
    hold: Hold = None,
    bootstrap: Bootstrap = 1000,
    resample: Resample = "point",
    seed: Seed = 0,
    delta: Delta = None,
    tau: Tau = 0.5,
    scale: Scale = None,
    as_json: Json = False,
) -> None:
    """Foretell a run, with a 95 % prediction interval."""
    from workflows import fits, show_fits

    source = _source(
        data=data,
        law=law,
        columns=columns,
        where=where,
        drop_highest_loss=drop_highest_loss,
        hold=hold,
        bootstrap=bootstrap,
        resample=resample,
        seed=seed,
        delta=delta,
        tau=tau,
        scale=scale,
    )
    found = fits.predicted(source, at)
    emit(found if as_json else show_fits.prediction_text(found))


@verbs.command()
def optimal(
    data: Data,
    flops: Annotated[list[float], typer.Option(help="compute to spend; repeatable")],
    law: LawName = "chinchilla",
    columns: Columns = "",
    where: Where = None,
    drop_highest_loss: Drop = 0,
    hold: Hold = None,
    bootstrap: Bootstrap = 1000,
    resample: Resample = "point",
    seed: Seed = 0,
    delta: Delta = None,
    tau: Tau = 0.5,
    scale: Scale = None,
    as_json: Json = False,
) -> None:
    """Divide compute between size and tokens."""
    from workflows import fits, show_fits

    source = _source(
        data=data,
        law=law,
        columns=columns,
        where=where,
        drop_highest_loss=drop_highest_loss,
        hold=hold,
        bootstrap=bootstrap,
        resample=resample,
        seed=seed,
        delta=delta,
        tau=tau,
        scale=scale,
    )
    found = fits.optimal(source, flops)
    emit(found if as_json else show_fits.optimal_text(found))


@verbs.command()
def recover(
    damaged: Annotated[
        Path, typer.Argument(help="a metrics file that was cut short, or whose writer was killed")
    ],
    out: Annotated[Path, typer.Argument(help="a new file for what is whole")],
) -> None:
    """Copy what is whole of a damaged metrics file into one that every HDF5 tool opens."""
    from analysis.store import recover

    print(f"{recover(damaged, out):,} rows are whole: {out}")


@verbs.command()
def scaling(
    data: Annotated[Path, typer.Option(help="a table (.csv, .tsv) of times by number of devices")],
    columns: Annotated[str, typer.Option(help="p=devices,t=seconds")] = "p=p,t=t",
    weak: Annotated[bool, typer.Option("--weak", help="the work grows with the devices")] = False,
    bootstrap: Bootstrap = 1000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Turn times at several numbers of devices into efficiencies, and fit Amdahl's or Gustafson's law and the USL."""
    from workflows import fits, show_fits

    found = fits.scaled(data, columns, weak, bootstrap, seed)
    emit(show_fits.scaling_data(found) if as_json else show_fits.scaling_text(found))


def _source(**asked: Any) -> Source:
    """Return what the options say; what was not given is as `Source` has it."""
    from workflows.fits import Source

    return Source(**{name: value for name, value in asked.items() if value is not None})
