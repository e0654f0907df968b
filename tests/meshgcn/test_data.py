"""A FreeSurfer-like folder: bad scans are named and left out, the rest is read."""

import numpy as np
import pytest
from nibabel import freesurfer

from meshgcn import data, meshes
from tests.meshgcn.small import template

PATTERNS = ("{scan}/surf/{hemi}.thickness",)


@pytest.fixture
def folder(tmp_path):
    half = template().mesh.part("lh").stop
    for index in range(6):
        surf = tmp_path / f"s{index}" / "surf"
        surf.mkdir(parents=True)
        for hemi, offset in (("lh", 0.0), ("rh", 100.0)):
            values = np.arange(half, dtype=np.float32) + offset + index / 10
            freesurfer.write_morph_data(surf / f"{hemi}.thickness", values)
    lines = ["subject,scan,diagnosis"]
    lines += [f"p{i // 2},s{i},{'AD' if i >= 4 else 'CN'}" for i in range(6)]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def write(folder, scan, hemi, values):
    freesurfer.write_morph_data(folder / scan / "surf" / f"{hemi}.thickness", np.float32(values))


def load(folder):
    return data.load(folder, folder / "table.csv", template(), PATTERNS)


def test_good_scans(folder):
    found = load(folder)
    brain = template()
    assert found.values.shape == (6, len(brain.mesh), 1)
    assert found.subject.tolist() == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert found.label.tolist() == [0, 0, 0, 0, 1, 1]
    assert found.measures == ("thickness",)
    cortex = brain.labels >= 0
    assert (found.values[:, ~cortex] == 0).all()
    first = np.flatnonzero(cortex & (np.arange(len(brain.mesh)) >= brain.mesh.part("rh").start))[0]
    assert found.values[3, first, 0] == pytest.approx(100.3 + first - brain.mesh.part("rh").start)
    assert found.summary() == "6 scans of 3 people, 2 of patients; left out: none"


def test_bad_scans_are_named_and_the_rest_is_used(folder):
    brain = template()
    half = brain.mesh.part("lh").stop
    (folder / "s0/surf/rh.thickness").unlink()
    write(folder, "s1", "lh", np.zeros(half + 1))
    values = np.ones(half)
    values[np.flatnonzero(brain.labels[:half] >= 0)[3]] = np.nan
    write(folder, "s2", "lh", values)
    table = (folder / "table.csv").read_text() + "p9,s9,MCI\np8,s8,AD\n"
    (folder / "table.csv").write_text(table)
    found = load(folder)
    assert found.scan.tolist() == ["s3", "s4", "s5"]
    kinds = {item.scan: item.kind for item in found.excluded}
    assert kinds == {
        "s0": "MissingSurfaceError",
        "s1": "VertexCountError",
        "s2": "NonFiniteError",
        "s8": "MissingSurfaceError",
        "s9": "diagnosis",
    }
    reasons = {item.scan: item.reason for item in found.excluded}
    assert "rh.thickness" in reasons["s0"]
    assert f"{half + 1} values, the template has {half}" in reasons["s1"]
    assert "1 cortical values are not finite" in reasons["s2"]
    assert "'MCI' is none of CN, AD" in reasons["s9"]
    assert "2 MissingSurfaceError" in found.summary()


def test_values_off_the_cortex_may_be_anything(folder):
    brain = template()
    half = brain.mesh.part("lh").stop
    values = np.where(brain.labels[:half] >= 0, 2.0, np.nan)
    write(folder, "s0", "lh", values)
    assert len(load(folder).label) == 6


def test_finer_members_of_the_family_are_cut(folder):
    half = template().mesh.part("lh").stop
    write(folder, "s0", "lh", np.arange(4 * (half - 2) + 2))
    assert "s0" in load(folder).scan
    write(folder, "s1", "lh", np.arange(4 * half))
    with pytest.raises(meshes.VertexCountError):
        data._scan(folder, "s1", template(), PATTERNS)


def test_bad_tables_are_named(folder):
    path = folder / "table.csv"
    good = path.read_text()
    for text, message in (
        (good.replace("diagnosis", "DX"), "no column 'diagnosis' among subject, scan, DX"),
        (good + "p0,s0,CN\n", "scan 's0' is empty or stands in two lines"),
        (good.replace("AD", "MCI"), "4 usable scans of one class"),
    ):
        path.write_text(text)
        with pytest.raises(data.TableError, match=message):
            load(folder)
    path.unlink()
    with pytest.raises(data.TableError, match="no file"):
        load(folder)


def test_columns_and_classes_can_be_named(folder):
    path = folder / "other.csv"
    path.write_text("RID,DX\ns0,Control\ns4,Dementia\n")
    columns = {"subject": "RID", "diagnosis": "DX"}
    classes = {"Control": 0, "Dementia": 1}
    found = data.load(folder, path, template(), PATTERNS, classes, columns)
    assert found.scan.tolist() == found.subject.tolist() == ["s0", "s4"]
    assert found.label.tolist() == [0, 1]
