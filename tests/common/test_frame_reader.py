"""Tables of pandas pickles: as pandas reads them, and nothing executed."""

import base64
import pickle
import random
import zipfile
import zlib

import numpy as np
import pandas as pd
import pytest
import torch

from common import frame_reader
from common.restricted_pickle import PickleError, RefusedGlobal
from tests.common import old_pandas
from tests.common.old_pandas import Block, BlockManager, DataFrame, Index, RangeIndex


def pickled(protocol):
    def write(frame, path):
        path.write_bytes(pickle.dumps(frame, protocol))

    return write


WRITERS = pytest.mark.parametrize(
    "write",
    [lambda frame, path: frame.to_pickle(path), torch.save, pickled(2), pickled(4)],
    ids=["to_pickle", "torch", "protocol2", "protocol4"],
)  # fmt: skip

# Written by pandas 1.5.3 with NumPy 1.24, in protocol 4; zlib, base 85.
PANDAS_1_5 = """
c-oCs%Wl&^6pdp$eL`DR&;S(+R%Ovhl@LOr5`C$VS{P9k#DZ!xcBUCCjvd)!+DKG|MN1>iuG4?u6Ik*^tl5=2V_R|B1aKtJICG
!po_ptuarvuKQV*Z&;Gluynj1!>b`aq<5qx3`GrX<#7vk|(aV(a&f!fVT@P|clFJL4JupigjIKWL3#ez?7_@Uc+oqmJ*62F_NA
m4N1zK-BCC<!{A+wuu=q!LK;J3-R!bW`)~#AhCkBHRVDC?akc#4Ji&CIw9;DEJuIRw5U|DxHc=%@N<ku2`}(_~~bY&TzBAx*eG
cFCRP;z4P>3=h~{UZF}bm9`&+HOgO#GssiSxy_O>M`y^dotqC~h<4)p1SOLUu#=hqg<yd-?X05V((<yqJ&dG4-{9rIuUiJzh(8
Zwv=&8q&maXM%l>yL4V5<Dz-kg<U!k>pGtZOALGhMdyLDPJGpn3{wNPQ8ZPWPx^KYMFko@`*ZMH&+60iL8<H5W6|3?t9QzTi`v
g|7>-^W)>YTekGc?-f;5>Edh=e72yql~pw(=wxnQ%2fwx+8{?@#KAF;dlCiY5Y^>>piFnUneP?N8$f+=6VURhg7ZzWc&me8zK~
$<OB>W{Qo(gUJQPH7#t399*~ytqZ!C-&Bm$IriF4DBp8D}tM*GQ&cBS}m40M;3(=Fo~DYj|7k1DlOnCM%&#~%zs2l|Nst^iOyU
{9YEK%pOo<FVY^oXsh!7b!~8R4E;qV%TS0o`7MQ*Qj@Y2#4hOkb{L!*VEm4*8CX@Of;f^dKz$5`%7<ub{og75!%loW>8at735-
<5^zZu=w$}k03qpj8P1fNQYaljbeS71fLn0Q6G`mEiOk!yD*x){vg&3e$z^Hw%QYjL-5M4)*IY$1uvD?ei<X!GdAdj6k0{~zX=
an_Fsp^6zHDuyK`?}9Hlr}<$RWqnY2}j_dkoGikdh-SU@&sTQr~&O_vpz8XF2?18Qf;JP7L7<QGH?{01fUUS<n1lLT$pZD)2r;
h8cq!=NLjl2R?49?E?0p?PAnOIxw7JA|M|-1a6yiK)dz_?Rt#G
"""


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "age": rng.normal(60, 9, 40),
        "days": rng.integers(0, 900, 40),
        "score": np.where(rng.random(40) < 0.3, np.nan, rng.random(40)),
        "group": pd.Categorical(rng.choice(["low", "high", None], 40)),
        "dead": rng.random(40) < 0.5,
        "stage": pd.Categorical(rng.integers(1, 4, 40)),
        "ward": pd.array(rng.choice(["A", "B", None], 40), pd.StringDtype("python")),
        "visits": pd.array(rng.choice([1, 2, None], 40), "Int64"),
    })


@WRITERS
def test_as_pandas_reads_it(frame, tmp_path, write):
    write(frame, tmp_path / "frame.pickle")
    found = frame_reader.read(tmp_path / "frame.pickle").columns
    assert list(found) == list(frame.columns)
    for name in ("age", "days", "score", "dead"):
        np.testing.assert_array_equal(found[name], frame[name].to_numpy())
        assert found[name].dtype == frame[name].dtype
    np.testing.assert_array_equal(found["visits"], frame["visits"].astype(float).to_numpy())
    assert np.isnan(found["visits"]).any()
    for name in ("group", "stage", "ward"):
        expected = [None if pd.isna(v) else v for v in frame[name]]
        assert found[name].tolist() == expected
    assert None in found["group"].tolist()


