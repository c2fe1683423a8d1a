"""FastRP and ProNE here beside PyPI's `fastrp` (Rust), `nodevectors` (ProNE) and `pycleora`, on the same matrices.

Every measurement is a process (or an MPI job) of its own that maps the same CSR arrays and embeds them with 128
columns; the jobs take turns, round by round, and the least of each figure counts. CPU-seconds and wall time are those
of the embedding alone, peak memory that of the whole process. `gather` reads random rows, as wide as a column block,
on as many threads as FastRP: the bound of its products. Peers run under `--peers PYTHON`, an interpreter that has
them; those that are missing are left out by name. Real graphs are read from ISOFLOP_SHARED.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DIM, BLOCK = 128, 32
WEIGHTS = [0.0, 0.0, 1.0, 4.0]
QUIET_LOAD = 0.3
ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("ISOFLOP_SHARED", ROOT.parent / "shared")) / "data" / "graphs"
CSV = {"delimiter": ",", "header_lines": 1}
GRAPHS: dict[str, dict[str, Any]] = {
    "blogcatalog": {"path": str(SHARED / "blogcatalog.mat"), "direction": "out"},
    "dblp": {"path": str(SHARED / "prone_dblp.ungraph"), "duplicates": "one"},
    "facebook": {"path": str(SHARED / "kc_facebook_edges.csv"), "duplicates": "one", **CSV},
    "rmat-18": {"rmat": {"scale": 18}},
    "rmat-20": {"rmat": {"scale": 20}},
}
LABELS: dict[str, dict[str, Any]] = {
    "blogcatalog": {"labels": str(SHARED / "blogcatalog.mat")},
    "dblp": {"labels": str(SHARED / "prone_dblp.cmty")},
    "facebook": {"labels": str(SHARED / "kc_facebook_target.csv"), **CSV},
}
Jobs = dict[str, tuple[str, int, int]]
JOBS: Jobs = {  # name: (interpreter, ranks, threads)
    "fastrp here": ("ours", 1, 2),
    "fastrp here, 1 thread": ("ours", 1, 1),
    "fastrp here, 2 ranks": ("ours", 2, 1),
    "fastrp rust": ("peers", 1, 2),
    "prone here": ("ours", 1, 2),
    "prone nodevectors": ("peers", 1, 2),
    "pycleora": ("peers", 1, 2),
    "gather": ("ours", 1, 2),
}


def here(method: str, place: Path) -> Callable[[], Any]:
    """Return the embedding by this suite of the rows of this rank."""
    import numpy as np
    from mpi4py import MPI

    from mpi_ops.partition import balanced
    from workflows.embedding import methods
    from workflows.embedding.config import EmbedConfig
    from workflows.embedding.graph import Graph
    from workflows.embedding.problem import Problem

    indptr, columns = np.load(place / "indptr.npy"), np.load(place / "columns.npy", mmap_mode="r")
    comm, n = MPI.COMM_WORLD, len(indptr) - 1
    partition = balanced(np.diff(indptr) + 1, np.arange(n + 1), comm.size)
    mine = partition.rows(comm.rank)
    own = np.ascontiguousarray(indptr[mine.start : mine.stop + 1])
    entries = np.array(columns[own[0] : own[-1]])
    ones = np.broadcast_to(np.float32(1), len(entries))
    graph = Graph(comm, partition, len(columns), own - own[0], entries, ones)
    embedding = {"method": method, "dim": DIM, "weights": WEIGHTS}
    config = EmbedConfig.model_validate(
        {"graph": {"path": "-"}, "embedding": embedding, "execution": {"column_block": BLOCK}}
    )

    def embed() -> Any:
        problem, chosen = Problem(graph, config), methods.get(method)
        state = chosen.begin(problem)
        for step in range(1, chosen.steps(config.embedding) + 1):
            chosen.advance(problem, state, step)
        return chosen.result(problem, state)

    return embed


def peer(name: str, place: Path) -> Callable[[], Any]:
    """Return the embedding by another package."""
    import numpy as np

    indptr, columns = np.load(place / "indptr.npy"), np.load(place / "columns.npy")
    n, ones = len(indptr) - 1, np.ones(len(columns), np.float32)
    if name == "fastrp rust":
        import fastrp

        rows, there = indptr.astype(np.uint64), columns.astype(np.uint64)
        return lambda: fastrp.fit_csr(rows, there, ones, n, DIM, WEIGHTS, seed=1, undirected=False)
    from scipy import sparse

    if name == "prone nodevectors":
        from nodevectors import ProNE

        matrix = sparse.csr_matrix((ones.astype(float), columns, indptr), (n, n))
        return lambda: ProNE(n_components=DIM, verbose=False).fit_transform(matrix)
    from pycleora import SparseMatrix, embed

    row = np.repeat(np.arange(n), np.diff(indptr))
    lines = (f"{a} {b}" for a, b in zip(row.tolist(), columns.tolist(), strict=True) if a < b)
    cleora = SparseMatrix.from_iterator(lines, "complex::reflexive::node")
    return lambda: embed(cleora, feature_dim=DIM, num_iterations=len(WEIGHTS))


def gather(place: Path) -> Callable[[], Any]:
    """Return a read of as many random rows as the matrix has entries, a column block wide."""
    import numpy as np
    import torch

    n = len(np.load(place / "indptr.npy", mmap_mode="r")) - 1
    entries = len(np.load(place / "columns.npy", mmap_mode="r"))
    rows = torch.randn(n, BLOCK)
    step = 1 << 20
    drawn = torch.randint(n, (step,))
    out = torch.empty(step, BLOCK)
    times = max(1, entries // step)

    def read() -> float:
        for _ in range(times):
            torch.index_select(rows, 0, drawn, out=out)
        return times * step * BLOCK * 4.0

    return read


def job(name: str, place: Path) -> None:
    """Measure one job, and print its figures; vectors go to a file where they are to be scored."""
    interpreter, ranks, threads = JOBS[name]
    if interpreter == "ours":
        from mpi4py import MPI
        import torch  # isort: skip

        torch.set_num_threads(threads)
        call = gather(place) if name == "gather" else here(name.partition(" ")[0], place)
    else:
        call = peer(name, place)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    made = call()
    figures = {"wall_s": time.perf_counter() - began_s, "cpu_s": time.process_time() - began_cpu_s}
    figures["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if name == "gather":
        figures["read_bytes"] = made
    elif name.startswith("prone"):
        import numpy as np

        parts = [np.asarray(each) for each in made] if isinstance(made, list) else [np.asarray(made)]
        np.save(place / f"{name}.npy", np.concatenate(parts, 1).astype(np.float32))
    if ranks > 1:
        from mpi4py import MPI

        every = MPI.COMM_WORLD.gather(figures)
        if every is None:
            return
        figures = {key: max(each[key] for each in every) for key in figures}
        figures["cpu_s"] = sum(each["cpu_s"] for each in every)
    print(json.dumps(figures))


def prepare(graph: str, place: Path) -> None:
    """Write the CSR arrays of a graph, and print how many entries there are."""
    import numpy as np
    from mpi4py import MPI

    from workflows.embedding.config import GraphConfig
    from workflows.embedding.convert import convert, readable
    from workflows.embedding.graph import load

    config = GraphConfig.model_validate({"self_loops": "drop", **GRAPHS[graph]})
    if config.kind == "mat":
        convert(config.path or "", place)
    made = load(MPI.COMM_SELF, readable(config, place))
    np.save(place / "indptr.npy", made.indptr)
    np.save(place / "columns.npy", made.columns)
    print(json.dumps({"entries": len(made.columns)}))


def score(graph: str, name: str, place: Path) -> None:
    """Print micro and macro F1 of the vectors of a job at 10 % of the labels."""
    import numpy as np
    import torch
    from mpi4py import MPI

    from mpi_ops.partition import even
    from workflows.embedding.config import ClassificationConfig
    from workflows.embedding.evaluation import classify
    from workflows.embedding.graph import Graph
    from workflows.embedding.labels import read_labels

    vectors, indptr = np.load(place / f"{name}.npy"), np.load(place / "indptr.npy")
    n = len(indptr) - 1
    spread = Graph(MPI.COMM_SELF, even(n, 1), 0, indptr, np.empty(0, np.int32), np.empty(0, np.float32))
    config = ClassificationConfig.model_validate({"percents": [10.0], "standardize": False, **LABELS[graph]})
    [found] = classify(spread, [torch.from_numpy(vectors)], read_labels(config, place, n), config)
    print(json.dumps({"micro_f1": found.micro, "macro_f1": found.macro}))


def started(python: str, ranks: int, threads: int, *arguments: str) -> dict[str, float] | str:
    """Return what a job printed, or the last line of what went wrong."""
    launch = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(ranks)] if ranks > 1 else []
    module = ["-m", "mpi4py"] if ranks > 1 else []
    done = subprocess.run(
        [*launch, python, *module, __file__, *arguments],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "RAYON_NUM_THREADS": str(threads),
            "PYTHONPATH": str(ROOT),
        },
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no word"])[-1]
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def measure(graph: str, jobs: Jobs, rounds: int, peers: str) -> dict[str, Any]:
    """Return the least figures of each of the jobs on one graph."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        made = started(sys.executable, 1, 1, "--prepare", graph, place)
        if isinstance(made, str):
            return {"graph": made}
        for _ in range(rounds):
            for name, (interpreter, ranks, threads) in jobs.items():
                python = sys.executable if interpreter == "ours" else peers
                told = started(python, ranks, threads, "--job", name, place)
                before = found.get(name)
                if isinstance(told, str) or isinstance(before, str) or before is None:
                    found[name] = told
                else:
                    found[name] = {key: min(value, before[key]) for key, value in told.items()}
        for name in ("prone here", "prone nodevectors"):
            if graph in LABELS and isinstance(found.get(name), dict):
                told = started(sys.executable, 1, 1, "--score", graph, name, place)
                found[name] |= told if isinstance(told, dict) else {"error": told}
    return {**found, "ratios": ratios(found, made["entries"])}


