"""Graphs and vectors on ranks, held against one process and against dense arithmetic; test_on_ranks.py judges them."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI

from mpi_ops.errors import LayoutError
from workflows.embedding import methods
from workflows.embedding.config import EmbedConfig, LinksConfig
from workflows.embedding.errors import GraphError
from workflows.embedding.graph import Graph, load
from workflows.embedding.links import _negatives, score_links
from workflows.embedding.neighbours import nearest
from workflows.embedding.problem import Problem, standardize
from workflows.embedding.projection import projection

EDGES = [
    (0, 1, 2.0),
    (1, 0, 0.3),
    (0, 1, 0.1),
    (5, 2, 1e-3),
    (2, 2, 4.0),
    (7, 0, 1.5),
    (3, 1, 0.25),
    (6, 5, 1.0),
]
NODES = 9
"""4 and 8 have no edge."""


@contextmanager
def shared_file(comm: MPI.Intracomm, text: str, name: str = "edges.txt") -> Iterator[str]:
    """Yield the path of a file that every rank may read."""
    place = comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None)
    path = Path(place) / name
    if comm.rank == 0:
        path.write_text(text)
    comm.Barrier()
    try:
        yield str(path)
    finally:
        comm.Barrier()
        if comm.rank == 0:
            shutil.rmtree(place)


def config(graph: dict[str, Any], **sections: dict[str, Any]) -> EmbedConfig:
    return EmbedConfig.model_validate({"graph": graph, **sections})


def dense(graph: Graph) -> np.ndarray:
    """Return the whole adjacency matrix, on every rank."""
    rows = np.zeros((len(graph.rows), graph.n_nodes))
    rows[np.repeat(np.arange(len(rows)), np.diff(graph.indptr)), graph.columns] = graph.weights
    return np.concatenate(graph.comm.allgather(rows))


def whole(graph: Graph, blocks: list[torch.Tensor]) -> torch.Tensor:
    """Return the vectors of all nodes, on every rank."""
    return torch.cat(graph.comm.allgather(torch.cat(blocks, 1)))


def vectors(comm: MPI.Intracomm, wanted: EmbedConfig) -> torch.Tensor:
    """Return what a method makes of a graph."""
    graph = load(comm, wanted.graph)
    problem, method = Problem(graph, wanted), methods.get(wanted.embedding.method)
    state = method.begin(problem)
    for step in range(1, method.steps(wanted.embedding) + 1):
        method.advance(problem, state, step)
    made = method.result(problem, state)
    if wanted.embedding.standardize:
        standardize(comm, made, graph.n_nodes)
    return whole(graph, made)


def test_rows_are_the_edges_whatever_way_they_are_understood(comm: MPI.Intracomm) -> None:
    text = "# from to weight\n" + "".join(f"{a} {b}\t{w}\n" for a, b, w in EDGES)
    with shared_file(comm, text) as path:
        for direction in ("both", "out", "in"):
            for duplicates, add in (("sum", lambda x, y: x + y), ("one", max)):
                for self_loops in ("keep", "drop"):
                    want = np.zeros((NODES, NODES))
                    for a, b, w in EDGES:
                        ways = {"out": {(a, b)}, "in": {(b, a)}, "both": {(a, b), (b, a)}}[direction]
                        for i, j in ways if a != b or self_loops == "keep" else ():
                            want[i, j] = add(want[i, j], w)
                    graph = load(comm, config({
                        "path": path, "weighted": True, "nodes": NODES, "direction": direction,
                        "duplicates": duplicates, "self_loops": self_loops, "chunk_bytes": 1024,
                    }).graph)  # fmt: skip
                    np.testing.assert_array_equal(dense(graph), want.astype(np.float32))
                    np.testing.assert_allclose(
                        np.concatenate(comm.allgather(graph.degrees())), want.sum(1), rtol=1e-6
                    )
                    assert graph.edges_read == len(EDGES)
                    for a, b in zip(graph.indptr[:-1], graph.indptr[1:], strict=True):
                        assert (np.diff(graph.columns[a:b]) > 0).all(), "columns do not ascend"


def test_a_sum_of_weights_does_not_depend_on_their_order(comm: MPI.Intracomm) -> None:
    """In fp64, 1 + 2^-24 is half way between two fp32 numbers, and four times 2^-54 tips it if they are added first."""
    small = 2.0**-54
    for order in ([small, 1.0, 2.0**-24, small, small, small], [small, small, small, small, 2.0**-24, 1.0]):
        with shared_file(comm, "".join(f"0 1 {w!r}\n" for w in order)) as path:
            graph = load(comm, config({"path": path, "weighted": True, "nodes": 4}).graph)
            assert dense(graph)[0, 1] == np.float32(1 + 2**-23)


def test_words_are_numbered_alike_by_any_number_of_ranks(comm: MPI.Intracomm) -> None:
    lines = [f"node-{a}\tnode-{b}" for a, b, _ in EDGES]
    with shared_file(comm, "\n".join(lines)) as path:
        wanted = config({"path": path, "ids": "string"}).graph
        here, alone = load(comm, wanted), load(MPI.COMM_SELF, wanted)
        np.testing.assert_array_equal(dense(here), dense(alone))
        words = {k: v for each in comm.allgather(here.words) for k, v in each.items()}
        assert words == alone.words
        number = {word: k for k, word in words.items()}
        assert sorted(words) == list(range(7))
        want = np.zeros((7, 7))
        for a, b, _ in EDGES:
            for i, j in {(a, b), (b, a)}:
                want[number[b"node-%d" % i], number[b"node-%d" % j]] += 1
        np.testing.assert_array_equal(dense(here), want)


def test_an_r_mat_graph_does_not_depend_on_ranks(comm: MPI.Intracomm) -> None:
    wanted = config({"rmat": {"scale": 9, "edge_factor": 4}}).graph
    here = dense(load(comm, wanted))
    np.testing.assert_array_equal(here, dense(load(MPI.COMM_SELF, wanted)))
    np.testing.assert_array_equal(here, here.T)
    assert set(np.unique(here)) == {0.0, 1.0}
    assert not here.diagonal().any()


def test_vectors_are_bit_identical_to_those_of_one_rank(comm: MPI.Intracomm) -> None:
    for embedding, execution in (
        ({"dim": 48}, {"column_block": 32}),
        ({"dim": 48}, {"column_block": 7}),
        ({"dim": 9, "standardize": True, "self_influence": 0.5}, {}),
        ({"dim": 16, "weights": [1.0, 0.5], "row_l2": False, "input_matrix": "adjacency"}, {}),
        ({"dim": 16, "projection": {"kind": "gaussian"}}, {}),
    ):
        wanted = config({"rmat": {"scale": 10, "edge_factor": 4}}, embedding=embedding, execution=execution)
        here, alone = vectors(comm, wanted), vectors(MPI.COMM_SELF, wanted)
        assert here.numpy().tobytes() == alone.numpy().tobytes(), embedding
        assert here.isfinite().all()
        assert len({row.tobytes() for row in here.numpy()}) > 500


def test_vectors_with_another_wire_or_overlap_are_those_but_for_rounding(comm: MPI.Intracomm) -> None:
    def made(**execution: Any) -> torch.Tensor:
        return vectors(comm, config({"rmat": {"scale": 9}}, embedding={"dim": 24}, execution=execution))

    exact = made()
    assert (made(overlap=True) - exact).abs().max() < 1e-4 * exact.abs().max()
    assert 0 <= (made(wire="bf16") - exact).abs().max() < 0.1 * exact.abs().max()


def test_fastrp_is_its_closed_form(comm: MPI.Intracomm) -> None:
    """Card, check 1: sum of w_i rownorm(A^i L R) by dense matrix powers, in fp64."""
    weights, beta, influence = [0.5, 0.0, 1.0, 2.5], -0.7, 0.25
    rng = np.random.default_rng(3)
    pairs = rng.integers(0, 190, (700, 2))  # of 200 nodes the last ten are isolated
    with shared_file(comm, "".join(f"{a},{b}\n" for a, b in pairs)) as path:
        wanted = config(
            {"path": path, "delimiter": ",", "nodes": 200},
            embedding={
                "dim": 32, "weights": weights, "normalization_strength": beta, "self_influence": influence,
                "projection": {"s": 3.0},
            },
            execution={"column_block": 20},
        )  # fmt: skip
        graph = load(comm, wanted.graph)
        S = dense(graph)
        d = S.sum(1)
        A = np.divide(S, d[:, None], out=np.zeros_like(S), where=d[:, None] > 0)
        R = projection(wanted.embedding, 200, np.arange(200), range(32), np.ones(200)).double().numpy()
        LR = np.where(d > 0, d, 1.0)[:, None] ** beta * R

        def unit(U: np.ndarray) -> np.ndarray:
            length = np.linalg.norm(U, axis=1, keepdims=True)
            return np.divide(U, length, out=np.zeros_like(U), where=length > 0)

        want = influence * unit(LR)
        for i, w in enumerate(weights, 1):
            want += w * unit(np.linalg.matrix_power(A, i) @ LR)
        got = vectors(comm, wanted).double().numpy()
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_last_columns_start_from_features(comm: MPI.Intracomm) -> None:
    X = np.random.default_rng(6).standard_normal((512, 5)).astype(np.float32)
    with shared_file(comm, "", "features.npy") as path:
        if comm.rank == 0:
            np.save(path, X)
        comm.Barrier()
        graph = {"rmat": {"scale": 9, "edge_factor": 4}}
        embedding = {"dim": 16, "features": path, "feature_ratio": 0.25, "weights": [1.0], "row_l2": False}
        wanted = config(graph, embedding=embedding, execution={"column_block": 7})
        made = vectors(comm, wanted)
        assert made.numpy().tobytes() == vectors(MPI.COMM_SELF, wanted).numpy().tobytes()
        plain = vectors(comm, config(graph, embedding={"dim": 16, "weights": [1.0], "row_l2": False}))
        assert torch.equal(made[:, :12], plain[:, :12])
        eye = projection(wanted.embedding, 512, np.arange(512), range(12, 16), np.ones(512)).numpy()
        W, left, _, _ = np.linalg.lstsq(X, eye, rcond=None)
        assert left.max() < 1e-8, "the columns are not X times one matrix"
        assert set(np.round(np.abs(W) / math.sqrt(3 / 16), 4).ravel()) <= {0.0, 1.0}
        S = dense(load(comm, wanted.graph))
        d = S.sum(1)
        want = np.divide(1.0, d, out=np.zeros_like(d), where=d > 0)[:, None] * (
            S @ (np.where(d > 0, d, 1.0)[:, None] ** -0.5 * eye)
        )
        np.testing.assert_allclose(made[:, 12:].numpy(), want, atol=1e-5)
        with pytest.raises(GraphError, match=r"is float32 \[512, 5\]; features are numbers of \(256 nodes"):
            vectors(comm, config({"rmat": {"scale": 8}}, embedding=embedding))


def test_isolated_nodes_stay_zero_when_columns_are_standardised(comm: MPI.Intracomm) -> None:
    with shared_file(comm, "0 1\n1 2\n2 0\n5 6\n6 1\n") as path:
        made = vectors(comm, config({"path": path, "nodes": 9}, embedding={"dim": 8, "standardize": True}))
    zero = (made == 0).all(1)
    assert set(np.flatnonzero(zero).tolist()) >= {3, 4, 7, 8}
    connected = made[[0, 1, 2, 5, 6]]
    assert (connected != 0).any(1).sum() >= 3


def test_standardised_columns_have_mean_0_and_deviation_1(comm: MPI.Intracomm) -> None:
    made = vectors(comm, config({"rmat": {"scale": 9, "edge_factor": 40}}, embedding={"dim": 8})).double()
    wanted = config({"rmat": {"scale": 9, "edge_factor": 40}}, embedding={"dim": 8, "standardize": True})
    got = vectors(comm, wanted).double()
    kept = (made != 0).any(1)
    want = (made - made.mean(0)) / made.std(0, correction=0)
    assert (got[kept] - want[kept]).abs().max() < 1e-5


def test_renamed_nodes_get_the_same_vectors(comm: MPI.Intracomm) -> None:
    """Card, check 2: with R renamed along with the nodes, the result is renamed and nothing else."""
    rng = np.random.default_rng(8)
    pairs, new = rng.integers(0, 50, (200, 2)), rng.permutation(50)

    class Renamed(Problem):
        def projection(self, scale: np.ndarray) -> list[torch.Tensor]:
            old = np.argsort(new)[self.graph.rows.start : self.graph.rows.stop]
            rows = [
                projection(self.config.embedding, 50, old[i : i + 1], range(12), np.ones(1))
                for i in range(len(old))
            ]
            return [torch.cat(rows) * torch.from_numpy(scale).float()[:, None]]

    def made(kind: type[Problem], ends: np.ndarray) -> torch.Tensor:
        with shared_file(comm, "".join(f"{a} {b}\n" for a, b in ends)) as path:
            wanted = config({"path": path, "nodes": 50}, embedding={"dim": 12})
            graph = load(comm, wanted.graph)
            problem, method = kind(graph, wanted), methods.get("fastrp")
            state = method.begin(problem)
            for step in range(1, 5):
                method.advance(problem, state, step)
            return whole(graph, method.result(problem, state))

    before, after = made(Problem, pairs), made(Renamed, new[pairs])
    assert (after[new] - before).abs().max() < 1e-5


def test_prone_is_its_dense_form(comm: MPI.Intracomm) -> None:
    """With as many columns as nodes nothing is cut off, and all cosines are those of full factorisations."""
    n, mu, theta = 40, 0.2, 0.5
    rng = np.random.default_rng(2)
    pairs = np.concatenate(
        [rng.integers(0, n, (150, 2)), np.stack([np.arange(n), (np.arange(n) + 1) % n], 1)]
    )
    with shared_file(comm, "".join(f"{a} {b}\n" for a, b in pairs)) as path:
        wanted = config(
            {"path": path, "self_loops": "drop"},
            embedding={"method": "prone", "dim": n},
            execution={"column_block": 16},
        )
        S, got = dense(load(comm, wanted.graph)), vectors(comm, wanted).double().numpy()

    def factors(matrix: np.ndarray) -> np.ndarray:
        U, s, _ = np.linalg.svd(matrix)
        made = U * np.sqrt(s)
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    d = S.sum(1)
    negative = (S / d[:, None]).sum(0) ** 0.75
    edge = S > 0
    F = np.zeros_like(S)
    F[edge] = np.log((S / d[:, None])[edge]) - np.log((S * negative / negative.sum())[edge])
    M = (1 - mu) * np.eye(n) - (S + np.eye(n)) / (1 + d)[:, None]
    a = factors(F)
    bessel = [
        sum((theta / 2) ** (2 * k + i) / (math.factorial(k) * math.factorial(k + i)) for k in range(20))
        for i in range(10)
    ]
    before, now = a, M @ M @ a / 2 - a
    total = bessel[0] * before - 2 * bessel[1] * now
    for i in range(2, 10):
        before, now = now, M @ M @ now - 2 * now - before
        total += 2 * (-1) ** i * bessel[i] * now
    want = factors((np.eye(n) + S) @ (a - total))
    np.testing.assert_allclose(got @ got.T, want @ want.T, atol=2e-3)


def test_ranks_turn_by_the_axes_that_rank_0_found(comm: MPI.Intracomm) -> None:
    wanted = config({"rmat": {"scale": 4, "edge_factor": 4}})
    problem, symmetric = Problem(load(comm, wanted.graph), wanted), np.diag([3.0, 1.0, 2.0]) + 0.1
    with pytest.MonkeyPatch.context() as patch:
        if comm.rank > 0:
            patch.setattr(torch.linalg, "eigh", lambda m: (torch.zeros(len(m)), -m))
        values, basis = problem.axes(symmetric)
    np.testing.assert_allclose(basis * values @ basis.T, symmetric, atol=1e-14)
    assert values.tolist() == sorted(values)
    assert len(set(comm.allgather(values.tobytes() + basis.tobytes()))) == 1


def test_prone_refuses_a_directed_graph(comm: MPI.Intracomm) -> None:
    with shared_file(comm, "0 1\n1 2\n2 3\n3 0\n1 3\n") as path:
        wanted = config({"path": path, "direction": "out"}, embedding={"method": "prone", "dim": 3})
        with pytest.raises(GraphError, match="prone takes an undirected graph"):
            vectors(comm, wanted)


def test_randne_is_its_closed_form(comm: MPI.Intracomm) -> None:
    wanted = config(
        {"rmat": {"scale": 6, "edge_factor": 4}},
        embedding={"method": "randne", "dim": 12, "weights": [1.0, 0.5, 0.25], "input_matrix": "adjacency"},
        execution={"column_block": 5},
    )
    graph = load(comm, wanted.graph)
    problem = Problem(graph, wanted)
    U = problem.gaussian()
    problem.orthonormalize(U)
    U0, S = whole(graph, U).double().numpy(), dense(graph)
    np.testing.assert_allclose(U0.T @ U0, np.eye(12), atol=1e-5)
    want = U0 + 0.5 * S @ U0 + 0.25 * S @ S @ U0
    np.testing.assert_allclose(vectors(comm, wanted).numpy(), want, atol=1e-4 * np.abs(want).max())


def test_held_out_edges_are_gone_and_scored_alike_on_any_number_of_ranks(comm: MPI.Intracomm) -> None:
    links = LinksConfig(fraction=0.3, negatives=3000, hits=[1, 10], seed=4)
    wanted = config({"rmat": {"scale": 9, "edge_factor": 3}}).graph
    whole_graph = dense(load(comm, wanted))
    graph, alone = load(comm, wanted, links), load(MPI.COMM_SELF, wanted, links)
    pairs = np.concatenate(comm.allgather(graph.held_out))
    assert sorted(map(tuple, pairs.tolist())) == sorted(map(tuple, alone.held_out.tolist()))
    left = dense(graph)
    assert (left + left.T)[tuple(pairs.T)].max() == 0, "a held-out edge is still there"
    left[tuple(pairs.T)] = left[tuple(pairs.T[::-1])] = 1
    np.testing.assert_array_equal(left, whole_graph)
    assert len(pairs) / (whole_graph.sum() / 2) == pytest.approx(0.3, abs=0.05)
    known = torch.from_numpy(np.random.default_rng(0).standard_normal((512, 8))).float()

    def scores(of: Graph, vectors: torch.Tensor) -> Any:
        own = vectors[of.rows.start : of.rows.stop]
        return score_links(of, [own[:, :5].contiguous(), own[:, 5:].contiguous()], links)

    drawn = np.concatenate(comm.allgather(_negatives(graph, links)))
    assert 2000 < len(drawn) < 3000
    assert not whole_graph[tuple(drawn.T)].any(), "an edge is called none"
    assert (drawn[:, 0] != drawn[:, 1]).all()
    by_chance = scores(graph, known)
    assert by_chance == scores(alone, known)
    assert by_chance.auc == pytest.approx(0.5, abs=0.08)
    known[pairs[:, 0]] = known[pairs[:, 1]] = 1.0  # now both ends of every held-out edge are alike
    assert scores(graph, known).auc > 0.6
    a, b = (known[pairs[:, i]].double() for i in (0, 1))
    assert ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)) > 0.99).all()


def test_nearest_nodes_are_those_of_all_cosines(comm: MPI.Intracomm) -> None:
    graph = load(comm, config({"rmat": {"scale": 6, "edge_factor": 2}}).graph)
    known = torch.from_numpy(np.random.default_rng(1).standard_normal((64, 6))).float()
    known[[5, 40]] = 0.0
    own = known[graph.rows.start : graph.rows.stop]
    ids, cosines = nearest(graph, [own[:, :4].contiguous(), own[:, 4:].contiguous()], 7)
    unit = known.double() / known.double().norm(dim=1, keepdim=True).clamp(min=1e-30)
    every = unit @ unit.T
    every.fill_diagonal_(-2)
    every[:, [5, 40]] = -2
    want = every.topk(7)
    for row, node in enumerate(graph.rows):
        if node in (5, 40):
            assert set(ids[row].tolist()) == {-1}
            continue
        assert ids[row].tolist() == want.indices[node].tolist()
        np.testing.assert_allclose(cosines[row], want.values[node], atol=1e-5)


def test_a_file_that_is_no_graph_is_every_ranks_error(comm: MPI.Intracomm) -> None:
    for text, keys, sentence in (
        ("# nothing\n\n", {}, r"edges.txt: holds no edge, a graph needs at least one"),
        ("0 1\n1 2\n", {"edges": 3}, r"graph.edges=3, but .*edges.txt holds 2"),
        ("0 1\n9000000 1\n", {}, r"node ids go up to 9000000 with 2 edges: they are no numbering 0, 1, 2"),
    ):
        with shared_file(comm, text) as path, pytest.raises(GraphError, match=sentence):
            load(comm, config({"path": path, **keys}).graph)
    if comm.size > 2:
        with shared_file(comm, "0 1\n") as path, pytest.raises(LayoutError, match="cannot share 2 rows"):
            load(comm, config({"path": path}).graph)


def test_one_ranks_bad_line_is_every_ranks_error(comm: MPI.Intracomm) -> None:
    for bad, sentence in (
        ("7 x\n", r"edges.txt:1201: '7 x': 'x' is no node id"),
        ("7\n", r"edges.txt:1201: '7': 1 columns, an edge has 2"),
    ):
        with (
            shared_file(comm, "1 2\n" * 1200 + bad) as path,
            pytest.raises(GraphError, match=sentence),
        ):
            load(comm, config({"path": path, "chunk_bytes": 1024}).graph)