def test_columns_that_were_put_in_another_order(frame, tmp_path):
    frame = frame[["stage", "score", "days", "group", "age"]]
    frame.to_pickle(tmp_path / "frame.pickle")
    found = frame_reader.read(tmp_path / "frame.pickle").columns
    assert list(found) == ["stage", "score", "days", "group", "age"]
    np.testing.assert_array_equal(found["score"], frame["score"].to_numpy())
    np.testing.assert_array_equal(found["age"], frame["age"].to_numpy())


@WRITERS
@pytest.mark.parametrize("labels", [
    range(7, 13, 2), [4, 2, 9], [0.5, 2.0, -1.0], ["anna", "ben", "cleo"],
    pd.array(["anna", None, "cleo"], pd.StringDtype("python")), [1, "b", None],
], ids=["range", "integers", "floats", "strings", "absent", "mixed"])  # fmt: skip
def test_the_index(tmp_path, labels, write):
    frame = pd.DataFrame({"a": [1, 2, 3]}, pd.Index(labels))
    write(frame, tmp_path / "frame.pickle")
    found = frame_reader.read(tmp_path / "frame.pickle")
    assert found.index == tuple(None if pd.isna(v) else v for v in frame.index)
    assert found.columns["a"].tolist() == [1, 2, 3]


@WRITERS
def test_columns_of_objects(tmp_path, write):
    """Numbers become floats; columns of one block, which may be stored either way round."""
    values = [["a", 1, True, None, "x"], [None, None, np.float32(2.5), None, 1],
              ["c", 3.5, pd.NA, np.nan, pd.NA]]  # fmt: skip
    names = ["text", "number", "flag", "nothing", "mixed"]
    for array in (np.array(values, object), np.asfortranarray(np.array(values, object))):
        write(pd.DataFrame(array, columns=names), tmp_path / "frame.pickle")
        found = frame_reader.read(tmp_path / "frame.pickle").columns
        assert list(found) == names
        assert found["text"].tolist() == ["a", None, "c"]
        assert found["mixed"].tolist() == ["x", 1, None]
        for name, wanted in (("number", [1, np.nan, 3.5]), ("flag", [1, 2.5, np.nan]),
                             ("nothing", [np.nan] * 3)):  # fmt: skip
            assert found[name].dtype == np.float64
            np.testing.assert_array_equal(found[name], wanted)


def test_a_file_of_an_older_pandas(tmp_path):
    path = tmp_path / "frame.pickle"
    path.write_bytes(zlib.decompress(base64.b85decode("".join(PANDAS_1_5.split()))))
    found = frame_reader.read(path)
    assert found.index == (7, 5, 9)
    wanted = {
        "age": [61.5, np.nan, 48.0], "days": [3, 1, 2], "dead": [True, False, True],
        "group": ["low", None, "high"], "stage": [3, 1, 3], "visits": [1, np.nan, 2],
        "number": [1, np.nan, 2.5], "text": ["a", None, "c"],
    }  # fmt: skip
    assert list(found.columns) == list(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found.columns[name], values)


@pytest.fixture
def pandas_names(monkeypatch):
    old_pandas.install(monkeypatch)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_frames_of_other_contents(tmp_path, pandas_names, protocol):
    """Plain pickles, columns of Python objects, indices of numbers."""
    objects = np.array([[1, None, 2.5], ["a", "b", "c"]], object)
    axes = [Index(np.array(["number", "text"], object)), RangeIndex(10, 16, 2)]
    path = tmp_path / "frame.pkl"
    manager = BlockManager((Block(objects, slice(0, 2, 1)),), axes)
    path.write_bytes(pickle.dumps(DataFrame(manager), protocol))
    frame = frame_reader.read(path)
    assert frame.index == (10, 12, 14)
    np.testing.assert_array_equal(frame.columns["number"], [1, np.nan, 2.5])
    assert frame.columns["text"].tolist() == ["a", "b", "c"]

    manager = BlockManager((Block(np.asfortranarray(objects), slice(0, 2, 1)),), axes)
    path.write_bytes(pickle.dumps(DataFrame(manager), protocol))
    assert frame_reader.read(path).columns["text"].tolist() == ["a", "b", "c"]

    for axes[1] in (old_pandas.Int64Index([3, 1, 2]), old_pandas.Float64Index([0.5, 1, 2])):
        manager = BlockManager((Block(objects, np.array([1, 0])),), axes)
        path.write_bytes(pickle.dumps(DataFrame(manager), protocol))
        frame = frame_reader.read(path)
        assert frame.index == tuple(axes[1].attributes["data"].tolist())
        assert frame.columns["number"].tolist() == ["a", "b", "c"]

    manager = BlockManager((Block(objects, slice(0, 1, 1)),), axes)
    path.write_bytes(pickle.dumps(DataFrame(manager), protocol))
    with pytest.raises(frame_reader.PickleError, match=r"block of shape \(2, 3\) for 1 columns"):
        frame_reader.read(path)


