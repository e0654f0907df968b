"""Geometry of the cameras: inverses, crops, similarity of the world, bad calibrations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from keypoints import cameras
from tests.keypoints.rigs import ring

LENS = (-0.207, 0.248, -0.0009, -0.0015, -0.003)


def points(count=50, seed=0):
    return np.random.default_rng(seed).uniform(-0.6, 0.6, (count, 3)) + [0, 0, 0.3]


@pytest.fixture(scope="module")
def rig():
    return ring(size=(640, 480), focal=600.0, lens=LENS)


def test_a_point_on_the_axis_falls_on_the_principal_point(rig):
    pixels, depth = cameras.project(rig, np.array([[0.0, 0.0, 0.3]]))
    assert (np.asarray(depth) > 2).all()
    np.testing.assert_allclose(pixels[:, 0], rig.matrix[:, :2, 2], atol=1e-3)


def test_unproject_inverts_project(rig):
    rig = rig.replace(fisheye=np.array([False, True, False, True]))
    pixels, depth = cameras.project(rig, points())
    found = cameras.unproject(rig, pixels, depth)
    np.testing.assert_allclose(found, np.broadcast_to(points(), found.shape), atol=2e-5)
    origins, directions = cameras.rays(rig, pixels)
    offset = points()[None] - origins[:, None]
    along = (offset * directions).sum(-1, keepdims=True)
    np.testing.assert_allclose(offset, along * directions, atol=2e-5)


def test_triangulation_recovers_points_and_leaves_out_missing_views(rig):
    pixels = np.array(cameras.project(rig, points())[0])
    np.testing.assert_allclose(cameras.triangulate(rig, pixels), points(), atol=2e-5)
    pixels[0, :10] = np.nan
    weights = np.ones(pixels.shape[:2])
    pixels[1, 10:20] += 300.0  # a view that is wrong, and said to be
    weights[1, 10:20] = 0.0
    np.testing.assert_allclose(cameras.triangulate(rig, pixels, weights), points(), atol=2e-5)
    weights[1:, :5] = 0.0
    assert np.isnan(cameras.triangulate(rig, pixels, weights)[:5]).all()


def test_noisy_triangulation_moves_with_the_world(rig):
    rng = np.random.default_rng(1)
    pixels = np.asarray(cameras.project(rig, points())[0]) + rng.normal(size=(4, 50, 2))
    turn = Rotation.from_rotvec([0.3, -1.0, 0.5]).as_matrix()
    moved = cameras.transform(rig, turn, np.array([500.0, -200.0, 70.0]), 1000.0)
    expected = 1000.0 * cameras.triangulate(rig, pixels) @ turn.T + np.array(
        [[500.0, -200.0, 70.0]], np.float32)
    np.testing.assert_allclose(cameras.triangulate(moved, pixels), expected, atol=0.05)


def test_crop_and_resize_move_pixels_as_they_should(rig):
    before = np.asarray(cameras.project(rig, points())[0])
    cropped = cameras.crop(rig, 20, 30, (500, 400))
    np.testing.assert_allclose(cameras.project(cropped, points())[0], before - [20, 30], atol=1e-4)
    small = cameras.resize(rig, (160, 240))
    expected = (before + 0.5) * [0.25, 0.5] - 0.5
    np.testing.assert_allclose(cameras.project(small, points())[0], expected, atol=1e-4)


def test_resized_images_show_a_blob_where_the_resized_camera_says(rig):
    """The half-pixel convention against an area-averaging resize of a real image."""
    x, y = np.meshgrid(np.arange(640), np.arange(480))
    centre = np.asarray(cameras.project(rig, points(1, 3))[0])[0, 0]
    blob = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * 20.0**2))
    small = blob.reshape(120, 4, 160, 4).mean(axis=(1, 3))
    sy, sx = np.mgrid[:120, :160]
    centroid = np.array([(small * sx).sum(), (small * sy).sum()]) / small.sum()
    expected = np.asarray(cameras.project(cameras.resize(rig, (160, 120)), points(1, 3))[0])[0, 0]
    np.testing.assert_allclose(centroid, expected, atol=1e-2)


def test_a_strong_lens_reports_where_it_cannot_be_inverted():
    barrel = ring(1, size=(640, 480), focal=300.0, lens=(-0.6, 0.0, 0.0, 0.0, 0.0))
    _, residual = cameras.undistort(barrel, np.array([[[319.5, 239.5], [639.0, 479.0]]]))
    assert residual[0, 0] < 1e-3 and residual[0, 1] > 1.0


def test_what_a_lens_cannot_see_is_not_seen():
    """A barrel lens's polynomial turns back: a point far to the side falls into the image."""
    rig = ring(2, size=(640, 480), focal=300.0, lens=(-0.3, 0.0, 0.0, 0.0, 0.0))
    rig = rig.replace(fisheye=np.array([False, True]))
    for view, far in ((0, np.arctan(1.5)), (1, 1.3)):  # they turn back at 0.81 and 1.05 radians
        local = np.array([[np.sin(a), 0.0, np.cos(a)] for a in (0.5, far)])
        world = np.asarray(rig.centres)[view] + local @ rig.rotation[view]
        pixels, depth = (np.asarray(x)[view] for x in cameras.project(rig, world))
        assert (depth > 0).tolist() == [True, False] and np.isfinite(pixels).all()
        # it does fall into the image, or nobody would notice
        assert (np.abs(pixels[1] - [319.5, 239.5]) < [320, 240]).all()
    # a fisheye lens without coefficients sees nearly half of all directions
    plain = rig.replace(distortion=np.zeros((2, 5)))
    depth = cameras.project(plain, world)[1]
    assert (np.asarray(depth)[1] > 0).all()


