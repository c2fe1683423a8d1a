"""ParallelLayout: arithmetic on the grid of ranks, without MPI."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_ops.errors import LayoutError
from mpi_ops.layout import AXES, ParallelLayout

LAYOUTS = st.builds(ParallelLayout, *[st.integers(1, 4)] * 4, order=st.permutations(AXES).map(tuple))
LAYOUT = ParallelLayout(dp=2, pp=3, cp=1, tp=4)


@given(LAYOUTS)
def test_a_rank_and_its_place_name_each_other(layout):
    places = [layout.coords(rank) for rank in range(layout.world_size)]
    assert [layout.rank(place) for place in places] == list(range(layout.world_size))
    assert len({tuple(place.values()) for place in places}) == layout.world_size
    assert all(tuple(place) == AXES for place in places)


@given(LAYOUTS)
def test_the_groups_of_an_axis_share_out_the_world(layout):
    for axis, degree in zip(AXES, layout.shape, strict=True):
        groups = layout.axis_groups(axis)
        assert sorted(rank for group in groups for rank in group) == list(range(layout.world_size))
        for group in groups:
            places = [layout.coords(rank) for rank in group]
            assert [place.pop(axis) for place in places] == list(range(degree))
            assert all(place == places[0] for place in places)


def test_neighbours_in_tp_are_neighbouring_ranks_and_dp_strides_furthest():
    assert LAYOUT.axis_groups("tp")[0] == [0, 1, 2, 3]
    assert LAYOUT.axis_groups("pp")[:2] == [[0, 4, 8], [1, 5, 9]]
    assert LAYOUT.axis_groups("dp")[-1] == [11, 23]
    assert LAYOUT.axis_groups("cp") == [[rank] for rank in range(24)]


def test_an_order_decides_which_ranks_are_neighbours():
    layout = ParallelLayout(dp=2, pp=3, cp=1, tp=4, order=("tp", "cp", "pp", "dp"))
    assert layout.axis_groups("dp")[0] == [0, 1]
    assert layout.axis_groups("pp")[0] == [0, 2, 4]
    assert layout.axis_groups("tp")[-1] == [5, 11, 17, 23]
    assert layout.coords(7) == {"dp": 1, "pp": 0, "cp": 0, "tp": 1}


@pytest.mark.parametrize("order", [(), ("dp", "pp", "cp"), ("dp", "pp", "cp", "tp", "tp"), ("dp",) * 4])
def test_an_order_names_each_axis_once(order):
    with pytest.raises(
        LayoutError, match=r"^parallel\.order=\[.*\]: each of dp, pp, cp, tp once, the slowest"
    ):
        ParallelLayout(order=order)


@pytest.mark.parametrize(("dp", "replicas"), [(2, 4), (6, 4), (1, 2)])
def test_shards_are_shared_out_by_a_number_of_replicas_that_divides_dp(dp, replicas):
    with pytest.raises(LayoutError, match=rf"parallel.replicas={replicas} does not divide the {dp} data-"):
        ParallelLayout(dp=dp, replicas=replicas)
    assert ParallelLayout(dp=6, replicas=3).degrees == {"dp": 6, "pp": 1, "cp": 1, "tp": 1, "replicas": 3}


@pytest.mark.parametrize(("dp", "ep"), [(2, 4), (6, 4), (1, 2)])
def test_experts_are_shared_by_a_number_of_ranks_that_divides_dp(dp, ep):
    with pytest.raises(
        LayoutError, match=rf"^parallel\.ep={ep} does not divide the {dp} data-parallel ranks$"
    ):
        ParallelLayout(dp, ep=ep)


def test_the_world_has_as_many_ranks_as_the_layout_needs():
    LAYOUT.check(24)
    with pytest.raises(LayoutError, match=r"^dp\*pp\*cp\*tp = 24, but 23 ranks were started$"):
        LAYOUT.check(23)


@pytest.mark.parametrize("degree", [0, -1, 1.0, True, "2", None])
@pytest.mark.parametrize("axis", AXES)
def test_a_degree_is_a_whole_number_of_at_least_one(axis, degree):
    with pytest.raises(LayoutError, match=rf"^parallel\.{axis}={degree!r}: a degree is a whole number of at"):
        ParallelLayout(**{axis: degree})


@pytest.mark.parametrize("rank", [-1, 24])
def test_a_rank_outside_the_world_is_refused(rank):
    with pytest.raises(LayoutError, match=rf"^rank {rank}: the ranks of .*dp=2, pp=3.* are 0 to 23$"):
        LAYOUT.coords(rank)


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ({"dp": 0, "pp": 0, "cp": 0}, "one for each of dp, pp, cp, tp$"),
        ({"dp": 0, "pp": 0, "cp": 0, "tp": 0, "ep": 0}, "one for each of dp, pp, cp, tp$"),
        ({"dp": 0, "pp": 3, "cp": 0, "tp": 0}, "^pp=3: places along pp are 0 to 2$"),
        ({"dp": 0, "pp": 0, "cp": 0, "tp": -1}, "^tp=-1: places along tp are 0 to 3$"),
    ],
)
def test_a_place_outside_the_grid_is_refused(place, sentence):
    with pytest.raises(LayoutError, match=sentence):
        LAYOUT.rank(place)


def test_an_unknown_axis_is_refused():
    with pytest.raises(LayoutError, match=r"^axis 'ep': one of dp, pp, cp, tp$"):
        LAYOUT.axis_groups("ep")
    assert LayoutError.exit_code == 2
