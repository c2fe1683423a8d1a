"""What an embedding costs a rank in memory, messages and time, by arithmetic alone: no torch, no MPI.

With n rows, z entries and h halo rows a rank, d columns in blocks of b, a rank holds at most the larger of

    reading    edges as read, and their keys before and after repeated ones go
    placing    where `graph.partition` moves rows: entries at home, their new columns, and what is sent and arrives;
               METIS holds the whole graph on rank 0
    embedding  rows (indptr), entries (column, place, value) + state (n d 4 for each matrix of the method)
               + a product (n + h) b 4 + what it sends, s b of the wire's bytes
               + a leaf of method `partitioned`, of at most `embedding.leaves.entries`
               + where rows are moved, a copy of the state in the order of ids, for its checkpoint

beside Python, torch and MPI. A halo has the size that it has where neighbours lie as if by chance; `graph.partition`
makes it smaller than that. Evaluation gathers the labelled nodes' vectors on every rank, and is not counted.
"""

from __future__ import annotations

from workflows.embedding.config import EmbedConfig
from workflows.embedding.methods import get
from workflows.embedding.survey import Survey, survey
from workflows.workflow import Footprint, RankFootprint, RunSize, Traffic

BASE_BYTES = 270 << 20
"""Python, torch, MPI and HDF5, as measured with a graph of a hundred nodes."""
ENTRIES_READ_PER_S = 2e6
"""Of a core, as measured on the text of R-MAT graphs; only `plan` uses it."""
GATHER_BYTES_PER_S = 4e9
"""Of a core, of rows of 128 bytes in random order."""
METIS_BYTES = 150
"""Of an entry on rank 0; 145 were measured on an R-MAT graph of 65,536 nodes."""
START_UP_S = 5.0


def size(config: EmbedConfig) -> RunSize:
    """Return what the run is: numbers in the result, entries times products, and FLOPs of the products."""
    graph, products = survey(config.graph), get(config.embedding.method).products(config.embedding)
    numbers = graph.nodes * config.embedding.dim
    flops = 2.0 * graph.nnz * config.embedding.dim * products
    return RunSize(numbers, numbers, graph.nnz * products, flops, "counted: 2 an entry, column and product")


def facts(config: EmbedConfig, ranks: int) -> dict[str, int | float | str]:
    """Return what `plan` shows of a run."""
    graph = survey(config.graph)
    return {
        "method": config.embedding.method,
        "nodes": graph.nodes,
        "edges": graph.edges,
        "nnz": graph.nnz,
        "dim": config.embedding.dim,
        "memory_bytes": footprint(config, ranks).fullest.peak_bytes,
    }


def footprint(config: EmbedConfig, ranks: int) -> Footprint:
    """Return what a rank holds and sends; ranks are alike, their entries being balanced."""
    graph, costs, embedding = survey(config.graph), get(config.embedding.method), config.embedding
    n, z, h = graph.nodes / ranks, graph.nnz / ranks, graph.halo(ranks)
    wire = 4 if config.execution.wire == "fp32" else 2
    block = min(config.execution.column_block, embedding.dim)
    reading = _reading_bytes(config, graph, ranks)
    index = 4 if ranks == 1 else 8  # a column's number and its place, which one rank need not tell apart
    matrix = 8 * n + 4 * n + z * (index + 4 * costs.values) + (0 if _alike(config) else 4 * z)
    if config.execution.update_of:
        matrix *= 2  # the rows that are multiplied beside all of them; at most those are all
    state = costs.matrices * n * embedding.dim * 4
    operand = (n + h) * block * 4 + h * block * wire * (1 if wire == 4 else 2) * (ranks > 1)
    blocks = -(-embedding.dim // block)
    neighbours = (ranks - 1) if ranks > 1 else 0
    sent = Traffic(neighbours * blocks, round(h * embedding.dim * wire))
    moved = config.graph.partition != "rows" and ranks > 1
    placing = matrix + z * 20 if moved else 0
    if moved and config.graph.partition == "metis":
        placing = max(placing, z * 8 + graph.nnz * METIS_BYTES)
    if moved and config.execution.checkpoint_every:
        state *= 2
    if embedding.method == "partitioned":
        operand = _leaf_bytes(config, graph)
    rank = RankFootprint(
        place="any",
        parameters=round(n * embedding.dim),
        static_bytes=round(matrix + state),
        between_steps_bytes=round(matrix + state),
        microbatch_bytes=0,
        in_flight=0,
        transient_bytes=round(operand),
        peak_bytes=round(BASE_BYTES + max(reading, placing, matrix + state + operand)),
        traffic={"halo": sent},
    )
    return Footprint({"rows": ranks}, (rank,))


def estimated_s(config: EmbedConfig, ranks: int, threads: int) -> float:
    """Return a rough wall time: products are bound by the memory's random reads, not by FLOPs."""
    graph, cores = survey(config.graph), ranks * threads
    products = get(config.embedding.method).products(config.embedding)
    moved = graph.nnz * (config.embedding.dim * 4 + 8) * products
    return START_UP_S + graph.edges / ENTRIES_READ_PER_S / ranks + moved / GATHER_BYTES_PER_S / cores


def _reading_bytes(config: EmbedConfig, graph: Survey, ranks: int) -> float:
    """Return what the reading of the graph holds at most: edges and keys, then keys twice."""
    directions = 2 if config.graph.mirrored else 1
    edges, entries = graph.edges / ranks, directions * graph.edges / ranks
    weight = 0 if _alike(config) else 4
    chunk = config.graph.chunk_bytes
    text = config.graph.kind == "text"
    held = edges * (8 + weight) + entries * (8 + weight) + (6 * chunk if text else 3 * chunk)
    distinct = graph.nnz / ranks
    repeated = 8 * distinct if distinct < 0.9999 * entries else 0
    return max(held, entries * (9 + 3 * weight) + repeated, entries + 8 * distinct + 4 * distinct)


def _leaf_bytes(config: EmbedConfig, graph: Survey) -> float:
    """Return what a rank holds to embed a leaf: its entries as sent and as arrived, two matrices, a product.

    The whole was 9 % above the measured peak of two ranks on an R-MAT graph of 6.2 million entries, in leaves of 4.
    """
    entries = min(config.embedding.leaves.entries, graph.nnz)
    nodes, dim = min(entries, graph.nodes), config.embedding.dim
    return entries * 30 + nodes * (24 + 2 * dim * 4 + min(config.execution.column_block, dim) * 4)


def _alike(config: EmbedConfig) -> bool:
    return config.graph.rmat is not None or not config.graph.weighted
