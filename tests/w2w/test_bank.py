"""Weight bank: appends that are whole or absent, damage that is found."""

import errno
import os
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from w2w import subspace
from w2w.adapters import planted
from w2w.bank import Bank, BankError
from w2w.bank import files as bank_files
from w2w.bank import store as bank_module
from w2w.pca import incremental

ALPHA = 27.0
LAYOUT = planted.layout()


def vectors(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, LAYOUT.size)).astype(np.float32)


def new_bank(path, **options):
    return Bank.create(path, LAYOUT, ALPHA, **options)


def content(bank):
    """All bytes of a bank."""
    return {name: (bank.path / name).read_bytes() for name in ("rows.bin", "index.jsonl")}


def test_rows_come_back_exactly(tmp_path):
    bank = new_bank(tmp_path / "bank", labels=("age", "smiling"))
    assert bank.shape == (0, LAYOUT.size) and bank.rows.shape == bank.shape
    rows = vectors(5)
    bank.append(["a", "b"], rows[:2], {"age": [30, 40]})
    bank.append(["c", "d", "e"], rows[2:], {"smiling": [1, 0, np.nan]})
    for opened in (bank, Bank(bank.path)):
        assert isinstance(opened.rows, np.memmap) and opened.dtype == np.float32
        assert opened.shape == (5, LAYOUT.size) and len(opened) == 5
        np.testing.assert_array_equal(opened.rows, rows)
        np.testing.assert_array_equal(opened[1:4], rows[1:4])
        np.testing.assert_array_equal(opened[-1], rows[-1])
        assert opened.names == tuple("abcde") and opened.row_of("d") == 3
        wanted = [[30, np.nan], [40, np.nan], [np.nan, 1], [np.nan, 0], [np.nan, np.nan]]
        np.testing.assert_array_equal(opened.labels, wanted)
        assert (opened.layout, opened.alpha) == (LAYOUT, ALPHA)
        opened.verify()
    with pytest.raises(ValueError, match="read-only"):
        bank.rows[0, 0] = 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_rows(tmp_path, dtype):
    bank = new_bank(tmp_path, dtype=dtype)
    rows = vectors(4)
    bank.append(list("abcd"), rows)
    opened = Bank(tmp_path)
    np.testing.assert_array_equal(opened.rows, rows.astype(jnp.dtype(dtype)))
    assert (tmp_path / "rows.bin").stat().st_size == 4 * 2 * LAYOUT.size
    opened.verify()
    if dtype == "float16":
        with pytest.raises(BankError, match=f"'e': {LAYOUT.size} of .* not finite in float16"):
            bank.append(["e"], np.full((1, LAYOUT.size), 1e6))


def test_a_space_is_fitted_on_the_map(tmp_path):
    bank = new_bank(tmp_path)
    rows = vectors(12)
    bank.append([str(i) for i in range(12)], rows)
    here, there = subspace.fit(bank.rows, 5), subspace.fit(rows, 5)
    np.testing.assert_array_equal(here.components, there.components)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_space_is_updated_with_the_rows_that_were_added(tmp_path, dtype):
    """As if it had been fitted on the whole bank."""
    bank = new_bank(tmp_path, dtype=dtype)
    names, rows = [str(i) for i in range(20)], vectors(20)
    bank.append(names[:12], rows[:12])
    before = subspace.fit(bank.rows)
    bank.append(names[12:], rows[12:])
    updated, whole = incremental.update(before, bank[12:], 19), subspace.fit(bank.rows)
    assert (before.n, updated.n, updated.k) == (12, 20, 19)
    np.testing.assert_allclose(updated.std, whole.std, rtol=2e-6)
    np.testing.assert_allclose(updated.variances, whole.variances, rtol=1e-4)
    back = subspace.unproject(updated, subspace.project(updated, jnp.asarray(bank.rows, "float32")))
    np.testing.assert_allclose(back, bank.rows.astype(np.float32), atol=1e-4)