NUMBERS = np.arange(6.0).reshape(2, 3)
TWO, THREE, HUGE = np.array([0, 1]), RangeIndex(0, 3, 1), RangeIndex(0, 10**15, 1)
NAMES = Index(np.array(["a", "b"], object))


@pytest.mark.parametrize(("blocks", "axes", "message"), [
    # Nothing of these sizes is allocated before it is refused.
    ([(NUMBERS, TWO)], (NAMES, HUGE), "1000000000000000 labels"),
    ([(NUMBERS, TWO)], (NAMES, RangeIndex(10**30, 0, -3)), "labels as index, more than"),
    ([(NUMBERS, TWO)], (HUGE, THREE), "1000000000000000 labels"),
    ([(np.empty((10**15, 0)), slice(0, 10**15, 1))], (HUGE, RangeIndex(0, 0, 1)), "0000 labels"),
    ([], (Index(np.array([], object)), HUGE), "1000000000000000 labels"),
    ([(NUMBERS, slice(0, 10**15, 1))], (NAMES, RangeIndex(0, 2, 1)), "for 2 columns of 2 rows"),
    ([(NUMBERS, TWO)], (NAMES, RangeIndex(0, 3, 0)), "without its bounds and step"),
    ([(NUMBERS, TWO)], (NAMES, RangeIndex(0, 3.0, 1)), "without its bounds and step"),
    ([(NUMBERS, TWO)], (NAMES, Index(NUMBERS)), r"an index of shape \(2, 3\)"),
    ([(NUMBERS, TWO)], (NAMES,), "without a manager of two axes"),
    ([(NUMBERS, TWO)], (NAMES, [1, 2, 3]), "an axis that is list"),
    ([(NUMBERS, TWO), (NUMBERS[:1], TWO[1:])], (NAMES, THREE), "column 'b' is in two blocks"),
    ([(NUMBERS[:1], TWO[1:])], (NAMES, THREE), "2 names for 1 columns"),
    ([(NUMBERS, TWO)], (Index(np.array(["a", "a"], object)), THREE), "2 names for 1 columns"),
    ([(NUMBERS, TWO)], (Index(np.array(["1", 1], object)), THREE), "2 names for 1 columns"),
    ([(NUMBERS, TWO - 1)], (NAMES, THREE), "places .* of 2 columns"),
    ([(NUMBERS, TWO * 0.5)], (NAMES, THREE), "float64 places"),
    ([(NUMBERS[0, 0], TWO)], (NAMES, THREE), "values that are Scalar"),
    ([(NUMBERS.tolist(), TWO)], (NAMES, THREE), "values that are list"),
    ([(np.array([[1, [3]]] * 2, object), TWO)], (NAMES, THREE), "numbers and strings: list"),
    ([(np.array([[1, b"3"]] * 2, object), TWO)], (NAMES, THREE), "numbers and strings: bytes"),
    ([(np.array([[1, 2j]] * 2, object), TWO)], (NAMES, THREE), "numbers and strings: complex"),
    ([(np.array([[1, 2, 10**400]] * 2, object), TWO)], (NAMES, THREE), "too large"),
])  # fmt: skip
def test_tables_that_make_no_sense(tmp_path, pandas_names, blocks, axes, message):
    path = tmp_path / "frame.pickle"
    manager = BlockManager(tuple(Block(*block) for block in blocks), list(axes))
    path.write_bytes(pickle.dumps(DataFrame(manager), 4))
    with pytest.raises(PickleError, match=rf"frame\.pickle: .*{message}"):
        frame_reader.read(path)


def masked(mask):
    array = pd.array([1, 2, 3], "Int64")
    array._mask = mask
    return array


def category(codes):
    dtype = pd.CategoricalDtype(["a", "b"])
    return pd.Categorical._simple_new(np.array(codes), dtype)


def strings():
    array = pd.array(["a", "b", None], pd.StringDtype("python"))
    array._ndarray[1] = 1
    return array


