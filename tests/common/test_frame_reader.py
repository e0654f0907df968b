"""Tables of pandas pickles: as pandas reads them, and nothing executed."""

import pickle

import numpy as np
import pandas as pd
import pytest

from common import frame_reader
from common.restricted_pickle import PickleError, RefusedGlobal


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


def test_as_pandas_reads_it(frame, tmp_path):
    frame.to_pickle(tmp_path / "frame.pickle")
    found = frame_reader.read(tmp_path / "frame.pickle")
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
    found = frame_reader.read(tmp_path / "frame.pickle")
    assert list(found) == ["stage", "score", "days", "group", "age"]
    np.testing.assert_array_equal(found["score"], frame["score"].to_numpy())
    np.testing.assert_array_equal(found["age"], frame["age"].to_numpy())


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(("content", "error", "message"), [
    (Evil(), RefusedGlobal, "builtins.print"),
    ({"a": 1}, PickleError, "instead of a DataFrame"),
    (pd.DataFrame({"t": pd.to_datetime(["2020-01-01"])}), PickleError, "frame.pickle"),
])
def test_anything_else_is_refused(content, error, message, tmp_path, capsys):
    path = tmp_path / "frame.pickle"
    path.write_bytes(pickle.dumps(content, protocol=5))
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
    assert "state" in frame_reader._Frame.__slots__


def test_damage_is_named(frame, tmp_path):
    path = tmp_path / "frame.pickle"
    frame.to_pickle(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(PickleError, match=r"frame\.pickle: damaged pickle"):
        frame_reader.read(path)
    with pytest.raises(FileNotFoundError):
        frame_reader.read(tmp_path / "no.pickle")
