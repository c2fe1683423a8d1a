"""What each rank of an embedding run does. Started as `python -m mpi4py -m workflows.embedding.program RUN_DIR`."""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from launch import bootstrap, checkpoint, heap  # isort: skip  (MPI comes before torch)
import torch
from mpi4py import MPI

from analysis.store.schema import StreamSpec
from launch.agree import everywhere
from launch.metrics import Metrics
from launch.signals import StopSignals
from launch.watchdog import Watchdog
from mpi_ops.counters import tally
from slurm.strict_yaml import load as load_yaml
from workflows.config import parse
from workflows.embedding import graph as graphs
from workflows.embedding import methods, output
from workflows.embedding.config import EmbedConfig
from workflows.embedding.convert import readable
from workflows.embedding.labels import Labels, read_labels
from workflows.embedding.placement import Placement
from workflows.embedding.problem import Blocks, Problem, standardize
from workflows.embedding.update import Update, keep_power, keep_rows

STREAMS = (
    StreamSpec("power_s", "s", "wall time of the step, on the slowest rank"),
    StreamSpec("rows", "1", "of an update: rows that all ranks together multiplied in the step"),
    StreamSpec("halo_bytes", "B", "sent by all ranks together in the step"),
    StreamSpec(
        "micro_f1", "1", "mean over shuffles; step: percent of labels that train, tokens: nodes that train"
    ),
    StreamSpec("link_auc", "1", "of held-out edges against pairs that are none; tokens: held-out edges"),
    StreamSpec("link_hits", "1", "Hits@K of the same; step: K"),
    StreamSpec("macro_f1", "1", "the same, each class counting alike"),
    StreamSpec(
        "ogb_valid", "1", "eval.ogb's metric on the validation split; step: K of Hits@K, tokens: scored"
    ),
    StreamSpec("ogb_test", "1", "the same on the test split"),
)
SUMMARY = (
    "nodes",
    "edges",
    "nnz",
    "dim",
    "ranks",
    "read_s",
    "embed_s",
    "write_s",
    "wall_s",
    "peak_bytes",
    "peak_bytes_least",
    "halo_bytes",
)


@dataclass(slots=True)
class Clock:
    """Seconds of each part of the run, over all attempts that count."""

    read_s: float = 0.0
    embed_s: float = 0.0
    write_s: float = 0.0
    began_s: float = field(default_factory=time.monotonic)

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        now_s = time.monotonic()
        lap_s, self.began_s = now_s - self.began_s, now_s
        return lap_s


def main() -> None:
    """Run as one rank of the job that the command line names."""
    heap.give_back()
    with bootstrap.start() as job:
        held = load_yaml(job.run.config)
        config = parse(
            EmbedConfig, held.data["config"], lambda at: f"{held.source}: {'.'.join(map(str, at))}"
        )
        embed(job, config, Path(held.data["cache_dir"]))


