"""The step: it learns, resumes, hides views, and keeps to its curricula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keypoints import data, models, supervised, train
from keypoints.models import KeypointNet
from tests.keypoints.small import CONFIG, cube, recording

pytestmark = pytest.mark.usefixtures("quick_compile")

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
def test_rotation_and_perceptual_terms_enter(setting):
    params, batch, _ = setting
    own = recording(frames=24)
    rig = data.on_device(cube().cameras(own.calibration.cameras))
    recipe = train.Recipe(
        num_steps=5, rotation=1.0, rotation_start=0, rotation_ramp=1, perceptual=1.0)

    def features(x):
        return [x[:, ::2, ::2], jnp.square(x)]

    step = jax.jit(train.make_train_step(KeypointNet(CONFIG), recipe, rig, features))
    _, metrics = step(train.init_state(params, recipe), batch, jax.random.key(0))
    assert metrics["rotation"] > 0 and metrics["perceptual"] > 0
    with pytest.raises(ValueError, match="no network"):
        train.make_train_step(KeypointNet(CONFIG), recipe, rig)


def test_targets_see_what_changed():
    images = jnp.full((1, 1, 32, 32, 3), 0.3)
    moved = images.at[:, :, 8:16, 8:16].set(0.9)
    target = np.asarray(train.targets(images, moved, 2, RECIPE))[0, 0]
    assert target.shape == (16, 16)
    assert target[4:8, 4:8].mean() > 0.3 and target[12:].max() < 1e-3


@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
def test_true_joints_are_learned(setting):
    """The upper bound: distances fall, and nothing but the lifting network moves."""
    own = recording(frames=24)
    rig = data.on_device(cube().cameras(own.calibration.cameras))
    model = KeypointNet(CONFIG)
    params = setting[0]
    joints = np.repeat(cube().from_world(own.joints), CONFIG.keypoints, axis=1).astype(np.float32)
    batch = {"images": own.images[:8], "joints": joints[:8]}
    step = jax.jit(supervised.make_train_step(model, rig))
    state = supervised.init_state(params, 40, 4e-3, 3)
    losses = []
    for index in range(40):
        state, metrics = step(state, batch, jax.random.key(index))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    np.testing.assert_array_equal(state.params["skeleton"], params["skeleton"])
