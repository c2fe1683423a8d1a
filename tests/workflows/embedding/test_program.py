"""Embedding runs as a study starts them: their files, their end, and what a kill costs."""

from __future__ import annotations

import json
import signal

import h5py
import numpy as np
import pytest

from analysis.store import read_run
from launch import checkpoint
from launch.rundir import RunDir
from slurm.strict_yaml import dumps
from tests.workflows.embedding.conftest import vectors

CONFIG = {
    "graph": {"rmat": {"scale": 9}},
    "embedding": {"dim": 24},
    "execution": {"column_block": 16},
    "output": {"npy": True, "word2vec": True, "neighbours": 3},
}


@pytest.fixture(scope="module")
def finished(embed):
    ended, run = embed(2, CONFIG)
    assert ended.status == 0, ended.stderr
    return run


def test_a_run_leaves_vectors_metrics_and_a_record(finished):
    record, metrics = finished.exit_record(1), read_run(finished.path)
    assert (record.code, record.cause, record.step) == (0, "finished", 4)
    assert metrics.streams["power_s"]["step"].tolist() == [1, 2, 3, 4]
    assert {"nodes": 512, "edges": 8192, "dim": 24, "ranks": 2}.items() <= metrics.summary.items()
    assert metrics.summary["peak_bytes"] >= metrics.summary["peak_bytes_least"] > 1 << 26
    with h5py.File(finished.path / "vectors.h5", "r") as file:
        assert file["ids"][:].tolist() == list(range(512))
        assert (file["vectors"].shape, file["vectors"].dtype) == ((512, 24), np.float32)
        assert file["neighbours"].shape == file["cosines"].shape == (512, 3)
        np.testing.assert_array_equal(np.load(finished.path / "vectors.npy"), file["vectors"][:])
        lines = (finished.path / "vectors.txt").read_text().splitlines()
        assert lines[0] == "512 24"
        text = np.array([line.split() for line in lines[1:]], float)
        np.testing.assert_array_equal(text[:, 0], np.arange(512))
        np.testing.assert_allclose(text[:, 1:], file["vectors"][:], rtol=1e-6)
        assert json.loads(file.attrs["config"])["embedding"]["dim"] == 24
    assert oct((finished.path / "vectors.h5").stat().st_mode)[-3:] == "600"


def test_halo_bytes_are_those_of_the_rows_that_ranks_need(finished, mpiexec):
    """Every power sends each halo row once, `dim` numbers of 4 bytes."""
    script = (
        "from mpi4py import MPI; from workflows.embedding.graph import load\n"
        "from workflows.embedding.config import GraphConfig; import numpy as np\n"
        "g = load(MPI.COMM_WORLD, GraphConfig.model_validate({'rmat': {'scale': 9}}))\n"
        "outside = {int(c) for c in g.columns} - set(g.rows)\n"
        "total = g.comm.allreduce(len(outside))\n"
        "print(total, end='') if g.comm.rank == 0 else None"
    )
    halo_rows = int(mpiexec(2, "-c", script).stdout)
    rows = read_run(finished.path).streams["halo_bytes"]
    assert rows["value"].tolist() == [halo_rows * 24 * 4] * 4
    assert read_run(finished.path).summary["halo_bytes"] == 4 * halo_rows * 24 * 4


@pytest.mark.parametrize(
    ("rank", "step", "ranks_after"),
    [(1, 3, 3), *(pytest.param(r, s, 2, marks=pytest.mark.full) for r in (0, 1) for s in (1, 2, 4))],
)
def test_a_killed_run_goes_on_bit_by_bit_on_any_number_of_ranks(embed, finished, rank, step, ranks_after):
    ended, run = embed(2, CONFIG, rank, step, signal.SIGKILL)
    assert ended.status != 0
    assert run.state() == "interrupted"
    assert not (run.path / "vectors.h5").exists()
    assert checkpoint.steps(run.checkpoints) == list(range(1, step))[-2:]
    ended, run = embed(ranks_after, CONFIG, into=run)
    assert ended.status == 0, ended.stderr
    assert vectors(run).tobytes() == vectors(finished).tobytes()
    metrics = read_run(run.path)
    assert metrics.meta["restore_step"] == step - 1
    assert metrics.streams["power_s"]["step"].tolist() == [1, 2, 3, 4]