def embed(job: bootstrap.Job, config: EmbedConfig, cache_dir: Path) -> None:
    """Read, embed and write, going on from the last checkpoint if there is one.

    Raises:
        RequeueRequest: a signal came to some rank, and all have committed the same step.
    """
    update = Update(config.execution.update_of) if config.execution.update_of else None
    method, clock = update or methods.get(config.embedding.method), Clock()
    graph = graphs.load(job.comm, readable(config.graph, cache_dir), config.eval.links)
    placement = Placement(graph, config.graph.partition)
    problem = Problem(placement.graph, config)
    if not config.eval.links:  # which looks up what is an edge
        graph = placement.home
    wanted = config.eval.classification  # read first: a wrong file must not be found out after the embedding
    labels = everywhere(job.comm, lambda: read_labels(wanted, cache_dir, graph.n_nodes)) if wanted else None
    clock.read_s = clock.lap()
    steps = method.steps(config.embedding)
    halo = tally("halo", "rows")
    nnz = problem.graph.nnz
    work = nnz * method.products(config.embedding)
    saved = checkpoint.steps(job.run.checkpoints)
    meta = _meta(job, config, saved[-1] if saved else 0)
    attempt_file = job.run.attempt(job.attempt, "h5")
    with (
        StopSignals(job.comm) as stop,
        Metrics(job.comm, attempt_file, meta=meta, streams=STREAMS, summary=SUMMARY) as metrics,
    ):
        state = method.begin(problem)
        if config.output.powers:
            keep_rows(job.run.path, graph, config)
        step = _restore(job, placement, state, metrics) if saved else 0
        with Watchdog(job, config.execution.timeout_s) as watchdog:
            while step < steps:
                sent_before = halo.sent_bytes
                method.advance(problem, state, step + 1)
                step += 1
                job.step = step
                lap_s = clock.lap()
                clock.embed_s += lap_s
                metrics.step(step, lap_s)
                slowest_s = job.comm.allreduce(lap_s, MPI.MAX)
                sent = job.comm.allreduce(halo.sent_bytes - sent_before)
                metrics.record(step, work * step // steps, power_s=slowest_s, halo_bytes=sent)
                if update:
                    rows = job.comm.allreduce(int(state["changed"][0].sum()))
                    metrics.record(step, work * step // steps, rows=rows)
                if config.output.powers:
                    keep_power(job.run.path, graph, state["power"], step)
                if step < steps:
                    _border(job, placement, config.execution.checkpoint_every, state, step, metrics, stop)
                    clock.lap()
                watchdog.beat()
        vectors = method.result(problem, state)
        del problem, state  # their memory is the output's now
        placement.bring_back(vectors)
        if config.embedding.standardize:
            standardize(job.comm, vectors, graph.n_nodes)
        clock.embed_s += clock.lap()
        _write(job, config, graph, vectors)
        clock.write_s = clock.lap()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        _evaluate(config, labels, cache_dir, graph, vectors, metrics)
        metrics.finish(
            step,
            nodes=graph.n_nodes,
            edges=graph.edges_read,
            nnz=nnz,
            dim=config.embedding.dim,
            ranks=job.world_size,
            read_s=job.comm.allreduce(clock.read_s, MPI.MAX),
            embed_s=job.comm.allreduce(clock.embed_s, MPI.MAX),
            write_s=job.comm.allreduce(clock.write_s, MPI.MAX),
            wall_s=job.comm.allreduce(clock.read_s + clock.embed_s + clock.write_s, MPI.MAX),
            peak_bytes=job.comm.allreduce(peak, MPI.MAX),
            peak_bytes_least=job.comm.allreduce(peak, MPI.MIN),
            halo_bytes=job.comm.allreduce(halo.sent_bytes),
        )


def _write(job: bootstrap.Job, config: EmbedConfig, graph: graphs.Graph, vectors: Blocks) -> None:
    """Write the vectors in every form that is asked for."""
    place, table = job.run.path, output.vectors_table(vectors)
    tables = {"vectors": table}
    if config.output.neighbours:
        from workflows.embedding.neighbours import nearest

        ids, cosines = nearest(graph, vectors, config.output.neighbours)
        tables |= {"neighbours": output.array_table(ids), "cosines": output.array_table(cosines)}
    attributes = {"run_id": place.name, "config": json.dumps(config.model_dump(mode="json"))}
    output.write_hdf5(graph, tables, place / "vectors.h5", attributes)
    if config.output.npy:
        output.write_npy(graph, table, place / "vectors.npy")
    if config.output.word2vec:
        output.write_word2vec(graph, table, place / "vectors.txt")


def _evaluate(
    config: EmbedConfig,
    labels: Labels | None,
    cache_dir: Path,
    graph: graphs.Graph,
    vectors: Blocks,
    metrics: Metrics,
) -> None:
    """Hold the vectors against what `eval` names; the streams say what a row's step stands for."""
    if config.eval.classification and labels:
        from workflows.embedding.evaluation import classify

        for score in classify(graph, vectors, labels, config.eval.classification):
            metrics.record(round(score.percent), score.trained, micro_f1=score.micro, macro_f1=score.macro)
    if config.eval.links:
        from workflows.embedding.links import score_links

        found = score_links(graph, vectors, config.eval.links)
        metrics.record(0, found.positives, link_auc=found.auc)
        for k, share in found.hits.items():
            metrics.record(k, found.positives, link_hits=share)
    if config.eval.ogb:
        from workflows.embedding.ogb import task_path
        from workflows.embedding.ogb_scores import score_task

        wanted = config.eval.ogb
        for split, value, count in score_task(
            graph, vectors, wanted, task_path(config.graph, wanted, cache_dir)
        ):
            metrics.record(wanted.k if wanted.metric == "hits" else 0, count, **{f"ogb_{split}": value})


def _border(
    job: bootstrap.Job,
    placement: Placement,
    every: int,
    state: methods.State,
    step: int,
    metrics: Metrics,
    stop: StopSignals,
) -> None:
    """Commit what is due between two steps. Raises RequeueRequest, committed, once a signal came to any rank."""
    asked = stop.now()
    if asked or (every and step % every == 0):
        _save(job, placement, state, step, metrics)
    if asked:
        raise bootstrap.RequeueRequest(f"{asked.name}: all ranks stopped after step {step}, committed")


def _save(
    job: bootstrap.Job, placement: Placement, state: methods.State, step: int, metrics: Metrics
) -> None:
    """Commit the state of all ranks; a block of rows of each is a piece of one array over all nodes by their ids."""
    rows, n_nodes = placement.home.rows, placement.home.n_nodes
    pieces = [
        checkpoint.Piece(
            f"{name}/{i}", placement.back(block.numpy()), (n_nodes, block.shape[1]), (rows.start, 0)
        )
        for name, blocks in state.items()
        for i, block in enumerate(blocks)
    ]
    metrics.flush()  # a resumed run keeps the rows up to its checkpoint, so they must be there
    checkpoint.save(job.comm, job.run.checkpoints, step, pieces, {})


def _restore(job: bootstrap.Job, placement: Placement, state: methods.State, metrics: Metrics) -> int:
    """Take the state back, bit by bit, and return the step it is of. Another number of ranks may have saved it."""
    rows, n_nodes = placement.home.rows, placement.home.n_nodes
    blocks = {f"{name}/{i}": block.numpy() for name, held in state.items() for i, block in enumerate(held)}
    wanted = {
        name: checkpoint.Wanted(
            (n_nodes, block.shape[1]), (rows.start, 0), (len(rows), block.shape[1]), block.dtype
        )
        for name, block in blocks.items()
    }
    saved = checkpoint.load(job.comm, job.run.checkpoints, wanted)
    if saved is None:
        return 0
    for name, block in blocks.items():
        block[...] = placement.there(saved.arrays[name])
    for sentence in saved.skipped:
        metrics.event("damaged", sentence, saved.step)
        if job.rank == 0:
            print(f"rank 0: {sentence}; going on from step {saved.step}", file=sys.stderr)
    metrics.event("restored", f"from step {saved.step}", saved.step)
    job.step = saved.step
    return saved.step


def _meta(job: bootstrap.Job, config: EmbedConfig, restore_step: int) -> dict[str, str | int]:
    return {
        "workflow": "embedding",
        "run_id": job.run.path.name,
        "attempt": job.attempt,
        "restore_step": restore_step,
        "world_size": job.world_size,
        "layout": json.dumps({"rows": job.world_size}),
        "config": json.dumps(config.model_dump(mode="json")),
        "torch": str(torch.__version__),
    }


if __name__ == "__main__":
    main()
