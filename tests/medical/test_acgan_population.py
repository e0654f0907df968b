"""All trials as one program: each equals its own single steps, alone, mapped, vmapped, sharded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medical.acgan import augment, models, population, train
from medical.acgan.data import Trial, tables
from medical.acgan.methods import METHODS

pytestmark = [
    # Small networks: they take longer to compile than to run.
    pytest.mark.usefixtures("standard_promotion"),  # optax, bias correction of Adam
]

CLASSES = 3
TRIALS = [Trial(1, 0), Trial(1, 1), Trial(4, 0), Trial(4, 1)]
SCHEDULE = population.Schedule(num_steps=4, eval_every=2, batch_size=4)
METHOD = METHODS["wacgan_gpt"]
RECIPE = METHOD.recipe(latent=3)
NETS = models.Generator((4, 2, 2), CLASSES), models.Discriminator((2, 2, 4), CLASSES)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    labels = np.arange(24, dtype=np.int32) % CLASSES
    used, rows, counts = tables(labels, TRIALS, CLASSES)
    images = rng.integers(0, 256, (24, 28, 28, 1), np.uint8)
    return {
        "trial": {"rows": jnp.asarray(rows), "count": jnp.asarray(counts),
                  "seed": jnp.asarray([t.seed for t in TRIALS]),
                  "per_class": jnp.asarray([t.per_class for t in TRIALS])},
        "shared": {"images": jnp.asarray(images[used]), "labels": jnp.asarray(labels[used]),
                   "valid_images": jnp.asarray(images[:9]),
                   "valid_labels": jnp.asarray(labels[:9])},
        "frozen": None,
    }


@pytest.fixture(scope="module")
def start(batch) -> population.Population:
    image = population.to_unit(batch["shared"]["images"][:1])
    return jax.jit(lambda seeds: population.init(
        *NETS, RECIPE, image, seeds, jax.random.key(5), 2))(batch["trial"]["seed"])


@pytest.fixture(scope="module")
def mapped(batch, start):
    chunk = jax.jit(population.make_chunk(*NETS, METHOD, RECIPE, SCHEDULE, "map"))
    with jax.numpy_dtype_promotion("standard"):  # as below; made before a test's own fixtures
        first, metrics = chunk(start, batch, jax.random.key(9))
    return chunk, first, metrics


def close(first, second, atol: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), first, second)


def test_trials_of_one_seed_start_alike(start):
    weights = start.params
    close(population.take(weights, 0), population.take(weights, 2), 0)
    kernel = weights["discriminator"]["conv0"]["kernel"]
    assert np.any(kernel[0] != kernel[1])


def test_the_program_equals_single_steps(batch, start, mapped):
    _, found, metrics = mapped
    step = jax.jit(train.make_train_step(*NETS, RECIPE))
    draw = jax.jit(lambda key, trial: population.draw(
        key, trial, batch["shared"], None, NETS[0], METHOD, RECIPE, SCHEDULE))
    for i in (0, 3):
        trial = population.take(batch["trial"], i)
        state, losses = population.take(start, i).trials, []
        own = population.trial_key(jax.random.key(9), trial["seed"], trial["per_class"])
        for index in range(SCHEDULE.eval_every):
            drawing, updating = jax.random.split(jax.random.fold_in(own, index))
            state, values = step(state, draw(drawing, trial), updating)
            losses.append(float(values["loss"]))
        close(state.params, population.take(found.params, i), 1e-5)
        close(state.stats, population.take(found.trials.stats, i), 1e-5)
        assert float(metrics["loss"][i]) == pytest.approx(np.mean(losses), abs=1e-4)
        right = population.predict(
            NETS[1], population.variables(state)["discriminator"], batch["shared"]["valid_images"])
        accuracy = np.mean(np.argmax(right, -1) == batch["shared"]["valid_labels"])
        assert float(metrics["validation"][i]) == pytest.approx(accuracy)


@pytest.mark.parametrize("mode", ["vmap", "sharded"])
def test_all_ways_to_run_agree(batch, start, mapped, mode):
    _, expected, metrics = mapped
    mesh = population.mesh_for(len(TRIALS)) if mode == "sharded" else None
    assert mesh is None or mesh.size == 4
    nets = NETS if mesh else tuple(net.clone(products=True) for net in NETS)  # as a run does
    chunk = population.make_chunk(
        *nets, METHOD, RECIPE, SCHEDULE, "map" if mesh else mode, mesh)
    state, placed = start, batch
    if mesh:
        state = population.placed(state, mesh, True)
        placed = {name: population.placed(part, mesh, name != "shared")
                  for name, part in batch.items()}
    found, other = jax.jit(chunk)(state, placed, jax.random.key(9))
    close(found.params, expected.params, 1e-5)
    close(found.best, expected.best, 1e-5)
    close(other, metrics, 1e-4)


def test_the_best_validation_is_kept(batch, start, mapped):
    chunk, first, metrics = mapped
    reached = np.asarray(metrics["validation"])
    np.testing.assert_array_equal(first.accuracy, metrics["validation"])
    np.testing.assert_array_equal(first.step, 2)
    close(first.best, population.variables(first.trials), 0)
    np.testing.assert_array_equal(first.history, np.stack([reached, 0 * reached], 1))
    # Trials that have been better before, or as good, keep what they have.
    before = start
    known = before.replace(accuracy=jnp.asarray(reached) + jnp.asarray([0.1, 0.0, -0.1, -1.0]))
    after, _ = chunk(known, batch, jax.random.key(9))
    np.testing.assert_array_equal(after.step, [0, 0, 2, 2])
    for i in range(4):
        kept = before.best if i < 2 else population.variables(first.trials)
        close(population.take(after.best, i), population.take(kept, i), 0)
    close(after.params, first.params, 0)  # the training goes on
    second, _ = chunk(first, batch, jax.random.key(10))
    np.testing.assert_array_equal(second.history[:, 0], reached)
    assert np.array_equal(second.trials.discriminator.step, [4, 4, 4, 4])


def test_batches_hold_a_trials_own_images_only(batch):
    shared = batch["shared"]
    plain = dataclasses.replace(SCHEDULE, batch_size=40)
    whole = np.asarray(population.to_unit(shared["images"]))
    for i, trial in enumerate(TRIALS):
        own = population.take(batch["trial"], i)
        drawn = population.draw(
            jax.random.key(0), own, shared, None, NETS[0], METHODS["cnn"], RECIPE, plain)
        rows = [int(np.flatnonzero((whole == image).all((1, 2, 3)))[0])
                for image in np.asarray(drawn["image"])]
        np.testing.assert_array_equal(drawn["label"], np.asarray(shared["labels"])[rows])
        count = CLASSES * trial.per_class
        assert set(rows) == set(np.asarray(own["rows"][:count]).tolist())
        # The first image, which fills the rest of the table, comes no more often than others.
        assert rows.count(int(own["rows"][0])) < 0.6 * len(rows)


def test_samples_join_the_real_images(batch, start):
    saved = population.take(start.best["generator"], 1)
    drawn = population.draw(jax.random.key(0), population.take(batch["trial"], 1), batch["shared"],
                            saved, NETS[0], METHODS["cnn_samples"], RECIPE, SCHEDULE)
    images, labels = drawn["image"], drawn["label"]
    assert images.shape == (8, 28, 28, 1)
    np.testing.assert_array_equal(labels[:4], labels[4:])
    z = jax.random.normal(jax.random.split(jax.random.key(0), 3)[2], (4, 3))
    close(images[4:], NETS[0].apply(saved, z, labels[:4]), 1e-6)


def test_samples_come_from_the_codes_of_their_generator(batch, start):
    """Truncated where that of the samples was trained so, whatever the recipe of the CNN says."""
    saved = population.take(start.best["generator"], 1)
    given = (jax.random.key(0), population.take(batch["trial"], 1), batch["shared"], saved, NETS[0])
    drawn = population.draw(*given, METHODS["cnn_augmented_samples"], RECIPE, SCHEDULE)
    z = jax.random.truncated_normal(jax.random.split(given[0], 3)[2], -1, 1, (4, 3))
    expected = NETS[0].apply(saved, z, drawn["label"][:4])
    close(drawn["image"][4:], expected, 1e-6)


def test_shifts_and_mirror_images():
    images = np.full((64, 5, 7, 1), -1, np.float32)
    images[:, 2, 2] = 1.0
    moved = augment.shift_and_flip(jax.random.key(0), jnp.asarray(images), 2, True)
    seen = {tuple(place) for place in np.argwhere(np.asarray(moved[..., 0]) == 1)[:, 1:]}
    assert {y for y, _ in seen} == set(range(5)) and {x for _, x in seen} == set(range(7))
    assert np.all(np.sum(moved == 1, axis=(1, 2, 3)) == 1)
    still = augment.shift_and_flip(jax.random.key(0), jnp.asarray(images), 0, False)
    np.testing.assert_array_equal(still, images)


def test_devices_divide_the_trials():
    assert [population.mesh_for(n).size for n in (3, 4, 6, 8)] == [3, 4, 3, 4]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="num_steps 5 is not a positive multiple of eval_every 2"):
        population.Schedule(num_steps=5, eval_every=2, batch_size=4)
    with pytest.raises(ValueError, match="config.population 'pmap'; known: vmap, map"):
        population.make_chunk(*NETS, METHOD, RECIPE, SCHEDULE, "pmap")
