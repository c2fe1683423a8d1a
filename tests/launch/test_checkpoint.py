"""A checkpoint comes back bit by bit or not at all: no damage, kill or full disk passes for a state."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest

from launch.checkpoint import steps
from launch.checkpoint_index import sha256
from launch.errors import CheckpointError, LaunchError
from tests.launch.alone import load, save

DTYPES = ["bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "g"]
SHAPES = [(), (0,), (3, 0, 2), (1,), (7,), (2, 3, 5)]


def pattern(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    bits = np.random.default_rng(len(shape)).integers(0, 2, shape)
    return np.asarray(bits * (1 if dtype == "bool" else 119) + bits.size % 2).astype(dtype)


def assert_bits_equal(one: np.ndarray, other: np.ndarray) -> None:
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert one.tobytes() == other.tobytes()


def number(value: int) -> dict[str, np.ndarray]:
    return {"x": np.array([value], np.int64)}


def rewrite_index(place: Path, change) -> None:
    """Change an index and give it a checksum that fits, as one who means harm would."""
    held = json.loads((place / "index.json").read_bytes().partition(b"\n")[0])
    held = change(held) or held
    body = json.dumps(held).encode()
    (place / "index.json").write_bytes(body + b"\n" + sha256(body).encode() + b"\n")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_shape_comes_back_bit_by_bit(tmp_path, dtype):
    arrays = {f"a/{shape}": pattern(dtype, shape) for shape in SHAPES}
    arrays["strided"] = pattern(dtype, (4, 6))[::2, ::-3]
    save(tmp_path, 3, arrays, {"text": "ü\n", "n": None, "deep": [1, {"x": 0.1}]})
    held = load(tmp_path)
    assert (held.step, held.skipped) == (3, [])
    assert held.meta == {"text": "ü\n", "n": None, "deep": [1, {"x": 0.1}]}
    assert list(held.arrays) == list(arrays)
    for name, array in arrays.items():
        assert_bits_equal(held.arrays[name], array)


def test_not_a_number_infinity_and_the_sign_of_zero_are_kept(tmp_path):
    odd = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 5e-324])
    odd.view(np.uint64)[0] |= 12345  # a NaN's payload is state, too
    save(tmp_path, 0, {"odd": odd}, {})
    assert_bits_equal(load(tmp_path).arrays["odd"], odd)


def test_the_other_byte_order_is_stored_as_little_endian(tmp_path):
    save(tmp_path, 0, {"big": np.arange(5, dtype=">i4")}, {})
    held = load(tmp_path).arrays["big"]
    assert held.dtype.str == "<i4"
    assert held.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "array",
    [np.array([{}]), np.array(["a"]), np.array([1j]), np.zeros(2, "f4,i4"), np.array(["2026"], "M8[D]")],
)
def test_what_is_no_plain_number_is_refused_and_leaves_nothing(tmp_path, array):
    save(tmp_path, 1, number(1), {})
    with pytest.raises(CheckpointError, match=r"array 'bad' is of type .*; a checkpoint holds numbers only"):
        save(tmp_path, 2, {"good": np.arange(3), "bad": array}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_the_newest_two_are_kept_and_nobody_else_may_read_them(tmp_path):
    directory = tmp_path / "run" / "checkpoints"
    for step in (5, 10, 15):
        place = save(directory, step, number(step), {})
        assert place == directory / f"step-{step:08d}"
    assert steps(directory) == [10, 15]
    assert sorted(path.name for path in directory.iterdir()) == ["step-00000010", "step-00000015"]
    for path in [directory.parent, *directory.parent.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_directory_without_checkpoints_holds_none(tmp_path):
    assert load(tmp_path / "missing") is None
    (tmp_path / ".step-00000005.1").mkdir()  # what a kill in the middle of a save leaves
    assert load(tmp_path) is None
    save(tmp_path, 1, number(1), {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path):
    for step in (5, 10):
        place = save(tmp_path, step, number(step), {})
    (place / "data-00000.bin").write_bytes(b"\0" * 8)
    held = load(tmp_path)
    assert (held.step, held.arrays["x"].item()) == (5, 5)
    assert held.skipped == [f"{place / 'data-00000.bin'}: array 'x' is damaged, its checksum does not fit"]


def test_no_whole_checkpoint_ends_with_exit_code_5(tmp_path):
    for step in (5, 10):
        save(tmp_path, step, number(step), {})
        (tmp_path / f"step-{step:08d}" / "index.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert caught.value.exit_code == 5
    assert str(caught.value) == (
        f"{tmp_path}/step-00000010/index.json: No such file or directory; no older checkpoint is whole"
    )


def test_an_empty_array_alone_and_no_array_at_all_are_checkpoints(tmp_path):
    save(tmp_path, 1, {}, {"a": 1})
    assert load(tmp_path).arrays == {}
    save(tmp_path, 2, {"none": np.empty((0, 4), "f4")}, {})
    assert load(tmp_path).arrays["none"].shape == (0, 4)


def test_a_checkpoint_under_another_steps_name_is_damaged(tmp_path):
    save(tmp_path, 5, number(5), {}).rename(tmp_path / "step-00000009")
    with pytest.raises(CheckpointError, match="holds step 5, its directory is named after another"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("damaged", "saved", "kept"),
    [([], 10, [5, 10]), ([15], 15, [10, 15]), ([10, 15], 10, [5, 10]), ([10, 15], 7, [5, 7])],
)
def test_a_step_saved_after_going_back_is_the_newest_from_then_on(tmp_path, damaged, saved, kept):
    for step in (5, 10, 15):
        save(tmp_path, step, number(step), {}, keep=3)
        if step in damaged:
            (tmp_path / f"step-{step:08d}" / "data-00000.bin").write_bytes(b"")
    save(tmp_path, saved, number(100 + saved), {})
    held = load(tmp_path)
    assert (held.step, held.arrays["x"].item(), held.skipped) == (saved, 100 + saved, [])
    assert steps(tmp_path) == kept


def test_the_newest_step_saved_again_replaces_itself(tmp_path):
    for value in (1, 2):
        save(tmp_path, 5, number(value), {})
    assert load(tmp_path).arrays["x"].item() == 2
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_meta_that_is_not_json_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path, 1, number(1), {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def entry(**changes):
    return lambda held: held["pieces"][0].update(changes)


def twice(held) -> None:
    held["pieces"] *= 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (entry(file="../outside.bin"), "array 'x' points outside the checkpoint"),
        (entry(file="/etc/hostname"), "array 'x' points outside the checkpoint"),
        (entry(file=".."), "array 'x' points outside the checkpoint"),
        (entry(file=""), "array 'x' points outside the checkpoint"),
        (entry(file="link.bin"), "array 'x' points outside the checkpoint"),
        (entry(start=-8), "array 'x' points outside the checkpoint"),
        (entry(shape=[-1]), "array 'x': [-1] at [0] is no box of one of [1]"),
        (entry(offset=[-1]), "array 'x': [1] at [-1] is no box of one of [1]"),
        (entry(offset=[1]), "array 'x': [1] at [1] is no box of one of [1]"),
        (entry(offset=[0, 0]), "array 'x': [1] at [0, 0] is no box of one of [1]"),
        (entry(offset=[0.0]), "not a checkpoint's index"),
        (entry(whole_shape=[2]), "array 'x' overlap or leave a gap: 1 elements for the 2 places of int64[2]"),
        (twice, "array 'x' overlap or leave a gap: 2 elements for the 1 places of int64[1]"),
        (entry(shape=[2], whole_shape=[2]), "array 'x' is cut off, 8 of 16 bytes are there"),
        (entry(shape=[10**15], whole_shape=[10**15]), "is cut off, 8 of 8000000000000000 bytes"),
        (entry(start=4), "is cut off, 4 of 8 bytes"),
        (entry(start=10**18), "is cut off, 0 of 8 bytes"),
        (entry(dtype="O"), "array 'x' points outside the checkpoint"),
        (entry(dtype="<f8,<f8"), "array 'x' points outside the checkpoint"),
        (entry(dtype="nonsense"), "not a checkpoint's index"),
        (entry(shape="8"), "not a checkpoint's index"),
        (lambda held: held.update(pieces=[1]), "not a checkpoint's index"),
        (lambda held: held.pop("meta") and None, "not a checkpoint's index"),
        (lambda held: [held], "not a checkpoint's index"),
        (
            lambda held: held.update(schema="isoflop-checkpoint/1"),
            "schema is 'isoflop-checkpoint/1', this reads isoflop-checkpoint/2",
        ),
    ],
)
def test_an_index_that_points_elsewhere_is_refused_though_its_checksum_fits(tmp_path, change, sentence):
    place = save(tmp_path, 1, number(1), {})
    for outside in (tmp_path / "outside.bin", tmp_path / "elsewhere"):
        outside.write_bytes((place / "data-00000.bin").read_bytes())
    (place / "link.bin").symlink_to(tmp_path / "elsewhere")
    rewrite_index(place, change)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.full), 7])
def test_no_changed_byte_escapes(tmp_path, step):
    place = save(tmp_path, 1, {"w": pattern("f4", (2, 3)), "n": pattern("i8", ())}, {"a": "b"})
    for path in (place / "data-00000.bin", place / "index.json"):
        whole = path.read_bytes()
        for at in range(0, len(whole), step):
            for flip in (0x01, 0x20, 0x80, 0xFF):
                path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
                with pytest.raises(CheckpointError):
                    load(tmp_path)
            path.write_bytes(whole[:at])
            with pytest.raises(CheckpointError):
                load(tmp_path)
        path.write_bytes(whole)
    assert load(tmp_path).step == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(LaunchError, match=str(tmp_path / "checkpoints")):
        save(tmp_path / "checkpoints", 1, number(1), {})
