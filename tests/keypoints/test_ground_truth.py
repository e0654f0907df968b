"""Joints that a user knows: read, checked, and left out where they are not known."""

import dataclasses

import numpy as np
import pytest

from keypoints import data, exports, ground_truth, recordings
from keypoints.recordings import RecordingError
from tests.keypoints.test_recordings import pictures, write


def test_joints_of_a_user_are_read_and_checked(tmp_path):
    rig, images = pictures()
    config = write(tmp_path, rig, images)
    lines = ["ball_x,ball_y,ball_z,ball_score,fnum"]
    heights = ["" if t == 7 else 3 * t for t in range(40)]
    lines += [f"{t},{2 * t},{z},0.5,{t}" for t, z in enumerate(heights)]
    (tmp_path / "joints.csv").write_text("\n".join(lines))
    config.joints, config.stride = str(tmp_path / "joints.csv"), 2
    found = recordings.load(config)
    assert found.joints.shape == (20, 1, 3) and found.joint_names == ("ball",)
    np.testing.assert_array_equal(found.joints[4, 0], [8, 16, 24])
    split = data.split(found, 0, 0.25)
    assert len(data.labelled(found, split).train) == len(split.train)  # frame 7 is left out
    config.stride = 1
    found = recordings.load(config)
    split = data.split(found, 0, 0.25)
    known = data.labelled(found, split)
    assert 7 in split.train and 7 not in known.train and len(known.train) == len(split.train) - 1
    np.testing.assert_array_equal(known.later, split.later)
    nothing = dataclasses.replace(found, joints=np.full((40, 1, 3), np.nan))
    with pytest.raises(ValueError, match="none of the training frames"):
        data.labelled(nothing, split)
    (tmp_path / "joints.csv").write_text("\n".join(lines[:30]))
    with pytest.raises(RecordingError, match="has 29 frames, the views have 40"):
        recordings.load(config)


def test_files_of_joints(tmp_path):
    array = np.arange(12.0).reshape(2, 2, 3)
    np.save(tmp_path / "a.npy", array)
    joints, names = ground_truth.read(tmp_path / "a.npy")
    np.testing.assert_array_equal(joints, array)
    assert names == ("joint0", "joint1")
    # what a run writes is read back
    ones = np.ones((2, 2))
    exports.anipose_csv(tmp_path / "k.csv", array, ("k0", "k1"), ones, ones, np.full(2, 4))
    joints, names = ground_truth.read(tmp_path / "k.csv")
    np.testing.assert_array_equal(joints, array)
    assert names == ("k0", "k1")
    for name, text, message in (
        ("b.csv", "a,b\n1,2\n", "no columns NAME_x"),
        ("c.csv", "a_x,a_y,a_z\n", "no rows"),
        ("d.csv", "a_x,a_y,a_z\n1,2,3\n1,here,3\n", "line 3"),
        ("e.txt", "", "unknown kind"),
        ("f.npy", "no array", "is no array"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ground_truth.GroundTruthError, match=message):
            ground_truth.read(tmp_path / name)
    np.save(tmp_path / "g.npy", array[0])
    with pytest.raises(ground_truth.GroundTruthError, match="must be float"):
        ground_truth.read(tmp_path / "g.npy")


def test_damaged_files_of_joints_are_named(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"")
    (tmp_path / "b.csv").write_bytes(b"a_x,a_y,a_z\n1,\xff,3\n")
    for name in ("a.npy", "b.csv"):
        with pytest.raises(ground_truth.GroundTruthError, match=name):
            ground_truth.read(tmp_path / name)
    # a byte order mark, as spreadsheets write it, belongs to no name
    (tmp_path / "c.csv").write_bytes("a_x,a_y,a_z\n1,2,3\n".encode("utf-8-sig"))
    assert ground_truth.read(tmp_path / "c.csv")[1] == ("a",)
