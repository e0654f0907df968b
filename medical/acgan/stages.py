"""Stages of the comparison: split, training of one method's trials."""

from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from common import rng, storage
from common.checkpoint import Checkpointer
from common.loop import fit
from common.writer import Writer
from medical.acgan import data, losses, methods, models, population
from medical.acgan.data import Part, Trial

PyTree = Any


def split(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: the images of all trials, of validation and of the test, and each trial's table."""
    del inputs
    c = config.data
    found = data.load(c.source, c.validation_per_class, c.test_per_class, c.size, c.seed)
    trials = trials_of(config)
    used, places, counts = data.tables(found.pool.labels, trials, len(found.classes))
    pool = data.take(found.pool, used)
    arrays = {"rows": places, "count": counts}
    for name, part in (("train", pool), ("validation", found.validation), ("test", found.test)):
        arrays |= {f"{name}_images": part.images, f"{name}_labels": part.labels}
    for file, reason in found.bad:
        print(f"left out: {file}: {reason}")
    header = {"classes": list(found.classes), "medical": found.medical,
              "bad": [list(pair) for pair in found.bad]}
    storage.save_arrays(out / "images.safetensors", arrays, header)


def train_method(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: all trials of ``config.method``, its predictions on the test images, its samples."""
    arrays, header = storage.load_arrays(inputs["data"] / "images.safetensors")
    trials, classes = trials_of(config), len(header["classes"])
    method = methods.METHODS[config.method]
    generator, discriminator = make_nets(
        config.net, classes, *arrays["train_images"].shape[2:],
        products=config.population == "vmap")
    recipe = method.recipe(**dict(config.recipe), latent=config.net.latent)
    schedule = population.Schedule(**dict(config.schedule))
    mesh = population.mesh_for(len(trials))
    key = rng.stream(jax.random.key(config.seed), "init")
    seeds = jnp.asarray([trial.seed for trial in trials], jnp.int32)
    validations = schedule.num_steps // schedule.eval_every
    image = population.to_unit(jnp.asarray(arrays["train_images"][:1]))
    state = jax.jit(lambda seeds, key: population.init(
        generator, discriminator, recipe, image, seeds, key, validations))(seeds, key)
    batch = {
        "trial": population.placed(trial_arrays(arrays, trials), mesh, True),
        "shared": population.placed({
            "images": arrays["train_images"], "labels": arrays["train_labels"],
            "valid_images": arrays["validation_images"],
            "valid_labels": arrays["validation_labels"]}, mesh, False),
        "frozen": None,
    }
    if method.samples_of:
        saved = storage.load_tree(inputs[f"train-{method.samples_of}"] / "last.safetensors")
        batch["frozen"] = population.placed(saved["generator"], mesh, True)
    chunk = population.make_chunk(
        generator, discriminator, method, recipe, schedule, config.population, mesh)
    writer = Writer(out)
    with closing(Checkpointer(out / "checkpoints", keep=1)) as checkpointer:
        state = fit(
            population.placed(state, mesh, True), chunk, lambda _: batch, num_steps=validations,
            key=jax.random.key(config.seed), writer=writer, log_every=1, name="train",
            checkpointer=checkpointer, checkpoint_every=max(1, validations // 4))
    writer.close()
    best = jax.tree.map(np.asarray, state.best)
    last = jax.tree.map(np.asarray, population.variables(state.trials))
    if method.adversarial:  # validation chooses a classifier; the generator is that of the end
        storage.save_tree(out / "last.safetensors", {"generator": last["generator"]})
    storage.save_tree(out / "best.safetensors", {"discriminator": best["discriminator"]})
    found = {
        "best_logits": all_logits(discriminator, best, arrays["test_images"]),
        "last_logits": all_logits(discriminator, last, arrays["test_images"]),
        "validation": np.asarray(state.history), "best_step": np.asarray(state.step)}
    if method.adversarial:
        found["samples"] = sample(
            generator, last, classes, config.samples, recipe.latent, recipe.truncation,
            rng.stream(jax.random.key(config.seed), "samples"))
    storage.save_arrays(out / "found.safetensors", found)


def trials_of(config: ConfigDict) -> list[Trial]:
    """The trials of a configuration: every subset size with every seed.

    Raises:
      ValueError: there are none, or one occurs twice.
    """
    trials = [Trial(int(n), int(seed)) for n in config.per_class for seed in config.seeds]
    if not trials or len(set(trials)) != len(trials):
        raise ValueError(f"per_class {config.per_class} and seeds {config.seeds}: "
                         "none may be empty, and nothing may occur twice")
    return trials


def trial_arrays(arrays: dict[str, np.ndarray], trials: list[Trial]) -> dict[str, np.ndarray]:
    """What distinguishes the trials, each ``[trials, ...]``."""
    return {
        "rows": arrays["rows"], "count": arrays["count"],
        "seed": np.array([trial.seed for trial in trials], np.int32),
        "per_class": np.array([trial.per_class for trial in trials], np.int32)}


def make_nets(
    net: ConfigDict, classes: int, size: int = 28, channels: int = 1, *, products: bool = False
) -> tuple[models.Generator, Any]:
    """The networks of ``config.net`` for images ``[size, size, channels]``: the generator's widths
    are the trunk's in reverse where they are not given. `products` changes how convolutions are
    computed, not the parameters."""
    widths = tuple(int(width) for width in net.widths)
    up = tuple(int(width) for width in net.generator) or widths[::-1]
    models.kernels_of(size, len(up))
    generator = models.Generator(up, classes, size, channels, products)
    if net.trunk == "alexnet":
        return generator, models.AlexDiscriminator(widths, net.dense, classes, products)
    if net.trunk != "dcgan":
        raise ValueError(f"config.net.trunk {net.trunk!r}; known: dcgan, alexnet")
    return generator, models.Discriminator(widths, classes, net.norm, products)


def all_logits(
    discriminator: Any, held: PyTree, images: np.ndarray
) -> np.ndarray:
    """Class logits ``[trials, images, classes]`` of every trial, one after another."""
    shown = jnp.asarray(images)
    run = jax.jit(lambda one, images: population.predict(discriminator, one, images))
    count = len(jax.tree.leaves(held)[0])
    return np.stack([
        np.asarray(run(population.take(held["discriminator"], i), shown)) for i in range(count)])


def sample(
    generator: models.Generator, held: PyTree, classes: int, count: int, latent: int,
    truncation: float, key: jax.Array,
) -> np.ndarray:
    """Samples uint8 ``[trials, classes, count, height, width, channels]`` from one set of codes."""
    z = losses.codes(key, (classes * count, latent), truncation)
    labels = jnp.repeat(jnp.arange(classes), count)
    run = jax.jit(lambda one: generator.apply(one, z, labels))
    trials = len(jax.tree.leaves(held)[0])
    made = np.stack([np.asarray(run(population.take(held["generator"], i)))
                     for i in range(trials)])
    pixels = np.rint((made + 1) * 127.5).astype(np.uint8)
    return pixels.reshape(trials, classes, count, *made.shape[2:])


def part(arrays: dict[str, np.ndarray], name: str) -> Part:
    """One part of what stage `split` left: "train", "validation" or "test"."""
    return Part(arrays[f"{name}_images"], arrays[f"{name}_labels"])
