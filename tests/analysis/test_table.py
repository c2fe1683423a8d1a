"""Tables of observations: what is read, and the one sentence about each thing that cannot be."""

from __future__ import annotations

import re

import numpy as np
import pytest

from analysis import Observations, read_table
from analysis.errors import DataError
from analysis.table import parse_columns

COLUMNS = {"N": "Model Size", "D": "tokens", "L": "loss"}
HEADER = "Model Size,tokens,loss\n"


def table(tmp_path, text: str | bytes, name: str = "table.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("table.csv", HEADER + "1e6,2e8,3.5\n2000000,4e8, 3.25 \n"),
        ("table.tsv", (HEADER + "1e6,2e8,3.5\n2e6,4e8,3.25\n").replace(",", "\t")),
        ("table.csv", "\ufeff" + HEADER + "1e6,2e8,3.5\n\n,,\n2e6,4e8,3.25\n"),
        ("table.csv", HEADER.replace("\n", "\r\n") + '1e6,"2e8",3.5\r\n2e6,4e8,3.25'),
        ("table.csv", " Model Size ,remark,tokens,loss\n1e6,none,2e8,3.5\n2e6,a,4e8,3.25\n"),
    ],
    ids=["csv", "tsv", "BOM and empty rows", "CRLF and quotes", "spaces and other columns"],
)
def test_a_table_is_read(tmp_path, name, text):
    points = read_table(table(tmp_path, text, name), COLUMNS)
    assert points.N.tolist() == [1e6, 2e6]
    assert points.D.tolist() == [2e8, 4e8]
    assert points.L.tolist() == [3.5, 3.25]
    assert points.flops_convention == "C = 6 N D"


@pytest.mark.parametrize("given", ["ND", "NC", "DC"])
def test_any_two_of_size_tokens_and_flops_say_the_third(tmp_path, given):
    values = {"N": 1e6, "D": 2e8, "C": 6 * 1e6 * 2e8, "L": 3.5}
    path = table(tmp_path, "N,D,C,L\n" + ",".join(repr(values[name]) for name in "NDCL"))
    points = read_table(path, {name: name for name in (*given, "L")})
    assert points.N[0] == pytest.approx(1e6, rel=1e-15)
    assert points.D[0] == pytest.approx(2e8, rel=1e-15)


NOT_A_NUMBER = {"text": "abc", "nothing": "", "thousands": "1;000"}
NOT_POSITIVE = {"NaN": "nan", "zero": "0", "negative": "-3", "infinite": "inf"}


@pytest.mark.parametrize("column", [0, 1, 2])
@pytest.mark.parametrize("value", [*NOT_A_NUMBER.values(), *NOT_POSITIVE.values()])
def test_a_value_that_no_logarithm_takes_is_named(tmp_path, column, value):
    cells = ["1e6", "2e8", "3.5"]
    cells[column] = value
    path = table(tmp_path, HEADER + "1e6,3e8,3\n" + ",".join(cells))
    reason = "which is no number" if value in NOT_A_NUMBER.values() else "a logarithm needs a positive number"
    with pytest.raises(DataError) as caught:
        read_table(path, COLUMNS)
    name = HEADER.strip().split(",")[column]
    assert str(caught.value).startswith(f"{path}:3: column '{name}' holds ")
    assert str(caught.value).endswith(reason)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (HEADER + "1e6,2e8\n", ":2: 2 columns, the header has 3"),
        (HEADER + "1e6,2e8,3\n1e6,2e8,3.0\n", ":3: the same numbers as on line 2; keep one of them"),
        ("Model Size,tokens,lost\n1,1,1\n", ": no column 'loss' for L; there is 'lost'"),
        ("a,b,c\n1,1,1\n", ": no column 'Model Size' for N; there is 'a', 'b', 'c'"),
        ("Model Size,tokens,loss,loss\n1,1,1,2\n", ": 2 columns are called 'loss'; rename all but one"),
        ("", ": holds no rows under a header"),
        (HEADER, ": holds no rows under a header"),
        ((HEADER + "1,1,1").encode("utf-16"), ": not a text table ("),
        (HEADER.encode() + b"1,1,\xff\n", ": not a text table ("),
    ],
)
def test_a_table_that_cannot_be_is_refused_with_its_place(tmp_path, text, sentence):
    path = table(tmp_path, text)
    with pytest.raises(DataError, match=f"^{re.escape(str(path) + sentence)}"):
        read_table(path, COLUMNS)


@pytest.mark.parametrize("name", ["none.csv", "."])
def test_a_path_that_is_no_file_is_refused(tmp_path, name):
    with pytest.raises(
        DataError, match=rf"^{re.escape(str(tmp_path / name))}: (No such file|Is a directory)"
    ):
        read_table(tmp_path / name, COLUMNS)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "name L and two of N, D, C, such as N=column,D=column,L=column; this names none"),
        ("N=a,L=b", "this names N, L"),
        ("N=a,D=b,C=c,L=d", "this names N, D, C, L"),
        ("N=a,D=b,L=c,X=d", "columns: 'X' is none of N, D, C, L, run, size, flops, data"),
        ("N=a,D,L=c", "write N=column,D=column,L=column"),
        ("N=a,D=b,N=c,L=d", "names one symbol twice"),
    ],
)
def test_columns_that_do_not_say_enough_are_refused(tmp_path, text, sentence):
    path = table(tmp_path, HEADER + "1,1,1")
    with pytest.raises(DataError, match=re.escape(sentence)):
        read_table(path, parse_columns(text))


