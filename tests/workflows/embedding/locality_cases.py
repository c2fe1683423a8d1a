"""Rows that stand by their neighbours, and parts of graphs, on ranks; test_on_ranks.py judges them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mpi4py import MPI

from mpi_ops.columns import Columns
from tests.workflows.embedding.graph_cases import config, dense, shared_file, whole
from workflows.embedding import leaves, methods, parts
from workflows.embedding.config import EmbedConfig
from workflows.embedding.errors import GraphError
from workflows.embedding.graph import Graph, load
from workflows.embedding.placement import Placement
from workflows.embedding.problem import Problem
from workflows.embedding.projection import projection

KINDS = ("label_propagation", "metis")


def planted(
    groups: int = 4, size: int = 60, inside: float = 0.15, outside: float = 0.004, seed: int = 3
) -> str:
    """Return the edges of a graph whose groups have most of their edges inside, and whose ids say nothing of them."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(groups), size))
    alike = group[:, None] == group
    a, b = np.nonzero(np.triu(rng.random(alike.shape) < np.where(alike, inside, outside), 1))
    return "".join(f"{i} {j} {1 + (i + j) % 5}\n" for i, j in zip(a, b, strict=True))


def embedded(comm: MPI.Intracomm, wanted: EmbedConfig) -> torch.Tensor:
    """Return what a method makes of a graph, in the order of ids, on every rank."""
    placement = Placement(load(comm, wanted.graph), wanted.graph.partition)
    problem, method = Problem(placement.graph, wanted), methods.get(wanted.embedding.method)
    state = method.begin(problem)
    for step in range(1, method.steps(wanted.embedding) + 1):
        method.advance(problem, state, step)
    made = method.result(problem, state)
    placement.bring_back(made)
    return whole(placement.home, made)


def halo_rows(graph: Graph) -> int:
    """Return the rows that all ranks together need of others."""
    outside = {int(column) for column in graph.columns} - set(graph.rows)
    return graph.comm.allreduce(len(outside))


def test_vectors_do_not_depend_on_where_rows_stand(comm: MPI.Intracomm) -> None:
    X = np.random.default_rng(6).standard_normal((240, 5)).astype(np.float32)
    with shared_file(comm, planted()) as path, shared_file(comm, "", "features.npy") as features:
        if comm.rank == 0:
            np.save(features, X)
        comm.Barrier()
        for graph, embedding in (
            ({"path": path, "weighted": True, "nodes": 240}, {"features": features, "feature_ratio": 0.25}),
            ({"path": path, "weighted": True, "nodes": 240, "direction": "out"}, {"self_influence": 0.5}),
            ({"rmat": {"scale": 9, "edge_factor": 4}}, {"projection": {"kind": "gaussian"}}),
        ):
            alone = embedded(MPI.COMM_SELF, config(graph, embedding={"dim": 24, **embedding}))
            for kind in KINDS:
                wanted = config({**graph, "partition": kind}, embedding={"dim": 24, **embedding})
                assert embedded(comm, wanted).numpy().tobytes() == alone.numpy().tobytes(), (kind, graph)


def test_methods_that_sum_over_nodes_differ_by_rounding_alone(comm: MPI.Intracomm) -> None:
    with shared_file(comm, planted()) as path:
        for method in ("prone", "randne"):
            embedding = {"method": method, "dim": 8}
            graph = {"path": path, "weighted": True, "nodes": 240}
            alone = embedded(MPI.COMM_SELF, config(graph, embedding=embedding)).double()
            for kind in KINDS:
                made = embedded(comm, config({**graph, "partition": kind}, embedding=embedding)).double()
                got, want = made @ made.T, alone @ alone.T  # bases may turn
                assert (got - want).abs().max() < 2e-3 * want.abs().max(), (method, kind)