def ratios(found: dict[str, Any], entries: float) -> dict[str, float]:
    """Return what the figures say beside each other; a ratio is left out where one of its sides is missing."""
    made: dict[str, float] = {}

    def put(name: str, above: str, key: str, below: str) -> None:
        if key in (found.get(above) or ()) and key in (found.get(below) or ()):
            made[name] = found[above][key] / found[below][key]

    put("fastrp: rust CPU-s over ours", "fastrp rust", "cpu_s", "fastrp here")
    put("fastrp: rust wall over ours", "fastrp rust", "wall_s", "fastrp here")
    put("fastrp: our peak memory over rust's", "fastrp here", "peak_mib", "fastrp rust")
    put("fastrp: 2 ranks over 1 rank of 1 thread", "fastrp here, 1 thread", "wall_s", "fastrp here, 2 ranks")
    put("prone: nodevectors CPU-s over ours", "prone nodevectors", "cpu_s", "prone here")
    put("prone: nodevectors wall over ours", "prone nodevectors", "wall_s", "prone here")
    put("prone: our micro F1 over theirs", "prone here", "micro_f1", "prone nodevectors")
    if isinstance(found.get("fastrp here"), dict) and isinstance(found.get("gather"), dict):
        moved = entries * DIM * 4 * len(WEIGHTS) / found["fastrp here"]["wall_s"]
        made["fastrp: bytes gathered a second over a plain gather's"] = (
            moved * found["gather"]["wall_s"] / found["gather"]["read_bytes"]
        )
    return made