@pytest.mark.parametrize(
    ("names", "rows", "more", "message"),
    [
        (["a"], vectors(1, 7), {}, "'a' is in the bank already .row 0."),
        (["c"], vectors(2)[1:], {}, "'c' has the values of 'b' .row 1."),
        (["c", "c"], vectors(2, 7), {}, "the name 'c' occurs twice"),
        (["c", "d"], np.repeat(vectors(1, 7), 2, 0), {}, "'d' has the values of 'c'"),
        (["c"], vectors(1, 7)[:, 1:], {}, rf"shape \({LAYOUT.size - 1},\), rows of {LAYOUT.size}"),
        (["c"], np.full((1, LAYOUT.size), np.nan), {}, f"'c': {LAYOUT.size} of {LAYOUT.size} val"),
        (["c"], vectors(2, 7), {}, "different counts"),
        (["c"], vectors(1, 7), {"labels": {"age": [1]}}, "unknown labels age; the bank has none"),
    ],
)
def test_refused_rows_leave_the_bank_alone(tmp_path, names, rows, more, message):
    bank = new_bank(tmp_path)
    bank.append(["a", "b"], vectors(2))
    before = content(bank)
    with pytest.raises(BankError, match=message):
        bank.append(names, rows, **more)
    assert content(bank) == before and len(bank) == len(Bank(tmp_path)) == 2


@pytest.mark.parametrize("fail_at", ["rows", "index", "state"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt()])
def test_an_interrupted_append_changes_nothing(tmp_path, monkeypatch, fail_at, error):
    """The disk is full, or the process ends, at each of the three writes."""
    bank = new_bank(tmp_path)
    rows = vectors(5)
    bank.append(["a", "b"], rows[:2])
    calls = {"rows.bin": "rows", "index.jsonl": "index"}

    def append(path, start, parts):
        if calls[path.name] == fail_at:
            bank_files.append(path, start, [b"half of it"])
            raise error
        bank_files.append(path, start, parts)

    def save_json(path, value):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(bank_module, "append", append)
        if fail_at == "state":
            patch.setattr(bank_module, "save_json", save_json)
        full = isinstance(error, OSError)
        with pytest.raises(BankError if full else KeyboardInterrupt) as caught:
            bank.append(["c", "d"], rows[2:4])
    if full:
        assert "out of disk space: " in str(caught.value)
        assert "the bank keeps its 2 rows" in str(caught.value)
    for opened in (bank, Bank(tmp_path)):
        assert opened.names == ("a", "b")
        np.testing.assert_array_equal(opened.rows, rows[:2])
    bank.append(["c", "d", "e"], rows[2:])
    opened = Bank(tmp_path)
    np.testing.assert_array_equal(opened.rows, rows)
    opened.verify()
    assert (tmp_path / "rows.bin").stat().st_size == rows.nbytes


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB; needs the right to mount."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(small_disk):
    bank = new_bank(small_disk / "bank")
    bank.append(["a"], vectors(1))
    count = 2 * (64 << 10) // vectors(1).nbytes
    with pytest.raises(BankError, match=r"out of disk space: \d+ bytes needed, \d+ free; .* 1 row"):
        bank.append([f"b{i}" for i in range(count)], vectors(count, 1))
    bank.append(["c"], vectors(1, 2))
    opened = Bank(bank.path)
    assert opened.names == ("a", "c")
    opened.verify()
    del opened, bank  # unmaps the file


def test_damage_is_found(tmp_path):
    bank = new_bank(tmp_path)
    bank.append(["a", "b", "c"], vectors(3))
    rows = tmp_path / "rows.bin"
    data = bytearray(rows.read_bytes())
    data[LAYOUT.size * 4 + 5] ^= 1
    rows.write_bytes(data)
    with pytest.raises(BankError, match="1 of 3 rows are damaged: b"):
        Bank(tmp_path).verify()
    rows.write_bytes(data[:-1])
    with pytest.raises(BankError, match=f"rows.bin: {len(data) - 1} bytes, but {len(data)} are"):
        Bank(tmp_path)
    state = (tmp_path / "bank.json").read_text()
    (tmp_path / "bank.json").write_text(state.replace(FIRST, FIRST + "x"))
    with pytest.raises(BankError, match="bank.json: layout of sha256"):
        Bank(tmp_path)


FIRST = LAYOUT.modules[0][0]


def test_two_writers(tmp_path):
    bank = new_bank(tmp_path)
    other = Bank(tmp_path)
    bank.append(["a"], vectors(1))
    with pytest.raises(BankError, match="another process has appended; open the bank again"):
        other.append(["b"], vectors(1, 1))
    other = Bank(tmp_path)
    with bank._writing(), pytest.raises(BankError, match="another process appends"):
        other.append(["b"], vectors(1, 1))
    other.append(["b"], vectors(1, 1))
    assert Bank(tmp_path).names == ("a", "b")
    with pytest.raises(FileExistsError, match="is a weight bank already"):
        new_bank(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a weight bank"):
        Bank(tmp_path / "nothing")
