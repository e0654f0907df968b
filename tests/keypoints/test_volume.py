"""The automatic volume: finds what moves and follows the world; degenerate rigs are refused."""

import logging

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from keypoints import cameras, volume
from tests.keypoints.rigs import ring

CENTRE = np.array([0.25, -0.2, 0.35])


@pytest.fixture(scope="module")
def scene():
    """Masks of a ball of radius 0.2 that jumps between three places around CENTRE."""
    rig = ring(5, size=(64, 48), focal=40.0)
    offsets = np.array([[0.2, 0, 0], [-0.2, 0, 0], [0, 0.15, 0.1]])
    y, x = np.mgrid[:48, :64]
    masks = []
    for offset in offsets:
        pixels, depth = cameras.project(rig, (CENTRE + offset)[None])
        radius = 40.0 * 0.2 / np.asarray(depth)[:, 0]
        centre = np.asarray(pixels)[:, 0]
        distance = np.hypot(x - centre[:, 0, None, None], y - centre[:, 1, None, None])
        masks.append(distance < radius[:, None, None])
    return rig, np.asarray(masks)


def seen(rig, places, radius):
    """The volume from crops of balls at places, one a frame, and the crops' masks."""
    cropped, masks = [], []
    for view in range(4):
        pixels, depth = (np.asarray(x)[view] for x in cameras.project(rig, places))
        size = rig.matrix[view, 0, 0] * radius / depth
        low, high = (pixels - size[:, None]).min(axis=0), (pixels + size[:, None]).max(axis=0)
        side = int((high - low).max() * 1.15)
        corner = np.round((low + high) / 2 - side / 2)
        own = cameras.crop(rig[view : view + 1], *corner, (side, side))
        cropped.append(cameras.resize(own, (64, 64)))
        y, x = np.mgrid[:64, :64] * side / 64
        u, v = (pixels - corner).T[..., None, None]
        masks.append(np.hypot(x - u, y - v) < size[:, None, None])
    together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *cropped)
    return volume.from_motion(together, np.stack(masks, axis=1), "world"), np.stack(masks, axis=1)


def test_the_cube_holds_what_moves(scene):
    rig, masks = scene
    found = volume.from_motion(rig, masks, "world", margin=0.2)
    assert np.abs(found.centre - [0.25, -0.125, 0.4]).max() < 0.1
    assert 0.8 < found.side < 1.3  # the ball's places span 0.8
    inside = found.from_world(CENTRE + np.array([[0.4, 0, 0], [-0.4, 0, 0], [0, 0.35, 0.1]]))
    assert np.abs(inside).max() < 1.05


def test_it_follows_the_world(scene):
    rig, masks = scene
    turn = Rotation.from_rotvec([0.4, 0.2, -1.0]).as_matrix()
    shift = np.array([100.0, 50.0, -20.0])
    moved = cameras.transform(rig, turn, shift, 1000.0)
    moved = cameras.Cameras(*(np.asarray(getattr(moved, f), float) for f in (
        "matrix", "distortion", "rotation", "translation", "size")), rig.fisheye)
    one, two = volume.from_motion(rig, masks), volume.from_motion(moved, masks)
    np.testing.assert_allclose(two.side, 1000.0 * one.side, rtol=1e-3)
    np.testing.assert_allclose(two.centre, 1000.0 * turn @ one.centre + shift, atol=1.0)
    np.testing.assert_allclose(two.rotation, one.rotation @ turn.T, atol=1e-4)
    a, b = one.cameras(rig), two.cameras(moved)
    np.testing.assert_allclose(a.translation, b.translation, atol=5e-3)
    np.testing.assert_allclose(a.rotation, b.rotation, atol=1e-4)


def test_crops_around_a_subject_lead_to_it():
    """The optical axes meet at the rig's centre, the subject walks in a corner."""
    rig = ring(4, size=(640, 480), focal=400.0)
    places = np.array([[0.9, 0.8, 0.3], [1.1, 0.6, 0.3], [1.0, 0.7, 0.5]])
    found, masks = seen(rig, places, 0.1)
    assert np.abs(found.centre - [1.0, 0.7, 0.4]).max() < 0.1
    assert np.abs(found.from_world(places)).max() < 1.0 and found.side < 1.0
    assert masks.any(axis=(2, 3)).all()


def test_a_walk_towards_one_camera_is_held_to_its_ends():
    """Its view is cropped to a narrow square: the others say how far the walk goes."""
    rig = ring(4, size=(640, 480), focal=400.0)
    towards = np.asarray(rig.centres[0]) - [0, 0, 0.3]
    places = np.array([0, 0, 0.3]) + np.linspace(-0.35, 0.35, 6)[:, None] * towards
    found, _ = seen(rig, places, 0.1)
    assert np.abs(found.from_world(places)).max() < 1.0
    assert found.side < 1.6 * np.linalg.norm(places[0] - places[-1])


def test_world_and_volume_are_inverses(scene):
    cube = volume.Volume(CENTRE, 2.5, Rotation.from_rotvec([1, 2, 3]).as_matrix())
    points = np.random.default_rng(0).normal(size=(7, 3))
    np.testing.assert_allclose(cube.from_world(cube.to_world(points)), points, atol=1e-12)
    rig, _ = scene
    seen, _ = cameras.project(cube.cameras(rig), points)
    np.testing.assert_allclose(
        seen, cameras.project(rig, cube.to_world(points))[0], rtol=1e-3, atol=1e-2)


def test_no_motion_falls_back_to_the_frustums_and_says_so(scene, caplog):
    rig, masks = scene
    with caplog.at_level(logging.WARNING):
        found = volume.from_motion(rig, np.zeros_like(masks))
    assert "follows the frustums alone" in caplog.text
    np.testing.assert_allclose(found.centre, volume.meeting_point(rig))


def test_degenerate_rigs_are_refused():
    with pytest.raises(ValueError, match="from 1 camera"):
        volume.meeting_point(ring(1))
    parallel = cameras.look_at(
        np.array([[0.0, -3, 0], [1.0, -3, 0]]), (0, 1e9, 0), (0, 0, 1), 50.0, (64, 48))
    with pytest.raises(ValueError, match="parallel"):
        volume.meeting_point(parallel)
    away = ring(3)
    flip = np.diag([-1.0, 1.0, -1.0])
    back = away.replace(rotation=flip @ away.rotation, translation=away.translation @ flip)
    with pytest.raises(ValueError, match="behind cameras"):
        volume.from_frustums(back)


def test_motion_masks_find_the_moving_square():
    images = np.full((6, 1, 16, 16, 3), 90, np.uint8)
    for t in range(6):
        images[t, 0, 4:8, 2 * t : 2 * t + 3] = 200
    masks = volume.motion_masks(images)
    assert masks[3, 0, 4:8, 6:9].all() and not masks[:, 0, :4].any()
