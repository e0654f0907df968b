"""The step: it learns, resumes, hides views, and keeps to its curricula."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import rng
from keypoints import cameras, data, heatmaps, losses, models, supervised, train
from keypoints.models import KeypointNet
from tests.keypoints.small import CONFIG, cube, recording

RECIPE = train.Recipe(
    num_steps=60, batch_size=2, warmup=3, length_start=3, length_ramp=2, learning_rate=4e-3,
    view_dropout=0.2,
)  # fmt: skip


@pytest.fixture(scope="module")
def setting():
    own = recording(frames=24)
    rig = data.on_device(cube().cameras(own.calibration.cameras))
    model = KeypointNet(CONFIG)
    params = models.init(model, jax.random.key(0), (32, 32), rig)
    pairs = data.Pairs(own, np.arange(24), 3)
    batch = {
        name: np.stack([pairs[i][name] for i in (0, 5)]) for name in ("first", "second")
    }
    step = jax.jit(train.make_train_step(model, RECIPE, rig))
    return params, batch, step


@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
def test_reconstruction_falls_and_lengths_are_kept(setting):
    params, batch, step = setting
    state = train.init_state(params, RECIPE)
    history = []
    for index in range(40):
        state, metrics = step(state, batch, jax.random.key(index))
        history.append({name: float(value) for name, value in metrics.items()})
    assert history[-1]["reconstruction"] < 0.6 * history[1]["reconstruction"]
    assert all(np.isfinite(list(h.values())).all() for h in history)
    assert (np.asarray(state.lengths) > 0).all()
    # the loss is the sum of its terms; the length term counts from step 3 on only
    first, last = history[0], history[-1]
    assert first["loss"] == pytest.approx(first["reconstruction"] + first["separation"], rel=1e-4)
    expected = last["reconstruction"] + last["separation"] + RECIPE.length * last["length"]
    assert last["loss"] == pytest.approx(expected, rel=1e-4)


def test_views_are_hidden_and_two_stay():
    present = jnp.ones((200, 4)).at[:100, 0].set(0.0)
    kept = np.asarray(train.hide_views(jax.random.key(0), present, 0.7))
    assert (kept.sum(axis=1) >= 2).all() and kept.mean() < 0.75
    assert not kept[:100, 0].any()
    np.testing.assert_array_equal(train.hide_views(jax.random.key(0), present, 0.0), present)


@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
def test_all_terms_enter_with_their_weights(setting):
    params, batch, _ = setting
    own = recording(frames=24)
    rig = data.on_device(cube().cameras(own.calibration.cameras))
    recipe = train.Recipe(
        num_steps=5, rotation=1.0, rotation_start=-1, rotation_ramp=1, perceptual=1.0,
        silhouette=0.5, coverage=0.7, overlap=2.0, turn=True)

    def features(x):
        return [x[:, ::2, ::2], jnp.square(x)]

    step = jax.jit(train.make_train_step(KeypointNet(CONFIG), recipe, rig, features))
    bright = {f"{name}_mask": batch[name].min(axis=-1) > 150 for name in ("first", "second")}
    assert bright["first_mask"].any(axis=(-1, -2)).all()
    state = train.init_state(params, recipe)
    _, metrics = step(state, batch | bright, jax.random.key(0))
    terms = {"reconstruction": 1.0, "separation": 1.0, "rotation": 1.0, "perceptual": 1.0,
             "silhouette": 0.5, "coverage": 0.7, "overlap": 2.0}  # fmt: skip
    assert all(metrics[name] > 0 for name in terms)
    total = sum(weight * float(metrics[name]) for name, weight in terms.items())
    assert float(metrics["loss"]) == pytest.approx(total, rel=1e-4)
    # another angle, another view of the volume
    _, other = step(state, batch | bright, jax.random.key(1))
    assert abs(float(other["silhouette"] - metrics["silhouette"])) > 1e-6
    with pytest.raises(ValueError, match="no network"):
        train.make_train_step(KeypointNet(CONFIG), recipe, rig)


def test_targets_see_what_changed():
    images = jnp.full((1, 1, 32, 32, 3), 0.3)
    moved = images.at[:, :, 8:16, 8:16].set(0.9)
    target = np.asarray(train.targets(images, moved, 2, RECIPE))[0, 0]
    assert target.shape == (16, 16)
    assert target[4:8, 4:8].mean() > 0.3 and target[12:].max() < 1e-3


@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
def test_network_and_hull_are_turned_alike(setting):
    params, batch, _ = setting
    own = recording(frames=24)
    rig = data.on_device(cube().cameras(own.calibration.cameras))
    model = KeypointNet(CONFIG)
    recipe = train.Recipe(
        num_steps=5, rotation=1.0, silhouette=1.0, coverage=1.0, turn=True, view_dropout=0.0)
    masks = {f"{name}_mask": batch[name].min(axis=-1) > 150 for name in ("first", "second")}
    key = jax.random.key(3)
    step = jax.jit(train.make_train_step(model, recipe, rig))
    _, metrics = step(train.init_state(params, recipe), batch | masks, key)

    angle = jax.random.uniform(rng.stream(key, "turn"), (), maxval=2 * jnp.pi)
    turned = cameras.transform(rig, train.yaw(angle), jnp.zeros(3))
    first, second = (jnp.asarray(batch[n], jnp.float32) / 255 for n in ("first", "second"))
    found = jax.jit(model.apply)({"params": params}, first, second, turned, jnp.ones((2, 3)))
    both = jnp.concatenate([masks["first_mask"], masks["second_mask"]])
    hull = jax.jit(heatmaps.soft_hull, static_argnums=2)
    inside = hull(both, turned, CONFIG.voxels, jnp.ones((4, 3)))
    for name in ("silhouette", "coverage"):
        expected = getattr(heatmaps, name)(found.heat, inside)
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-4)
    matrix = train.yaw(
        jax.random.uniform(
            rng.stream(key, "yaw"), (), minval=0.25 * jnp.pi, maxval=1.75 * jnp.pi))
    again = jax.jit(functools.partial(model.apply, method="keypoints"))(
        {"params": params}, first, cameras.transform(turned, matrix, jnp.zeros(3)),
        jnp.ones((2, 3)))
    expected = losses.rotation(found.first.points, again.points, matrix)
    np.testing.assert_allclose(metrics["rotation"], expected, rtol=1e-3)


@pytest.mark.parametrize("lifting", ["volume", "triangulation"])
@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
def test_the_silhouette_draws_keypoints_onto_what_moves(lifting):
    own = recording(frames=24)
    rig = data.on_device(cube().cameras(own.calibration.cameras))
    model = KeypointNet(dataclasses.replace(CONFIG, lifting=lifting))
    recipe = dataclasses.replace(RECIPE, separation=0.0, silhouette=1.0, view_dropout=0.0)
    pairs = data.Pairs(own, np.arange(24), 3, own.images.min(axis=-1) > 150)
    batch = jax.tree.map(lambda *rows: np.stack(rows), *(pairs[i] for i in (0, 5)))
    step = jax.jit(train.make_train_step(model, recipe, rig))
    state = train.init_state(models.init(model, jax.random.key(0), (32, 32), rig), recipe)

    predict = jax.jit(functools.partial(model.apply, method="keypoints"))

    def distance(params):
        images = jnp.asarray(batch["first"], jnp.float32) / 255
        found = predict({"params": params}, images, rig, jnp.ones((2, 3)))
        ball = cube().from_world(own.joints[[0, 5]])
        return float(np.linalg.norm(found.points - ball, axis=-1).mean())

    before = distance(state.params)
    history = []
    for index in range(40):
        state, metrics = step(state, batch, jax.random.key(index))
        history.append(float(metrics["silhouette"]))
    assert history[-1] < 0.5 * history[0]
    assert distance(state.params) < 0.6 * before


@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
def test_true_joints_are_learned(setting):
    """Distances fall, and nothing but the lifting network moves."""
    own = recording(frames=24)
    rig = data.on_device(cube().cameras(own.calibration.cameras))
    model = KeypointNet(CONFIG)
    params = setting[0]
    joints = np.repeat(cube().from_world(own.joints), CONFIG.keypoints, axis=1).astype(np.float32)
    batch = {"images": own.images[:8], "joints": joints[:8]}
    step = jax.jit(supervised.make_train_step(model, rig))
    state = supervised.init_state(params, 40, 4e-3, 3)
    history = []
    for index in range(40):
        state, metrics = step(state, batch, jax.random.key(index))
        history.append(float(metrics["loss"]))
    assert history[-1] < 0.5 * history[0]
    np.testing.assert_array_equal(state.params["skeleton"], params["skeleton"])