def test_rows_beside_their_neighbours_need_less_of_others(comm: MPI.Intracomm) -> None:
    """What travels is what the plan says, and each rank has its share of the entries."""
    with shared_file(comm, planted()) as path:
        home = load(comm, config({"path": path, "weighted": True}).graph)
        before, S = halo_rows(home), dense(home)
        for kind in KINDS:
            graph = Placement(home, kind).graph
            columns = Columns(comm, graph.partition, graph.columns)
            planned = comm.allreduce(columns.plan.sent_bytes(1))
            assert planned == 4 * halo_rows(graph)
            assert planned < 0.8 * 4 * before or comm.size == 1, kind
            assert len(graph.columns) <= 1.1 * graph.nnz / comm.size + np.diff(graph.indptr).max()
            columns.free()
            order = np.concatenate(comm.allgather(graph.nodes))
            assert sorted(order.tolist()) == list(range(home.n_nodes))
            np.testing.assert_array_equal(dense(graph), S[np.ix_(order, order)])
            for a, b in zip(graph.indptr[:-1], graph.indptr[1:], strict=True):
                assert (np.diff(order[graph.columns[a:b]]) > 0).all(), "entries lost the order of their ids"


def test_label_propagation_finds_groups_alike_on_any_number_of_ranks(comm: MPI.Intracomm) -> None:
    def found(of: MPI.Intracomm) -> np.ndarray:
        graph = load(of, config({"path": path, "weighted": True}).graph)
        columns = Columns(of, graph.partition, graph.columns)
        weights = np.diff(graph.indptr) + 1
        label = parts.label_propagation(graph, columns, graph.indptr, columns.places, 4, weights)
        columns.free()
        return np.concatenate(of.allgather(label))

    with shared_file(comm, planted()) as path:
        here, alone = found(comm), found(MPI.COMM_SELF)
        S = dense(load(MPI.COMM_SELF, config({"path": path, "weighted": True}).graph))
    np.testing.assert_array_equal(here, alone)
    load_of = np.bincount(here, (S > 0).sum(1) + 1)
    assert load_of.max() <= (1 + parts.BALANCE) * load_of.mean() + (S > 0).sum(1).max()
    edges = np.nonzero(S)
    assert (here[edges[0]] == here[edges[1]]).mean() > 0.6, "by chance it were a quarter"


def test_a_rank_without_a_node_is_a_sentence(comm: MPI.Intracomm) -> None:
    """A star has no part that METIS would cut off for each rank."""
    if comm.size < 3:
        return
    with shared_file(comm, "".join(f"0 {i}\n" for i in range(1, 6))) as path:
        home = load(comm, config({"path": path}).graph)
        sentence = rf"partition=metis leaves rank \d of {comm.size} without a node; take fewer ranks, or rows"
        with pytest.raises(GraphError, match=sentence):
            Placement(home, "metis")


