"""The built-in animal and its pictures, the split and the pairs."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from keypoints import agent, cameras, data, render
from tests.keypoints.rigs import ring
from tests.keypoints.small import recording


def test_motion_is_smooth_rigid_and_stays_near():
    clip = agent.move(3, 90)
    bones = agent.bones()
    lengths = np.linalg.norm(clip.joints[:, bones[:, 0]] - clip.joints[:, bones[:, 1]], axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to(lengths[0], lengths.shape), rtol=1e-9)
    assert np.linalg.norm(np.diff(clip.joints, axis=0), axis=-1).max() < 40  # mm in 1/30 s
    assert np.abs(clip.joints[:, 0, :2]).max() <= 110.0
    assert clip.joints[:, :, 2].min() > -40
    np.testing.assert_array_equal(agent.move(3, 90).joints, clip.joints)
    assert np.abs(agent.move(4, 90).joints - clip.joints).max() > 10
    assert len(agent.names()) == clip.joints.shape[1]
    # one colour a capsule: head and tail differ, left and right do not
    colours = dict(zip(np.asarray(agent.names())[bones[:, 0]], agent.colours(), strict=True))
    assert len(colours) == len(clip.radii)
    assert np.abs(colours["head"] - colours["tail tip"]).max() > 0.3
    for name, colour in colours.items():
        np.testing.assert_array_equal(colour, colours[name.replace("left", "right")])


def test_a_rendered_ball_lies_where_the_camera_says():
    rig = ring(3, size=(48, 32), focal=50.0, target=(0, 0, 0.3))
    centres = np.random.default_rng(0).uniform(-0.3, 0.3, (4, 1, 3)) + [0, 0, 0.5]
    images = render.render(
        rig, centres, centres + [0, 0, 1e-4], np.array([0.1]), np.array([[1.0, 0.0, 0.0]]), 3, 1.0)
    assert images.shape == (4, 3, 32, 48, 3)
    red = images[..., 0].astype(float) - images[..., 1]  # the floor is grey
    red = np.maximum(red, 0) > 60
    pixels = np.asarray(cameras.project(rig, centres[:, 0])[0])
    y, x = np.mgrid[:32, :48]
    for t in range(4):
        for v in range(3):
            area = red[t, v].sum()
            assert area > 5
            found = np.array([(red[t, v] * x).sum(), (red[t, v] * y).sum()]) / area
            np.testing.assert_allclose(found, pixels[v, t], atol=0.6)


def test_capsule_surface_is_a_radius_away_from_its_segment():
    rng = np.random.default_rng(1)
    start, end = np.array([0.2, 0.0, 0.1]), np.array([-0.4, 0.5, 0.3])
    rays = rng.normal(size=(500, 3)) * [0.15, 0.15, 0.02] + [0, 0, -1]
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    origin = np.array([0.0, 0.1, 3.0])
    args = (np.asarray(a, np.float32) for a in (origin, rays, start, end, 0.25))
    distance, normal = (np.asarray(a) for a in render.capsule(*args))
    hit = distance < 1e8
    assert 50 < hit.sum() < 500
    places = origin + distance[hit, None] * rays[hit]
    along = np.clip((places - start) @ (end - start) / np.sum((end - start) ** 2), 0, 1)
    nearest = start + along[:, None] * (end - start)
    np.testing.assert_allclose(np.linalg.norm(places - nearest, axis=1), 0.25, atol=1e-4)
    np.testing.assert_allclose(normal[hit], (places - nearest) / 0.25, atol=1e-3)


def test_recording_of_capsules_saves_and_loads(tmp_path):
    config = ConfigDict(dict(subjects=2, frames=3, views=2, size=16, rate=30.0, oversample=1))
    own = data.capsules(config, 0)
    assert own.images.shape == (6, 2, 16, 16, 3) and own.joints.shape[0] == 6
    own.save(tmp_path / "recording.safetensors")
    again = data.Recording.load(tmp_path / "recording.safetensors")
    np.testing.assert_array_equal(again.images, own.images)
    np.testing.assert_array_equal(again.calibration.cameras.matrix, own.calibration.cameras.matrix)
    assert again.joint_names == own.joint_names and again.unit == "mm"
    # the animal is in every picture: its joints project into the images
    pixels, depth = cameras.project(own.calibration.cameras, own.joints.reshape(-1, 3))
    assert (np.asarray(depth) > 0).all()
    assert ((np.asarray(pixels) > -3) & (np.asarray(pixels) < 19)).all()


def test_split_and_pairs_do_not_leak():
    own = recording(frames=24)
    split = data.split(own, 1, 0.25)
    assert set(own.subject[split.unseen]) == {1} and set(own.subject[split.train]) == {0}
    assert split.later.tolist() == [9, 10, 11]
    pairs = data.Pairs(own, split.train, 2)
    assert len(pairs) == 7  # starts 0 .. 6: the second frame is a training frame too
    np.testing.assert_array_equal(pairs[6]["second"], own.images[8])
    marks = np.arange(24)
    masked = data.Pairs(own, split.train, 2, marks)[6]
    assert masked["first_mask"] == 6 and masked["second_mask"] == 8
    np.testing.assert_array_equal(masked["first"], own.images[6])
    across = data.Pairs(own, np.arange(24), 5)
    assert len(across) == 14  # never from one sequence into the next
    with pytest.raises(ValueError, match="12 frames apart"):
        data.Pairs(own, np.arange(24), 12)
    with pytest.raises(ValueError, match="leave none"):
        data.split(own, 2, 0.1)
    # told before training, not after it
    with pytest.raises(ValueError, match=r"no frame is held out: 0 test subjects, 0.01 .*12, 12"):
        data.split(own, 0, 0.01)


def test_calibration_of_another_resolution_is_refused():
    own = recording()
    with pytest.raises(ValueError, match="calibration is for images of"):
        data.Recording(own.images[:, :, :16], own.calibration, own.sequence, own.subject, 1.0)
    with pytest.raises(ValueError, match="of one view: places in space need two"):
        one = own.calibration.select(["v0"])
        data.Recording(own.images[:, :1], one, own.sequence, own.subject, 1.0)
    with pytest.raises(ValueError, match="2 views for 3 calibrated"):
        data.Recording(own.images[:, :2], own.calibration, own.sequence, own.subject, 1.0)


def test_time_is_reversed_in_half_of_the_pairs():
    pair = {"first": 1, "second": 2}
    generator = np.random.default_rng(0)
    swapped = sum(data.swap_at_random(pair, generator)["first"] == 2 for _ in range(400))
    assert 150 < swapped < 250
    masked = {"first": 1, "second": 2, "first_mask": 3, "second_mask": 4}
    both = [data.swap_at_random(masked, generator) for _ in range(50)]
    other = {"first": 2, "second": 1, "first_mask": 4, "second_mask": 3}
    assert masked in both and other in both and all(found in (masked, other) for found in both)
