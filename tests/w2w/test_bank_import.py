"""Filling a bank from a folder: refusals with names, parallel readers, imports that continue."""

import errno
import io
import pathlib
import re
import threading

import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from common.storage import load_json
from tests.w2w.test_bank import ALPHA, LAYOUT, content, new_bank, vectors
from w2w import adapters
from w2w.adapters import Reading, planted
from w2w.adapters.formats import spell
from w2w.bank import Bank, BankError
from w2w.bank import files as bank_files
from w2w.bank import folder as bank_import
from w2w.bank import store as bank_module
from w2w.bank.folder import find, import_folder

KEY, MODEL_KEY = (spell(LAYOUT.modules[0][0], "A", kind) for kind in ("kohya", "model"))

MODELS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Adapters in all formats, one stated with another alpha, four unusable ones."""
    out = tmp_path_factory.mktemp("planted")
    config = dict(models=MODELS, factors=3, noise=0.3, alpha=ALPHA, uneven=True, seed=0)
    planted.make(ConfigDict(config), {}, out)
    return out / "adapters"


def drawn():
    return planted.draw(LAYOUT.size, MODELS, 3, 0.3, 0).vectors


def test_import_names_what_it_refuses(folder, tmp_path):
    bank = new_bank(tmp_path / "bank", labels=("age",))
    ages = {f"person{i}": {"age": 20.0 + i} for i in range(1, MODELS)}
    report = import_folder(bank, folder, labels=ages, report=tmp_path / "import.json")
    assert load_json(tmp_path / "import.json") == report
    assert bank.names == tuple(f"person{i}" for i in range(MODELS))  # 2 before 10
    np.testing.assert_array_equal(bank.rows, drawn())
    np.testing.assert_array_equal(bank.labels[:, 0], [np.nan, *(20 + np.arange(1, MODELS))])
    counts = {key: report[key] for key in ("found", "imported", "already", "rows")}
    assert counts == {"found": MODELS + 4, "imported": MODELS, "already": 0, "rows": MODELS}
    reasons = {item["file"]: item["reason"] for item in report["refused"]}
    assert set(reasons) == {
        f"{n}.safetensors" for n in ("truncated", "person0_copy", "other_base", "not_finite")
    }
    assert "'person0_copy' has the values of 'person0'" in reasons["person0_copy.safetensors"]
    assert "1 of 24 values are not finite" in reasons["not_finite.safetensors"]
    assert "another base model" in reasons["other_base.safetensors"]
    assert "truncated: header of" in reasons["truncated.safetensors"]
    assert [item["name"] for item in report["changed"]] == [f"person{MODELS - 1}"]
    again = import_folder(bank, folder)
    assert (again["imported"], again["already"], len(again["refused"])) == (0, MODELS, 4)
    assert len(bank) == MODELS


def save_kohya(path, vector, layout=LAYOUT):
    return adapters.save(path, vector, layout, alpha=ALPHA, format="kohya")


def with_tensors(path, **changes):
    """A good file in which these tensors are others."""
    tensors = load_file(save_kohya(path, vectors(1, 9)[0]))
    save_file({**tensors, **changes}, path)


def truncated(path):
    data = save_kohya(path, vectors(1, 9)[0]).read_bytes()
    path.write_bytes(data[: len(data) - 10])


def of_layout(path, **changes):
    layout = planted.layout(**changes)
    save_kohya(path, np.ones(layout.size, np.float32), layout)


def malicious(path):
    command = f"touch {path.parents[1] / 'executed'}".encode()
    path.with_suffix(".bin").write_bytes(
        b"\x80\x02cposix\nsystem\nU" + bytes([len(command)]) + command + b"\x85R."
    )


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (truncated, "bad.safetensors: damaged file of"),
        (
            lambda path: with_tensors(path, **{KEY: np.full((1, 24), np.nan, np.float32)}),
            "24 of 24 values are not finite",
        ),
        (lambda path: of_layout(path, rank=2), "rank 2, the layout has rank 1"),
        (lambda path: of_layout(path, width=32), "an adapter of another base model"),
        (lambda path: save_kohya(path, vectors(2)[1]), "'bad' has the values of 'b' .row 1."),
        (
            lambda path: with_tensors(path, **{MODEL_KEY: np.ones((1, 24), np.float32)}),
            "mixes 2 spellings",
        ),
        (malicious, "bad.bin: .*'posix.system'.*nothing was executed"),
    ],
    ids=["truncated", "nan", "rank", "base", "duplicate", "mixed", "malicious"],
)
def test_a_refused_file_leaves_the_bank_alone(tmp_path, spoil, reason):
    """Named with its reason; the bank keeps its bytes, and the files beside it are imported."""
    bank = new_bank(tmp_path / "bank")
    bank.append(["a", "b"], vectors(2))
    before = content(bank), load_json(bank.path / "bank.json")
    folder = tmp_path / "in"
    folder.mkdir()
    spoil(folder / "bad.safetensors")
    for good in range(2):
        report = import_folder(bank, folder)
        (refused,) = report["refused"]
        assert refused["name"] == "bad" and pathlib.Path(refused["file"]).stem == "bad"
        assert re.search(reason, refused["reason"]), refused["reason"]
        assert (report["found"], report["imported"]) == (1 + good, good)
        if not good:
            assert (content(bank), load_json(bank.path / "bank.json")) == before
            save_kohya(folder / "good.safetensors", vectors(1, 3)[0])
    assert Bank(bank.path).names == ("a", "b", "good")
    assert not (tmp_path / "executed").exists()


def test_a_thousand_files_with_a_progress_bar(tmp_path, monkeypatch):
    """Broken ones among them are named and counted, and the bar counts every file."""
    count, folder = 1000, tmp_path / "in"
    data = save_kohya(tmp_path / "x.safetensors", vectors(1)[0]).read_bytes()
    folder.mkdir()
    wanted = np.repeat(vectors(1), count, axis=0)
    wanted[:, -1] = np.arange(count)
    broken = range(0, count, 50)
    for i in range(count):
        end = wanted[i, -1:].tobytes()
        (folder / f"a{i}.safetensors").write_bytes(data[:-4] + end[: 2 if i in broken else 4])
    bars = []

    class Bar(bank_import.tqdm.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **{**kwargs, "disable": False, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr(bank_import.tqdm, "tqdm", Bar)
    bank = new_bank(tmp_path / "bank")
    report = import_folder(bank, folder)
    assert [item["name"] for item in report["refused"]] == [f"a{i}" for i in broken]
    assert (report["found"], report["imported"]) == (count, count - len(broken))
    assert bank.names == tuple(f"a{i}" for i in range(count) if i not in broken)
    np.testing.assert_array_equal(bank.rows, np.delete(wanted, broken, axis=0))
    (bar,) = bars
    assert (bar.n, bar.total, bar.desc) == (count, count, "import")


def test_files_are_read_in_parallel(folder, tmp_path, monkeypatch):
    """Four readers meet; one after another they would wait for each other in vain."""
    meeting, load = threading.Barrier(4, timeout=20), adapters.read

    def meet(*args):
        meeting.wait()
        return load(*args)

    monkeypatch.setattr(adapters, "read", meet)
    bank = new_bank(tmp_path)
    assert import_folder(bank, folder, workers=4)["found"] % 4 == 0
    assert len(bank) == MODELS


def test_an_import_onto_a_full_disk_continues(folder, tmp_path, monkeypatch):
    """The error is the bank's, though there is no place for the report either."""
    whole = new_bank(tmp_path / "whole")
    import_folder(whole, folder)
    bank, report = new_bank(tmp_path / "bank"), tmp_path / "import.json"
    monkeypatch.setattr(bank_import, "_COMMIT_BYTES", 3 * LAYOUT.size * 4)
    full = OSError(errno.ENOSPC, "no space left on device")

    def append(path, start, parts):
        bank_files.append(path, start, parts)
        if path.name == "rows.bin" and start:
            raise full

    def no_place(path, value):
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(bank_module, "append", append)
        message = r"out of disk space: \d+ bytes needed, \d+ free; the bank keeps its 3 rows"
        with pytest.raises(BankError, match=message):
            import_folder(bank, folder, report=report)
        assert load_json(report)["imported"] == load_json(report)["rows"] == 3
        patch.setattr(bank_import, "save_json", no_place)
        with pytest.raises(BankError, match=message):
            import_folder(bank, folder, report=report)
    Bank(bank.path).verify()
    assert (bank.path / "rows.bin").stat().st_size == bank.rows.nbytes
    import_folder(Bank(bank.path), folder, report=report)
    assert load_json(report)["already"] == 3
    assert content(bank) == content(whole)