def test_column_names_may_hold_spaces_and_equals_signs():
    assert parse_columns("N=Model Size, D = a=b ,L=x") == {"N": "Model Size", "D": "a=b", "L": "x"}


def test_the_highest_losses_are_left_out_and_named():
    sizes = np.arange(1.0, 6.0)
    points = Observations.of_runs(sizes, 2 * sizes, np.array([3.0, 9, 4, 8, 5]), tuple("abcde"), "here")
    kept = points.drop_highest_loss(2)
    assert (kept.labels, kept.L.tolist(), kept.N.tolist()) == (("a", "c", "e"), [3, 4, 5], [1, 3, 5])
    assert kept.exclusions == ("b: L = 9, among the 2 highest", "d: L = 8, among the 2 highest")
    assert len(points.drop_highest_loss(9)) == 0
    assert kept.sha256 != points.sha256 == points.drop_highest_loss(0).sha256
    with pytest.raises(DataError, match="drop_highest_loss=-1"):
        points.drop_highest_loss(-1)


@pytest.mark.parametrize("name", "NDL")
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_observations_are_positive_whoever_makes_them(name, value):
    arrays = {letter: np.array([1.0, 2.0]) for letter in "NDL"}
    arrays[name] = np.array([1.0, value])
    with pytest.raises(DataError, match=f"^here: b: {name} is {value}"):
        Observations.of_runs(**arrays, labels=("a", "b"), source="here")


def test_rows_counted_in_two_ways_are_refused_with_their_place(tmp_path):
    text = "N,D,L,count,flops\n1,2,3,total,6ND\n2,3,4,nonembedding,6ND\n3,4,5,total,real\n"
    columns = {"N": "N", "D": "D", "L": "L", "size": "count"}
    path = table(tmp_path, text)
    sentence = ":3: size is 'nonembedding', on line 2 it is 'total'; one fit takes one convention"
    with pytest.raises(DataError, match=f"^{re.escape(str(path) + sentence)}"):
        read_table(path, columns)
    chosen = read_table(path, columns, where={"count": "total"})
    assert (chosen.N.tolist(), chosen.size_convention, chosen.labels) == (
        [1, 3],
        "total",
        ("line 2", "line 4"),
    )
    with pytest.raises(DataError, match=r":4: flops is 'real', on line 2 it is '6ND'"):
        read_table(path, {**columns, "flops": "flops"}, where={"count": "total"})
    with pytest.raises(DataError, match=r":3: data is 'nonembedding', on line 2 it is 'total'"):
        read_table(path, {"N": "N", "D": "D", "L": "L", "data": "count"})
    with pytest.raises(DataError, match="no row has count=none"):
        read_table(path, columns, where={"count": "none"})
    with pytest.raises(DataError, match="no column 'way' for way"):
        read_table(path, columns, where={"way": "none"})


def test_points_of_one_run_may_be_alike_and_are_named(tmp_path):
    text = "run,N,D,L\na,1,2,3\nb,1,2,3\n"
    points = read_table(table(tmp_path, text), {name: name for name in ("run", "N", "D", "L")})
    assert points.runs == ("a", "b")


def test_points_counted_in_two_ways_are_not_joined():
    sizes = np.arange(1.0, 4.0)
    one = Observations.of_runs(sizes, sizes, sizes, tuple("abc"), "here")
    other = Observations.of_runs(sizes, sizes, sizes, tuple("def"), "there", size_convention="nonembedding")
    assert one.joined(one.take(np.array([0]))).labels == tuple("abca")
    with pytest.raises(
        DataError, match="size convention: a to c of here have 'as given', d to f of there 'nonembedding'"
    ):
        one.joined(other)
    with pytest.raises(DataError, match=r"data convention: .* 'tokens', .* 'sequences'; one fit takes one"):
        one.joined(
            Observations.of_runs(sizes, sizes, sizes, tuple("def"), "there", data_convention="sequences")
        )


@pytest.mark.parametrize(
    ("inputs", "outcome", "columns", "sentence"),
    [
        (("p",), "t", {"p": "p"}, "name t and p, such as p=column,t=column; this names p"),
        (("p",), "t", {"p": "p", "t": "t", "N": "N"}, "columns: 'N' is none of p, t, run, size, flops, data"),
        (("x",), "L", {"N": "N", "L": "L"}, "name L and x, such as x=column,L=column"),
    ],
)
def test_columns_are_those_of_the_law(tmp_path, inputs, outcome, columns, sentence):
    with pytest.raises(DataError, match=re.escape(sentence)):
        read_table(table(tmp_path, "p,t,N\n1,1,1"), columns, inputs, outcome)


def test_what_follows_from_the_columns_is_derived(tmp_path):
    path = table(tmp_path, "N,D,L\n2,30,3\n")
    points = read_table(path, {"N": "N", "D": "D", "L": "L"}, ("x",))
    assert points.columns(("x", "C", "M")) == {"x": 360.0, "C": 360.0, "M": 15.0}