@pytest.mark.full
@pytest.mark.parametrize("kind", ["label_propagation", "metis"])
def test_a_killed_run_of_moved_rows_goes_on_where_they_stand_elsewhere(embed, finished, kind):
    config = {**CONFIG, "graph": {**CONFIG["graph"], "partition": kind}}
    ended, run = embed(3, config, 1, 3, signal.SIGKILL)
    assert ended.status != 0
    assert checkpoint.steps(run.checkpoints) == [1, 2]
    ended, run = embed(2, config, into=run)
    assert ended.status == 0, ended.stderr
    assert read_run(run.path).meta["restore_step"] == 2
    assert vectors(run).tobytes() == vectors(finished).tobytes()
    with h5py.File(run.path / "vectors.h5", "r") as file:
        assert file["ids"][:].tolist() == list(range(512))
        with h5py.File(finished.path / "vectors.h5", "r") as before:
            np.testing.assert_array_equal(file["neighbours"][:], before["neighbours"][:])


@pytest.mark.full
def test_a_killed_run_of_leaves_goes_on_with_the_next_level(embed):
    embedding = {"method": "partitioned", "dim": 24, "leaves": {"entries": 2500}}
    config = {"graph": {"rmat": {"scale": 9}}, "embedding": embedding}
    ended, whole = embed(1, config)
    assert ended.status == 0, ended.stderr
    ended, run = embed(2, config, 1, 3, signal.SIGKILL)
    assert ended.status != 0
    assert checkpoint.steps(run.checkpoints) == [1, 2]
    ended, run = embed(3, config, into=run)
    assert ended.status == 0, ended.stderr
    assert read_run(run.path).meta["restore_step"] == 2
    assert vectors(run).tobytes() == vectors(whole).tobytes()


def test_a_warning_to_one_rank_commits_the_step_and_asks_to_be_requeued(embed, finished):
    config = {**CONFIG, "execution": {"column_block": 16, "checkpoint_every": 0}}
    ended, run = embed(2, config, 1, 2, signal.SIGUSR1)
    assert (ended.status, run.last_exit().code) == (75, 75)
    assert run.last_exit().cause == "SIGUSR1: all ranks stopped after step 2, committed"
    assert checkpoint.steps(run.checkpoints) == [2]
    ended, run = embed(1, config, into=run)
    assert ended.status == 0, ended.stderr
    assert vectors(run).tobytes() == vectors(finished).tobytes()


@pytest.mark.full
def test_a_rank_that_stands_still_ends_the_job_and_is_named(embed):
    config = {**CONFIG, "execution": {"column_block": 16, "timeout_s": 8}}
    ended, run = embed(2, config, 1, 3, signal.SIGSTOP)
    assert ended.status != 0
    assert (run.last_exit().code, run.last_exit().rank) == (1, 1)
    assert run.last_exit().cause.startswith(
        "nothing has moved for 8 s: rank 1 is late, without a word after step 2"
    )
    assert checkpoint.steps(run.checkpoints) == [1, 2], "the step before can be gone on from"


@pytest.mark.full
def test_a_rank_that_is_slow_but_goes_on_is_left_alone(embed, finished):
    config = {**CONFIG, "execution": {"column_block": 16, "timeout_s": 10}}
    ended, run = embed(2, config, 1, 2, 0)
    assert (ended.status, run.last_exit().cause) == (0, "finished")
    assert vectors(run).tobytes() == vectors(finished).tobytes()


@pytest.mark.parametrize(
    ("ranks", "text", "sentence"),
    [
        (2, "0 1\n1 2\n2 two\n", "edges.txt:3: '2 two': 'two' is no node id"),
        (4, "0 1\n1 2\n", "4 ranks cannot share 3 rows: each takes at least one"),
        (2, "0 1\n9000000 1\n", "node ids go up to 9000000 with 2 edges: they are no numbering 0, 1, 2"),
    ],
)
def test_a_mistake_in_the_graph_is_a_sentence_and_exit_code_2(mpiexec, tmp_path, ranks, text, sentence):
    (tmp_path / "edges.txt").write_text(text)
    held = {"config": {"graph": {"path": str(tmp_path / "edges.txt")}}, "cache_dir": str(tmp_path)}
    run = RunDir(tmp_path)
    run.config.write_text(dumps(held))
    ended = mpiexec(ranks, "-m", "workflows.embedding.program", str(tmp_path))
    assert (ended.status, run.last_exit().code) == (2, 2)
    assert sentence in run.last_exit().cause
    assert "Traceback" not in ended.stderr