def test_import_does_not_depend_on_workers_or_interruptions(folder, tmp_path, monkeypatch):
    whole = new_bank(tmp_path / "whole")
    import_folder(whole, folder, workers=1)
    other = new_bank(tmp_path / "other")
    import_folder(other, folder, workers=7)
    assert content(other) == content(whole)

    broken = new_bank(tmp_path / "broken")
    monkeypatch.setattr(bank_import, "_COMMIT_BYTES", 3 * LAYOUT.size * 4)
    load = adapters.read

    def stop_at_eight(path, *args):
        if "person8" in str(path):
            raise KeyboardInterrupt
        return load(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(adapters, "read", stop_at_eight)
        with pytest.raises(KeyboardInterrupt):
            import_folder(broken, folder, workers=2, report=tmp_path / "import.json")
    assert 0 < len(broken) < 8 and load_json(tmp_path / "import.json")["rows"] == len(broken)
    kept = len(broken)
    report = import_folder(Bank(broken.path), folder, workers=2)
    assert (report["already"], report["imported"]) == (kept, MODELS - kept)
    assert content(broken) == content(whole)


def test_names_of_adapters(tmp_path):
    """Files are named after themselves, libraries' fixed names after the folder, ``unet`` too."""
    for place in (
        "b/adapter_model.safetensors",
        "b/adapter_config.json",
        "c/unet/adapter_model.safetensors",
        "c/unet/adapter_config.json",
        "d/pytorch_lora_weights.safetensors",
        "e/x10.safetensors",
        "e/x9.bin",
        "f/adapter_config.json",
        "README.md",
    ):
        path = tmp_path / "all" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    found = [(s.name, s.path.name) for s in find(tmp_path / "all")]
    assert found == [
        ("b", "adapter_model.safetensors"),
        ("c", "adapter_model.safetensors"),
        ("d", "pytorch_lora_weights.safetensors"),
        ("e/x9", "x9.bin"),
        ("e/x10", "x10.safetensors"),
        ("f", "adapter_config.json"),
    ]
    bank = new_bank(tmp_path / "bank")
    report = import_folder(bank, tmp_path / "all")
    reasons = {item["name"]: item["reason"] for item in report["refused"]}
    assert len(reasons) == 6 and "expected one file of adapter weights, found none" in reasons["f"]
    with pytest.raises(NotADirectoryError):
        find(tmp_path / "nowhere")


def test_links_that_lead_nowhere_are_named(tmp_path):
    """Refused like other unusable files, also where the file was there before."""
    folder = tmp_path / "in"
    target = save_kohya(tmp_path / "elsewhere/a.safetensors", vectors(1)[0])
    folder.mkdir()
    (folder / "a.safetensors").symlink_to(target)
    (folder / "b").mkdir()
    (folder / "b/adapter_model.safetensors").symlink_to("gone.safetensors")
    (folder / "c").mkdir()
    (folder / "c/adapter_config.json").symlink_to("gone.json")
    (folder / "notes.txt").symlink_to("gone.txt")  # no adapter
    (folder / "self.bin").symlink_to("self.bin")
    bank = new_bank(tmp_path / "bank")
    broken = ["b/adapter_model.safetensors", "c/adapter_config.json", "self.bin"]
    report = import_folder(bank, folder, report=tmp_path / "import.json")
    assert (report["found"], report["imported"], bank.names) == (4, 1, ("a",))
    assert [item["file"] for item in report["refused"]] == broken
    assert "no such file; it is a link to gone.safetensors" in report["refused"][0]["reason"]
    stamps = [bank_import.stamp(folder, source) for source in find(folder)]

    target.unlink()
    report = import_folder(bank, folder)
    assert (report["found"], report["already"], report["rows"]) == (4, 0, 1)
    assert [item["file"] for item in report["refused"]] == ["a.safetensors", *broken]
    changed = [bank_import.stamp(folder, source) for source in find(folder)]
    assert changed[0] != stamps[0] and changed[1:] == stamps[1:]


def test_a_name_that_occurs_twice(tmp_path):
    rows = vectors(2)
    for i, place in enumerate(("anna.safetensors", "anna")):
        kind = "kohya" if i == 0 else "peft"
        adapters.save(tmp_path / "in" / place, rows[i], LAYOUT, alpha=ALPHA, format=kind)
    bank = new_bank(tmp_path / "bank")
    report = import_folder(bank, tmp_path / "in")
    assert bank.names == ("anna",)
    assert "the name 'anna' occurs twice in the folder" in report["refused"][0]["reason"]


def test_import_applies_the_reading(tmp_path):
    """Files of another rank without alpha, into a bank of rank 1: as asked for, and reported."""
    big = planted.layout(rank=2)
    vector = np.random.default_rng(0).normal(size=big.size).astype(np.float32)
    adapters.save(
        tmp_path / "in/a.safetensors", vector, big, alpha=2, format="diffusers", fold=True
    )
    bank = new_bank(tmp_path / "bank")
    assert "does not state alpha" in import_folder(bank, tmp_path / "in")["refused"][0]["reason"]
    reading = Reading(missing_alpha="fold", reduce="svd", canonical=True)
    report = import_folder(bank, tmp_path / "in", reading=reading)
    notes = " ".join(item["note"] for item in report["changed"])
    assert "reduced to rank 1" in notes and "multiplied by 0.037037037" in notes
    wanted = adapters.read(
        pathlib.Path(tmp_path / "in/a.safetensors"),
        LAYOUT,
        Reading(ALPHA, "fold", "svd", True),
    )
    np.testing.assert_array_equal(bank[0], wanted.vector)
