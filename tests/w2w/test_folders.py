"""Folders of adapters that are links: followed, each real folder once; what is closed is named."""

import errno
import os
import pathlib

import numpy as np
import pytest

from tests.w2w.test_bank import ALPHA, LAYOUT, new_bank, vectors
from w2w import adapters
from w2w.bank.folder import find, import_folder


def save_kohya(path, vector):
    return adapters.save(path, vector, LAYOUT, alpha=ALPHA, format="kohya")


def test_links_to_folders_are_followed(tmp_path):
    """A folder of links to adapter folders, which all are elsewhere; a chain of links, too."""
    rows = vectors(3)
    for i, name in enumerate(("x1", "x2", "deep/x3")):
        adapters.save(tmp_path / "elsewhere" / name, rows[i], LAYOUT, alpha=ALPHA, format="peft")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/anna").symlink_to("../elsewhere/x1")
    (tmp_path / "in/bert").symlink_to(tmp_path / "elsewhere/x2")
    (tmp_path / "more").symlink_to("elsewhere/deep")
    (tmp_path / "in/others").symlink_to("../more")
    bank = new_bank(tmp_path / "bank")
    report = import_folder(bank, tmp_path / "in")
    assert (report["found"], report["imported"], report["refused"]) == (3, 3, [])
    assert bank.names == ("anna", "bert", "others/x3")
    np.testing.assert_array_equal(bank.rows, rows)
    assert import_folder(bank, tmp_path / "in")["already"] == 3
    (tmp_path / "link").symlink_to("in")  # the folder itself
    assert [source.name for source in find(tmp_path / "link")] == list(bank.names)


def test_every_folder_is_entered_once(tmp_path):
    """Circles end; a link to what has a real place below the folder changes nothing."""
    inner = tmp_path / "in"
    for name in ("b/one", "b/c/two", "ten"):
        save_kohya(inner / f"{name}.safetensors", vectors(1)[0])
    save_kohya(tmp_path / "out/three.safetensors", vectors(1)[0])
    before = [(source.name, source.path) for source in find(inner)]
    (inner / "a").symlink_to("b")  # before the real place in the order of names
    (inner / "b/c/up").symlink_to(inner)
    (inner / "b/self").symlink_to(".")
    (inner / "round").symlink_to("round")
    (inner / "parent").symlink_to("..")
    (tmp_path / "out/back").symlink_to("../in/b")
    after = [(source.name, source.path) for source in find(inner)]
    assert [pair for pair in after if pair[0] not in ("parent/out/three", "round")] == before
    assert len(after) == len(before) + 2
    # Of several links to one folder the nearest counts, then the first by name.
    (inner / "zz").symlink_to("../out")
    (inner / "b/c/a").symlink_to("../../../out")
    names = [source.name for source in find(inner)]
    assert [name for name in names if name.endswith("three")] == ["parent/out/three"]
    (inner / "parent").unlink()
    names = [source.name for source in find(inner)]
    assert [name for name in names if name.endswith("three")] == ["zz/three"]


def test_links_to_folders_that_are_gone_are_named(tmp_path):
    adapters.save(tmp_path / "in/anna", vectors(1)[0], LAYOUT, alpha=ALPHA, format="peft")
    (tmp_path / "in/bert").symlink_to("../gone")
    report = import_folder(new_bank(tmp_path / "bank"), tmp_path / "in")
    (refused,) = report["refused"]
    assert (refused["name"], refused["file"], report["imported"]) == ("bert", "bert", 1)
    assert refused["reason"].endswith("no such file; it is a link to ../gone")


@pytest.mark.parametrize("top", [False, True])
def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch, top):
    """Root may read every folder, so the refusal is the patched system's."""
    for name in ("anna", "bert/deep", "carl"):
        adapters.save(tmp_path / "in" / name, vectors(1)[0], LAYOUT, alpha=ALPHA, format="peft")
    closed = tmp_path / "in" if top else tmp_path / "in/bert"

    def refusing(original):
        def call(path, *args, **kwargs):
            if pathlib.Path(path) == closed:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return original(path, *args, **kwargs)

        return call

    monkeypatch.setattr("w2w.folders.os.scandir", refusing(os.scandir))
    monkeypatch.setattr("w2w.folders.os.listdir", refusing(os.listdir))
    report = import_folder(new_bank(tmp_path / "bank"), tmp_path / "in")
    (refused, *more) = report["refused"]
    assert (refused["name"], refused["file"]) == (("in", ".") if top else ("bert", "bert"))
    assert refused["reason"].endswith("the folder cannot be read: Permission denied")
    assert report["imported"] == (0 if top else 1) and len(more) == (0 if top else 1)
    if more:  # of two equal adapters the second
        assert "has the values of 'anna'" in more[0]["reason"]
