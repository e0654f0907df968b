"""The training step: what it changes, its schedule, options, and that it trains."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ign import losses, matching, models, noise, population, train

# optax's Adam and schedules: 1 - decay**count mixes int32 and float32.
pytestmark = pytest.mark.usefixtures("standard_promotion")

WEIGHTS = losses.Weights(1.0, 1.0, 0.1, 1.0, 1.5)


def setting(recipe, weights=WEIGHTS, spectrum=None, shape=(2,), net=None, **objective):
    net = net or models.Perceptron((16, 16))
    variables = models.init(net, jax.random.key(0), shape)
    bank = matching.empty_bank(recipe.bank, shape) if objective.get("use_matching") else None
    state = train.init_state(variables, recipe, weights, spectrum, bank)
    step = train.make_train_step(net, losses.Objective(losses.l2, **objective), recipe)
    return net, state, step


def ring(key, count):
    angle = 2 * jnp.pi * jax.random.uniform(key, (count, 1))
    return 0.8 * jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)


def run(state, step, steps, batch=64):
    step = jax.jit(step)
    for i in range(steps):
        key = jax.random.fold_in(jax.random.key(1), i)
        state, metrics = step(state, {"image": ring(key, batch)}, key)
    return state, metrics


def test_a_ring_in_the_plane_is_learned():
    """Generated points lie near the ring, all around it; points near it are pulled to it."""
    recipe = train.Recipe(
        500, 5e-3, betas=(0.9, 0.99), pool=2, bank=1024, ema_decay=0.99, decay_from=0.5
    )
    net, state, step = setting(recipe, use_matching=True, net=models.Perceptron((32, 32)))
    state, metrics = run(state, step, 500)
    variables = state.variables()
    y = net.apply(variables, jax.random.normal(jax.random.key(5), (500, 2)))
    radius = np.linalg.norm(y, axis=1)
    assert abs(np.median(radius) - 0.8) < 0.1
    sector = np.floor((np.arctan2(y[:, 1], y[:, 0]) + np.pi) / (np.pi / 4)).astype(int) % 8
    assert (np.bincount(sector, minlength=8) > 5).all()
    x = ring(jax.random.key(6), 200)
    inside = 0.7 * x
    before, after = (np.abs(np.linalg.norm(p, axis=1) - 0.8).mean() for p in (
        inside, net.apply(variables, inside)))
    assert after < 0.6 * before
    assert float(metrics["reconstruction"]) < 0.01


@pytest.mark.parametrize("shared", [True, False])
def test_step_traces_once_and_counts(shared):
    recipe = train.Recipe(10, 1e-3, ema_decay=0.9, shared=shared)
    _, state, step = setting(recipe)
    chex.clear_trace_counter()  # which goes by the function's name
    traced = jax.jit(chex.assert_max_traces(step, n=1))
    for i in range(3):
        batch = {"image": ring(jax.random.key(i), 8)}
        new, metrics = traced(state, batch, jax.random.key(i))
        assert jax.tree.structure(new) == jax.tree.structure(state)
        state = new
    assert int(state.train.step) == 3
    expected = {"loss", "reconstruction", "idempotence", "tightness", "drift", "saturation"}
    assert metrics.keys() == expected | {"grad_norm"}
    assert all(np.isfinite(value) for value in metrics.values())


def test_shared_and_four_pass_steps_agree():
    results = []
    for shared in (True, False):
        recipe = train.Recipe(10, 1e-3, shared=shared, pool=3, bank=192)
        _, state, step = setting(recipe, use_matching=True)
        results.append(run(state, step, 2)[0].params)
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)  # a tenth of a step of Adam


def test_tightness_starts_later_and_rises():
    recipe = train.Recipe(10, 1e-3, tightness_start=2, tightness_warmup=4)
    _, state, step = setting(recipe)
    step = jax.jit(step)
    batch = {"image": ring(jax.random.key(0), 8)}

    def share(number):
        """The tightness's part of the loss in units of its full weight."""
        at = state.replace(train=state.train.replace(step=jnp.int32(number)))
        _, m = step(at, batch, jax.random.key(1))
        return (m["loss"] - m["reconstruction"] - m["idempotence"]) / (0.1 * m["tightness"])

    np.testing.assert_allclose(
        [share(n) for n in (0, 2, 3, 4, 6, 9)], [0, 0, 0.25, 0.5, 1, 1], atol=1e-3
    )