def test_pixels_that_no_point_is_imaged_to_are_left_out_of_triangulation():
    """The same lens reaches 0.70 focal lengths from the centre, the image 0.82 and more."""
    rig = ring(4, size=(640, 480), focal=300.0, lens=(-0.3, 0.0, 0.0, 0.0, 0.0))
    some = points(5)
    pixels = np.array(cameras.project(rig, some)[0])
    pixels[2] = [[638.0, 478.0]] * 5
    np.testing.assert_allclose(cameras.triangulate(rig, pixels), some, atol=1e-4)
    pixels[:3] = 638.0, 478.0
    assert np.isnan(cameras.triangulate(rig, pixels)).all()


def test_mujoco_cameras_look_along_their_minus_z():
    """Camera axes x right, y up, z back in the world; a point up and right falls up and right."""
    turn = Rotation.from_rotvec([0.4, -0.7, 0.2]).as_matrix()  # columns: the camera's axes
    place = np.array([1.0, -2.0, 0.5])
    own = cameras.from_mujoco(place[None], turn[None], np.array([40.0]), (200, 100))
    world = place + (turn @ np.array([[0, 0, -2.0], [0.3, 0, -2.0], [0, 0.2, -2.0]]).T).T
    pixels, depth = (np.asarray(x)[0] for x in cameras.project(own, world))
    np.testing.assert_allclose(depth, 2.0, rtol=1e-5)
    focal = 50.0 / np.tan(np.deg2rad(20.0))
    expected = [[99.5, 49.5], [99.5 + 0.15 * focal, 49.5], [99.5, 49.5 - 0.1 * focal]]
    np.testing.assert_allclose(pixels, expected, atol=1e-3)


def test_gradients_are_finite_behind_and_at_the_centre(rig):
    def total(x):
        pixels, _ = cameras.project(rig.replace(fisheye=np.ones(4, bool)), x)
        return jnp.sum(pixels)

    at_centres = jnp.asarray(np.concatenate([rig.centres, points(3)]), jnp.float32)
    assert np.isfinite(jax.jit(jax.grad(total))(at_centres)).all()
    behind = np.asarray(rig.centres) - np.asarray(rig.axes)
    assert (np.diagonal(cameras.project(rig, behind)[1]) < 0).all()


def test_bad_cameras_are_refused(rig):
    good = dict(matrix=rig.matrix, rotation=rig.rotation, translation=rig.translation, size=(9, 9))
    for change, message in (
        (dict(rotation=rig.rotation * [[[1.0], [1.0], [-1.0]]]), "not a rotation matrix"),
        (dict(matrix=-rig.matrix), "focal length"),
        (dict(translation=rig.translation * np.nan), "not finite"),
        (dict(translation=rig.translation[:2]), "cameras need"),
        (dict(size=(640, 0)), "no pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            cameras.Cameras.create(**{**good, **change})