@pytest.mark.parametrize(("column", "message"), [
    (category([0, 2, -1]), "codes from -1 to 2 for 2 categories"),
    (category([0, 1, -2]), "codes from -2 to 1 for 2 categories"),
    (pd.Categorical.from_codes([0, 1, 2], pd.RangeIndex(10**15)), "1000000000000000 labels"),
    (masked(np.zeros(1, bool)), r"values \(3,\) with a mask \(1,\)"),
    (masked(np.zeros(3)), "int64 values with a mask of float64"),
    (strings(), "an array of strings that holds something else"),
], ids=["beyond", "below", "range", "short mask", "mask", "strings"])  # fmt: skip
def test_columns_that_make_no_sense(tmp_path, column, message):
    """Columns of pandas, damaged within."""
    path = tmp_path / "frame.pickle"
    pd.DataFrame({"a": pd.Series(column, copy=False)}).to_pickle(path)
    with pytest.raises(PickleError, match=rf"frame\.pickle: .*{message}"):
        frame_reader.read(path)


def test_codes_of_categories_that_are_no_integers(tmp_path):
    path = tmp_path / "frame.pickle"
    pd.DataFrame({"a": category([1, 1, 1])}).to_pickle(path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x8c\x02i1", b"\x8c\x02b1"))
    assert path.read_bytes() != data
    with pytest.raises(PickleError, match=r"codes of categories that are bool \(3,\)"):
        frame_reader.read(path)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("write", [pickled(5), torch.save], ids=["pickle", "torch"])
@pytest.mark.parametrize(("content", "error", "message"), [
    (Evil(), RefusedGlobal, "builtins.print"),
    ({"a": 1}, PickleError, "instead of a DataFrame"),
    (pd.DataFrame({"t": pd.to_datetime(["2020-01-01"])}), PickleError, "frame.pickle"),
])
def test_anything_else_is_refused(content, error, message, write, tmp_path, capsys):
    path = tmp_path / "frame.pickle"
    write(content, path)
    with pytest.raises(error, match=message):
        frame_reader.read(path)
    assert "executed" not in capsys.readouterr().out


def test_a_shell_cannot_be_changed(tmp_path):
    # BUILD on the class that stands for a DataFrame, not on an instance of it.
    opcodes = (b"\x80\x04cpandas.core.frame\nDataFrame\n"
               b"(NN}X\x05\x00\x00\x00stateK\x01s\x86b.").replace(b"(NN", b"N")
    path = tmp_path / "frame.pickle"
    path.write_bytes(opcodes)
    with pytest.raises(PickleError, match=r"frame\.pickle"):
        frame_reader.read(path)
    assert "state" in frame_reader._Shell.__slots__


def test_damage_is_named(frame, tmp_path):
    path = tmp_path / "frame.pickle"
    frame.to_pickle(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(PickleError, match=r"frame\.pickle: damaged pickle"):
        frame_reader.read(path)
    with pytest.raises(FileNotFoundError):
        frame_reader.read(tmp_path / "no.pickle")


def test_zip_files_that_torch_does_not_write(tmp_path, frame):
    path = tmp_path / "frame.pickle"
    data = pickle.dumps(frame, 2)
    for names, method, message in (
        (("a/data.pkl", "b/data.pkl"), zipfile.ZIP_STORED, "2 members data.pkl instead of one"),
        (("readme",), zipfile.ZIP_STORED, "0 members data.pkl"),
        (("a/data.pkl",), zipfile.ZIP_LZMA, "'a/data.pkl' is compressed"),
    ):
        with zipfile.ZipFile(path, "w", method) as opened:
            for name in names:
                opened.writestr(name, data)
        with pytest.raises(PickleError, match=rf"frame\.pickle: .*{message}"):
            frame_reader.read(path)
    torch.save(frame, path)
    path.write_bytes(path.read_bytes().replace(b"score", b"scorf"))
    with pytest.raises(PickleError, match=r"frame\.pickle: damaged file: Bad CRC"):
        frame_reader.read(path)


def spoilt(data, rng):
    """Bytes with some of them flipped, replaced or left out, or without their end."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 4))):
        at, kind = rng.randrange(len(data)), rng.randrange(8)
        if kind == 0:
            return bytes(data[:at])
        if kind == 1:
            del data[at : at + rng.randrange(1, 4)]
        elif kind < 5:
            data[at] ^= 1 << rng.randrange(8)
        else:
            data[at] = rng.choice(b"N])}(.tRbhK0\x85\x86\x87\x88\x8a\x93\x94\xff")
    return bytes(data)


@WRITERS
def test_damaged_files_are_errors_or_other_values_but_never_crash(frame, tmp_path, write):
    path, rng = tmp_path / "frame.pickle", random.Random(0)
    frame["mixed"] = pd.Series([1, "a", None, 2.5] * 10, dtype=object)
    write(frame, path)
    data, refused = path.read_bytes(), 0
    for _ in range(300):
        path.write_bytes(spoilt(data, rng))
        try:
            found = frame_reader.read(path)
            assert all(len(values) == len(found.index) for values in found.columns.values())
        except PickleError as error:  # RefusedGlobal is one
            refused += str(path) in str(error)
    assert 150 < refused <= 300