def cut(comm: MPI.Intracomm, wanted: EmbedConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return (adjacency, parts of every node in each level), on every rank."""
    graph = load(comm, wanted.graph)
    made = leaves.cut(Problem(graph, wanted)).numpy()
    return dense(graph), np.concatenate(comm.allgather(made))


def test_every_edge_is_in_one_leaf_that_is_small_enough(comm: MPI.Intracomm) -> None:
    """Card, check 1."""
    entries = 400
    with shared_file(comm, planted()) as path:
        graph = {"path": path, "weighted": True, "nodes": 250}
        wanted = config(graph, embedding={"method": "partitioned", "leaves": {"entries": entries}})
        S, parts_of = cut(comm, wanted)
        np.testing.assert_array_equal(parts_of, cut(MPI.COMM_SELF, wanted)[1])
    left, nodes, leaves_of_level = S > 0, set(), []
    for part in parts_of.T:
        inside = left & (part[:, None] == part)
        sizes = [inside[part == each].sum() for each in np.unique(part)]
        assert max(sizes) <= entries
        leaves_of_level.append(np.count_nonzero(sizes))
        nodes |= set(np.flatnonzero(inside.any(1)).tolist())
        border = {i for i in range(len(S)) if any(part[i] != part[j] for j in np.flatnonzero(left[i]))}
        left &= ~inside
        assert set(np.flatnonzero(left.any(1)).tolist()) == border
    assert not left.any(), "an edge is in no leaf"
    assert nodes == set(np.flatnonzero(S.any(1)).tolist())
    assert leaves_of_level[0] > 4
    assert sum(each > 0 for each in leaves_of_level) > 2, "the border was not cut again"


def test_a_partitioned_graph_has_the_same_vectors_on_any_number_of_ranks(comm: MPI.Intracomm) -> None:
    with shared_file(comm, planted()) as path:
        for direction, entries in (("both", 700), ("both", 1 << 20), ("out", 300)):
            graph = {"path": path, "weighted": True, "nodes": 250, "direction": direction}
            embedding = {"dim": 24, "projection": {"s": "sqrt_n"}, "self_influence": 0.5}
            execution = {"column_block": 7}
            parted = {**embedding, "method": "partitioned", "leaves": {"entries": entries}}
            wanted = config(graph, embedding=parted, execution=execution)
            here = embedded(comm, wanted)
            assert here.numpy().tobytes() == embedded(MPI.COMM_SELF, wanted).numpy().tobytes()
            plain = embedded(comm, config(graph, embedding=embedding, execution=execution))
            one_leaf = (
                entries == 1 << 20
            )  # card, check 2: it is FastRP, but of isolated nodes, which no leaf has
            assert (here[:240].numpy().tobytes() == plain[:240].numpy().tobytes()) == one_leaf
            assert not here[240:].any()


def test_a_nodes_vector_is_the_mean_of_its_leaves_by_weight(comm: MPI.Intracomm) -> None:
    embedding = {"dim": 16, "weights": [1.0, 2.0], "projection": {"s": 2.0}}
    with shared_file(comm, planted()) as path:
        graph = {"path": path, "weighted": True, "nodes": 240}
        wanted = config(graph, embedding={**embedding, "method": "partitioned", "leaves": {"entries": 700}})
        S, parts_of = cut(comm, wanted)
        got = embedded(comm, wanted).double().numpy()
    R = projection(wanted.embedding, 240, np.arange(240), range(16), np.ones(240)).double().numpy()
    want, left = np.zeros((240, 16)), S.copy()

    def unit(U: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(U, axis=1, keepdims=True)
        return np.divide(U, length, out=np.zeros_like(U), where=length > 0)

    for part in parts_of.T:
        inside = np.where(part[:, None] == part, left, 0)
        left -= inside
        d = inside.sum(1, keepdims=True)
        A = np.divide(inside, d, out=np.zeros_like(S), where=d > 0)
        power = A @ (np.where(d > 0, d, 1.0) ** -0.5 * R)
        want += d / S.sum(1, keepdims=True) * (unit(power) + 2 * unit(A @ power))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_edges_between_parts_are_known_by_the_border(comm: MPI.Intracomm) -> None:
    """Card, check 2: pairs that are cut are told from pairs of other parts, but not once the border is left out."""
    embedding = {"dim": 64, "weights": [1.0, 1.0], "self_influence": 1.0, "method": "partitioned"}
    with shared_file(comm, planted(outside=0.01)) as path:
        wanted = config({"path": path, "weighted": True}, embedding={**embedding, "leaves": {"entries": 700}})
        S, parts_of = cut(comm, wanted)
        graph = load(comm, wanted.graph)
        problem, method = Problem(graph, wanted), methods.get("partitioned")
        state, told = method.begin(problem), []
        for step in range(1, wanted.embedding.leaves.levels + 1):
            method.advance(problem, state, step)
            told.append(whole(graph, method.result(problem, state)).double())
    part = parts_of[:, 0]
    between = np.triu(part[:, None] != part, 1)
    up, down = (np.nonzero(between & each) for each in (S > 0, S == 0))
    auc = []
    for vectors in (told[0], told[-1]):
        unit = (vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-30)).numpy()
        a, b = ((unit[i] * unit[j]).sum(1) for i, j in (up, down))
        below = np.searchsorted(np.sort(b), a, "left") + np.searchsorted(np.sort(b), a, "right")
        auc.append(below.mean() / 2 / len(b))
    assert abs(auc[0] - 0.5) < 0.1, auc
    assert auc[1] > 0.75, auc


def test_leaves_that_cannot_be_are_a_sentence(comm: MPI.Intracomm) -> None:
    clique_and_ring = "0 1\n0 2\n0 3\n1 2\n1 3\n2 3\n4 5\n5 6\n6 7\n7 4\n"  # 12 and 8 entries
    for text, given, sentence in (
        (
            planted(),
            {"entries": 700, "levels": 1},
            r"levels=1: [\d,]+ entries are cut in each level, and in no leaf",
        ),
        (
            clique_and_ring,
            {"entries": 11},
            r"leaves.entries=11: a leaf would have 12; take more entries a leaf",
        ),
    ):
        embedding = {"method": "partitioned", "leaves": given}
        with shared_file(comm, text) as path, pytest.raises(GraphError, match=sentence):
            embedded(comm, config({"path": path, "weighted": given["entries"] == 700}, embedding=embedding))