def main() -> None:
    """Measure the named graphs and print tables or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--graphs", nargs="+", choices=GRAPHS, default=list(GRAPHS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", default="", help="only those whose names start so: fastrp, prone, pycleora")
    parser.add_argument("--peers", default=sys.executable, help="a Python with fastrp, nodevectors, pycleora")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--score", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job(options.job[0], Path(options.job[1]))
    elif options.prepare:
        prepare(options.prepare[0], Path(options.prepare[1]))
    elif options.score:
        score(*options.score[:2], Path(options.score[2]))
    else:
        load = os.getloadavg()[0]
        if load > QUIET_LOAD:
            print(f"load {load:.2f}: not a quiet machine, only ratios mean something", file=sys.stderr)
        jobs = {name: job for name, job in JOBS.items() if name.startswith((options.jobs, "gather"))}
        found = {graph: measure(graph, jobs, options.rounds, options.peers) for graph in options.graphs}
        print(json.dumps({"load": load, "graphs": found}, indent=1) if options.json else table(found))


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the figures as text."""
    lines = []
    for graph, jobs in found.items():
        lines.append(graph)
        for name, figures in jobs.items():
            if name == "ratios":
                lines += [f"  {what}: {value:.2f}" for what, value in figures.items()]
            elif isinstance(figures, dict):
                lines.append(f"  {name:<24}" + "  ".join(f"{k} {v:,.3f}" for k, v in figures.items()))
            else:
                lines.append(f"  {name:<24}{figures}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
