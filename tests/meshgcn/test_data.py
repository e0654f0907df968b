"""A FreeSurfer-like folder: bad scans are named and left out, the rest is read."""

import os

import numpy as np
import pytest
from nibabel import freesurfer

from meshgcn import data, files, meshes
from meshgcn.meshes import Mesh
from tests.meshgcn.small import template, with_bodies

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
    return data.load(data.Source(folder, folder / "table.csv", template(), PATTERNS))


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
        data._scan(data.Source(folder, folder / "table.csv", template(), PATTERNS), "s1")


def test_bad_tables_are_named(folder):
    path = folder / "table.csv"
    good = path.read_text()
    for text, message in (
        (good.replace("diagnosis", "DX"), "no column 'diagnosis' among subject, scan, DX"),
        (good + "p0,s0,CN\n", "scan 's0' is empty or stands in two lines"),
        (good.replace("AD", "MCI"), "4 usable scans of one class"),
        (good + "M\xfcller,s7,AD\n", "not a CSV file in UTF-8"),
    ):
        path.write_bytes(text.encode("latin-1"))
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
    found = data.load(data.Source(folder, path, template(), PATTERNS, classes, columns))
    assert found.scan.tolist() == found.subject.tolist() == ["s0", "s4"]
    assert found.label.tolist() == [0, 1]


def test_a_line_without_a_person_is_left_out(folder):
    path = folder / "table.csv"
    path.write_text(path.read_text().replace("p0,s0", ",s0").replace("p0,s1", " ,s1"))
    found = load(folder)
    assert found.scan.tolist() == ["s2", "s3", "s4", "s5"]
    assert [(item.scan, item.kind, item.reason) for item in found.excluded] == [
        (scan, "subject", "column 'subject' is empty") for scan in ("s0", "s1")
    ]


def write_surface(folder, scan, hemi, vertices, faces):
    files.write_surface(folder / scan / "surf" / f"{hemi}.white", Mesh(vertices, faces))


def test_bad_surfaces_are_named_and_the_rest_is_used(folder):
    brain = template()
    for index in range(6):
        for part in brain.mesh.split():
            moved = part.vertices + index
            write_surface(folder, f"s{index}", part.structures[0][0], moved, part.faces)
    left = brain.mesh.split()[0]
    flipped, doubled, nan = left.faces.copy(), left.faces.copy(), left.vertices.copy()
    flipped[7] = flipped[7, ::-1]
    doubled[5] = doubled[4]
    nan[3] = np.nan
    order = np.random.default_rng(0).permutation(len(left))
    renumbered = Mesh(left.vertices[order], np.argsort(order)[left.faces])
    pattern = ("surface:{scan}/surf/{hemi}.white",)
    table = folder / "table.csv"

    def reason(vertices, faces):
        write_surface(folder, "s0", "lh", vertices, faces)
        found = data.load(data.Source(folder, table, brain, pattern))
        assert found.scan.tolist() == ["s1", "s2", "s3", "s4", "s5"]
        assert found.values.shape == (5, len(brain.mesh), 3)
        np.testing.assert_allclose(found.values[1], brain.mesh.vertices + 2, atol=1e-5)
        (item,) = found.excluded
        assert item.scan == "s0" and "s0/surf/lh.white" in item.reason
        return item.kind, item.reason.partition("lh.white: ")[2]

    assert reason(left.vertices, flipped) == (
        "FlippedFacesError", "3 edges whose two faces are turned opposite",
    )  # fmt: skip
    assert reason(left.vertices, left.faces[:, ::-1]) == (
        "FlippedFacesError", "the faces of lh point inwards",
    )  # fmt: skip
    kind, message = reason(left.vertices, doubled)
    assert kind == "NonManifoldError" and "edges of more than two faces, first (" in message
    kind, message = reason(renumbered.vertices, renumbered.faces)
    assert kind == "TopologyError" and "of 320 faces differ from the template's" in message
    kind, message = reason(left.vertices, left.faces[1:])
    assert kind == "TopologyError" and message == "319 faces, the template has 320"
    smaller = template(1).mesh.split()[0]
    assert reason(smaller.vertices, smaller.faces) == (
        "VertexCountError", "42 vertices, the template has 162",
    )  # fmt: skip
    assert reason(nan, left.faces) == ("NonFiniteError", "1 vertices not finite, first 3")