def test_tightness_falls_at_the_end():
    recipe = train.Recipe(
        100, tightness_start=10, tightness_warmup=20, tightness_decay_from=0.6
    )
    weights = losses.Weights(tightness=2.0, matching=3.0)
    found = [recipe.weights_at(jnp.int32(n), weights) for n in (0, 20, 30, 60, 70, 80, 90, 100)]
    tightness = [float(w.tightness) for w in found]
    np.testing.assert_allclose(tightness, [0, 1, 2, 2, 1.5, 1, 0.5, 0], atol=1e-6)
    assert all(w.replace(tightness=2.0) == weights for w in found)
    kept = train.Recipe(100).weights_at(jnp.int32(99), weights)
    assert float(kept.tightness) == 2.0


def test_learning_rate_schedule():
    rate = train.Recipe(100, 0.5, warmup=10, decay_from=0.6).schedule()
    found = [float(rate(n)) for n in (0, 5, 10, 59, 80, 100)]
    np.testing.assert_allclose(found, [0, 0.25, 0.5, 0.5, 0.25, 0], atol=1e-6)
    constant = train.Recipe(100, 0.5).schedule()
    assert [float(constant(n)) for n in (0, 50, 99, 200)] == [0.5] * 4


def test_input_noise_spoils_inputs_only_and_uint8_is_scaled():
    recipe = train.Recipe(1, input_noise=0.5)
    _, state, _ = setting(recipe)
    pixels = np.array([[[[0], [255]], [[51], [204]]]], np.uint8)
    batch = {"image": jnp.asarray(pixels)}
    made = train.make_batch(state, batch, jax.random.key(0), recipe)
    np.testing.assert_allclose(made.images[0, :, :, 0], [[-1, 1], [-0.6, 0.6]], atol=1e-6)
    assert float(jnp.abs(made.inputs - made.images).max()) > 0.01
    assert float(jnp.abs(made.inputs).max()) <= 1
    plain = train.make_batch(state, batch, jax.random.key(0), train.Recipe(1))
    np.testing.assert_array_equal(plain.inputs, plain.images)
    np.testing.assert_array_equal(plain.noise, made.noise)


def test_input_blur_spoils_half_of_the_inputs():
    recipe = train.Recipe(1, input_blur=2.0)
    _, state, _ = setting(recipe)
    image = np.full((400, 15, 15, 1), -1.0, np.float32)
    image[:, 7, 7] = 1.0
    made = train.make_batch(state, {"image": jnp.asarray(image)}, jax.random.key(0), recipe)
    np.testing.assert_array_equal(made.images, image)
    weights = (np.asarray(made.inputs)[..., 0] + 1) / 2  # of a point: what the blur spreads
    same = (weights == (image[..., 0] + 1) / 2).all(axis=(1, 2))
    assert 150 < same.sum() < 250
    np.testing.assert_allclose(weights.sum(axis=(1, 2)), 1, atol=0.05)  # the border loses little
    rows, columns = np.indices((15, 15)) - 7
    squares = [np.einsum("nij,ij->n", weights[~same], axis**2) for axis in (rows, columns)]
    np.testing.assert_allclose(squares[0], squares[1], atol=1e-3)
    spread = np.sqrt(np.maximum(squares, 0.0))  # rounding: weights are differences from -1
    assert 0 <= spread[0].min() < 0.5 and 1.6 < spread[0].max() < 2.05
    plain = train.make_batch(state, {"image": jnp.ones((4, 15, 15, 1))}, jax.random.key(0), recipe)
    np.testing.assert_allclose(plain.inputs, 1, atol=1e-5)  # what is even stays


@pytest.mark.parametrize("matching_too", [False, True])
def test_distorted_images_are_reconstructed_and_matched_if_asked(monkeypatch, matching_too):
    recipe = train.Recipe(2, 1e-2, augment=1.0, augment_matching=matching_too, bank=4)
    _, state, step = setting(recipe, shape=(8, 8, 1), use_matching=True)
    image = jnp.zeros((4, 8, 8, 1)).at[:, 3:5, 2:6].set(1.0)
    seen, match = [], train._match

    def spy(state, made, images, *rest):
        seen.append((made, images))
        return match(state, made, images, *rest)

    monkeypatch.setattr(train, "_match", spy)
    _, metrics = step(state, {"image": image}, jax.random.key(0))
    assert np.isfinite(float(metrics["loss"]))
    (made, images), = seen
    assert float(jnp.abs(made.images - image).max()) > 0.05
    np.testing.assert_array_equal(made.inputs, made.images)  # neither noise nor blur here
    np.testing.assert_array_equal(images, made.images if matching_too else image)


