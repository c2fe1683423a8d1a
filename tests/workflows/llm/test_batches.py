"""The batches of a run are a function of seed and step alone, whoever asks and in what order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from workflows.errors import ConfigError
from workflows.llm.batches import Batches, Packed
from workflows.llm.config import LlmConfig

LENGTH = 4
# 21 windows, the last four tokens have no successors; each tells its place
TRAIN = Packed(np.arange(4 * 22, dtype=np.uint8), np.array([0, 1, 6, 8, 30]))
VALIDATION = Packed(np.arange(100, 100 + 4 * 11, dtype=np.uint8), np.array([0, 5]))


def batches(
    rank: int = 0, ranks: int = 1, data_seed: int = 0, batch: int = 4, masked: bool = False, **train
) -> Batches:
    config = LlmConfig.model_validate(
        {
            "model": {"seq_len": LENGTH},
            "data": {"seed": data_seed, "mask_documents": masked},
            "train": {"steps": 100, "global_batch": batch, **train},
        }
    )
    return Batches(config, TRAIN, VALIDATION, rank, ranks)


def windows(tokens_BL: np.ndarray) -> list[int]:
    return (tokens_BL[:, 0] // LENGTH).tolist()


def test_targets_are_the_tokens_that_follow():
    tokens_BL, targets_BL = batches().batch(3)
    assert tokens_BL.shape == targets_BL.shape == (4, LENGTH)
    np.testing.assert_array_equal(targets_BL, tokens_BL + 1)
    assert tokens_BL.dtype == targets_BL.dtype == np.int64
    assert (tokens_BL[:, 0] % LENGTH == 0).all()


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("step", [0, 5, 6, 99])
def test_the_global_batch_is_the_same_in_the_same_order_for_any_number_of_ranks(ranks, step):
    alone = batches().batch(step)
    shared = [batches(rank, ranks).batch(step) for rank in range(ranks)]
    for part, whole in enumerate(alone):
        np.testing.assert_array_equal(np.concatenate([share[part] for share in shared]), whole)


@pytest.mark.parametrize("batch", [1, 4, 7, 50])
def test_every_window_is_used_once_in_each_pass(batch):
    made = batches(batch=batch)
    assert made.windows == 21
    used = [w for step in range(-(-21 * 4 // batch)) for w in windows(made.batch(step)[0])]
    passes = [used[i : i + 21] for i in range(0, 21 * 4, 21)]
    assert all(sorted(one) == list(range(21)) for one in passes)
    assert len({tuple(one) for one in passes}) == 4, "each pass has an order of its own"


def test_passes_say_how_often_the_text_is_read():
    assert batches().passes == 100 * 4 / 21


def test_another_seed_is_another_order_and_the_same_seed_the_same():
    orders = [tuple(windows(batches(data_seed=seed, batch=21).batch(0)[0])) for seed in (0, 1, 2, 0)]
    assert len(set(orders)) == 3
    assert orders[0] == orders[3]


def test_the_order_is_the_same_on_every_version_of_numpy():
    """A change here changes the result of every run that users have; it needs a line in the changelog."""
    assert windows(batches(batch=10).batch(0)[0]) == [0, 2, 11, 20, 17, 9, 1, 8, 13, 5]


def test_any_step_can_be_asked_for_first():
    went_on = batches()
    held = [went_on.batch(step) for step in range(30)]
    for step in (29, 0, 17, 5):
        for one, other in zip(batches().batch(step), held[step], strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(went_on.batch(step)[0], held[step][0])


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(("wanted", "used"), [(1, [0]), (3, [0, 3, 6]), (10, range(10)), (99, range(10))])
def test_validation_is_the_same_fixed_sequences_for_any_number_of_ranks(ranks, wanted, used):
    found = []
    for rank in range(ranks):
        made = batches(rank, ranks, evaluation_sequences=wanted)
        for tokens_BL, targets_BL in made.validation_batches():
            assert 1 <= len(tokens_BL) <= 4
            np.testing.assert_array_equal(targets_BL, tokens_BL + 1)
            found += ((tokens_BL[:, 0] - 100) // LENGTH).tolist()
    assert sorted(found) == list(used)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_text_shorter_than_a_sequence_is_refused(part):
    purpose = {"train": "training", "validation": "validation"}[part]
    with pytest.raises(ConfigError, match=f"data.source: 4 tokens for {purpose}; one sequence needs 5, "):
        replace(batches(), **{part: Packed(TRAIN.tokens[:4], TRAIN.starts[:1])})
    assert replace(batches(), **{part: Packed(TRAIN.tokens[:5], TRAIN.starts[:1])})


def test_positions_are_counted_from_where_a_document_starts_in_its_sequence():
    found = {}
    for step in range(6):
        tokens_BL, targets_BL, positions_BL = batches(masked=True).batch(step)
        plain = batches().batch(step)
        np.testing.assert_array_equal(tokens_BL, plain[0])
        np.testing.assert_array_equal(targets_BL, plain[1])
        found |= zip(windows(tokens_BL), positions_BL.tolist(), strict=True)
    assert [found[window] for window in (0, 1, 2, 7)] == [
        [0, 0, 1, 2],  # documents start at 0 and at 1
        [0, 1, 0, 1],  # goes on, and one starts at 6
        [0, 1, 2, 3],  # starts at 8, as the sequence does
        [0, 1, 0, 1],  # 28 and 29 belong to the one before
    ]
    assert all(found[window] == [0, 1, 2, 3] for window in range(8, 21))


def test_ranks_share_positions_as_they_share_tokens():
    alone = batches(masked=True).batch(0)
    shared = [batches(rank, 2, masked=True).batch(0) for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate([share[2] for share in shared]), alone[2])
    [first, *_] = batches(masked=True, evaluation_sequences=99).validation_batches()
    assert first[2].tolist() == [[0, 1, 2, 3], [0, 0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]]