def test_the_users_own_split(folder):
    path = folder / "table.csv"
    lines = ["subject,scan,diagnosis,part"]
    parts = ["train", "test", "validation", "validation", "train", "holdout"]
    lines += [f"p{i // 2},s{i},{'AD' if i >= 2 else 'CN'},{part}" for i, part in enumerate(parts)]
    lines += ["p7,s0b,CN,test"]
    path.write_text("\n".join(lines))
    for hemi in ("lh", "rh"):
        (folder / "s0b/surf").mkdir(parents=True, exist_ok=True)
        write(folder, "s0b", hemi, np.ones(162))
    found = data.load(data.Source(folder, path, template(), PATTERNS, None, {"split": "part"}))
    assert found.scan.tolist() == ["s2", "s3", "s4", "s0b"]
    assert found.roles.tolist() == [1, 1, 0, 2]
    assert {item.scan: (item.kind, item.reason) for item in found.excluded} == {
        "s0": ("OverlapError", "person 'p0' is in train and test"),
        "s1": ("OverlapError", "person 'p0' is in train and test"),
        "s5": ("split", "split 'holdout' is none of train, validation, test"),
    }
    assert load(folder).roles is None
    with pytest.raises(data.TableError, match="no column 'fold' among"):
        data.load(data.Source(folder, path, template(), PATTERNS, None, {"split": "fold"}))


def test_values_of_subcortical_bodies(folder):
    brain = with_bodies()
    bodies = ("{scan}/shape/{structure}.radius",)
    for index in range(6):
        for name in brain.bodies:
            path = folder / f"s{index}" / "shape" / f"{name}.radius"
            path.parent.mkdir(exist_ok=True)
            count = 162 if index == 1 else 42  # of a finer sphere: bodies are not cut
            freesurfer.write_morph_data(path, np.full(count, index, np.float32))
    (folder / "s2/shape/rh.hippocampus.radius").unlink()
    settings = (folder, folder / "table.csv", brain, PATTERNS, None, None)
    found = data.load(data.Source(*settings, bodies))
    assert found.scan.tolist() == ["s0", "s3", "s4", "s5"]
    where = brain.mesh.part("rh.hippocampus")
    np.testing.assert_array_equal(
        found.values[:, where, 0], [[0] * 42, [3] * 42, [4] * 42, [5] * 42]
    )
    reasons = {item.scan: item.reason for item in found.excluded}
    assert "lh.hippocampus.radius: 162 values, the template has 42" in reasons["s1"]
    assert "no file" in reasons["s2"] and "rh.hippocampus.radius" in reasons["s2"]
    with pytest.raises(ValueError, match="0 patterns for 2 subcortical bodies, expected 1"):
        data.Source(*settings)
    with pytest.raises(ValueError, match="one of values, the other of surfaces"):
        data.Source(*settings, ("surface:{scan}/{structure}.vtk",))


def test_fingerprint_changes_with_the_files(folder):
    source = data.Source(folder, folder / "table.csv", template(), PATTERNS)
    first = data.fingerprint(source)
    assert data.fingerprint(source) == first
    status = (folder / "s3/surf/lh.thickness").stat()
    os.utime(folder / "s3/surf/lh.thickness", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    second = data.fingerprint(source)
    (folder / "s3/surf/rh.thickness").unlink()
    third = data.fingerprint(source)
    (folder / "table.csv").write_text((folder / "table.csv").read_text() + "p9,s9,MCI\n")
    assert len({first, second, third, data.fingerprint(source)}) == 4