@pytest.mark.parametrize(("shared", "match"), [(True, False), (False, False), (True, True)])
def test_batch_norm_keeps_averages_of_all_three_passes(shared, match):
    """Matched noise of its own is a fourth pass, which does not count."""
    config = models.NetConfig(width=8, latent=8, norm="batch")
    net = models.Autoencoder(config)
    recipe = train.Recipe(4, 1e-3, shared=shared, bank=12)
    images = jax.random.uniform(jax.random.key(0), (6, *config.shape), minval=-1)
    spectrum = noise.fit_spectrum(np.asarray(images))
    variables = models.init(net, jax.random.key(1), config.shape)
    banks = recipe.empty_banks(config.shape) if match else ()
    state = train.init_state(variables, recipe, WEIGHTS, spectrum, *banks)
    objective = losses.Objective(losses.l1, use_matching=match)
    step = jax.jit(train.make_train_step(net, objective, recipe, config.independent))
    new, metrics = step(state, {"image": images}, jax.random.key(2))
    assert np.isfinite(float(metrics["loss"]))

    made = train.make_batch(state, {"image": images}, jax.random.key(2), recipe)
    stats = state.batch_stats
    y = None
    for u in (made.inputs, made.noise, None):
        u = y if u is None else u
        y, updated = net.apply(
            {"params": state.params, "batch_stats": stats}, u, train=True, mutable=["batch_stats"]
        )
        stats = updated["batch_stats"]
    for a, b in zip(jax.tree.leaves(new.batch_stats), jax.tree.leaves(stats), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert set(new.variables()) == {"params", "batch_stats"}


def test_population_equals_separate_runs():
    recipe = train.Recipe(4, 1e-2)
    net, _, step = setting(recipe)
    everybody = population.members((3, 4), {"tightness": (0.0, 0.5)})
    assert [m.name for m in everybody] == [
        "seed 3, tightness 0", "seed 4, tightness 0", "seed 3, tightness 0.5",
        "seed 4, tightness 0.5",
    ]  # fmt: skip
    weights = population.stack_weights(WEIGHTS, everybody)

    def init(key, own):
        return train.init_state(models.init(net, key, (2,)), recipe, own)

    keys = jnp.stack([jax.random.key(m.seed) for m in everybody])
    states = jax.vmap(init)(keys, weights)
    images = ring(jax.random.key(0), 4 * 8).reshape(4, 8, 2)
    key = jax.random.key(9)
    found = {}
    for mode in ("vmap", "map"):
        together = jax.jit(population.make_step(step, 4, mode))
        found[mode] = together(states, {"image": images}, key)
        assert found[mode][1]["loss"].shape == (4,)
    single = jax.jit(step)
    for index, member in enumerate(everybody):
        own = WEIGHTS.replace(**member.changes)
        alone = init(jax.random.key(member.seed), own)
        alone, one = single(alone, {"image": images[index]}, jax.random.fold_in(key, index))
        for mode, (states_, many) in found.items():
            for name in one:
                np.testing.assert_allclose(many[name][index], one[name], rtol=1e-4, atol=1e-7)
            for a, b in zip(
                jax.tree.leaves(states_.params), jax.tree.leaves(alone.params), strict=True
            ):
                # A tenth of one step of Adam, which amplifies the rounding of small gradients.
                np.testing.assert_allclose(a[index], b, atol=1e-3, err_msg=mode)


def test_population_batches_are_permutations_and_repeatable():
    source = {"image": np.arange(10), "label": np.arange(10) * 2}
    batch = population.batches(source, 4, (0, 1))
    seen = [batch(step) for step in range(4)]
    assert seen[0]["image"].shape == (2, 4)
    for first, second in ((seen[0], seen[1]), (seen[2], seen[3])):
        for member in (0, 1):
            epoch = np.concatenate([first["image"][member], second["image"][member]])
            assert len(set(epoch.tolist())) == 8
    assert (seen[0]["image"][0] != seen[0]["image"][1]).any()
    assert (seen[0]["image"] != seen[2]["image"]).any()
    np.testing.assert_array_equal(seen[1]["label"], 2 * seen[1]["image"])
    np.testing.assert_array_equal(population.batches(source, 4, (0, 1))(3)["image"],
                                  seen[3]["image"])
    np.testing.assert_array_equal(population.batches(source, 4, (1,))(0)["image"],
                                  seen[0]["image"][1])
    with pytest.raises(ValueError, match="10 examples do not fill a batch of 11"):
        population.batches(source, 11, (0,))


def test_population_mistakes():
    with pytest.raises(ValueError, match="'warmth'"):
        population.members((0,), {"warmth": (1.0,)})
    with pytest.raises(ValueError, match="sweep over seeds"):
        population.members((), {})
    with pytest.raises(ValueError, match="mode 'pmap'"):
        population.make_step(lambda s, b, k: (s, {}), 2, "pmap")
    assert population.rules(8) == population.SPLIT
    with pytest.raises(ValueError, match="3 members are no multiple of the 4 devices"):
        population.rules(3)
