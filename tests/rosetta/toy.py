"""A generator whose maps move with its latents, for the tests of inversion and edits."""

import jax
import jax.numpy as jnp
import numpy as np

from rosetta.inversion import Statistics
from rosetta.units import Layout
from rosetta.zoo.tapped import Generator

SIZE = 16  # pixels; the taps have 8 and 16 cells


def blob(latents, size, width=0.12):
    """A bump `[batch, size, size]` at (row, column) = latents[:, :2], in shares of the side."""
    places = (np.arange(size, dtype=np.float32) + 0.5) / size
    rows, columns = (
        jnp.exp(-jnp.square((places.reshape(1, -1) - latents[:, i : i + 1]) / width) / 2)
        for i in (0, 1)
    )
    return rows[:, :, None] * columns[:, None, :]


def apply(params, latents):
    """Two moving bumps with brightness: unit 0 of "fine" follows the first, "coarse" the second."""
    first, second = blob(latents, SIZE), blob(latents[:, 2:4], SIZE)
    image = jnp.stack([first, second, jnp.zeros_like(first)], -1) * params["gain"]
    fine = jnp.stack([first, 1 - first], -1)
    coarse = blob(latents[:, 2:4], SIZE // 2)[..., None] * 3 + 1
    return image, {"coarse": coarse, "fine": fine}


def generator():
    def sample(key, count):
        return jax.random.uniform(key, (count, 4), minval=0.2, maxval=0.8)

    return Generator(
        "toy", apply, {"gain": jnp.float32(1.0)}, ("coarse", "fine"), sample, jnp.full(4, 0.5)
    )


def statistics(count=200):
    """Layout and statistics of the units over random latents."""
    toy = generator()
    _, maps = toy.apply(toy.params, toy.sample(jax.random.key(7), count))
    flat = [maps[tap].reshape(-1, maps[tap].shape[3]) for tap in toy.taps]
    mean, deviation = (jnp.concatenate([f(x, axis=0) for x in flat]) for f in (jnp.mean, jnp.std))
    return Layout.of("toy", maps, toy.taps), Statistics(np.asarray(mean), np.asarray(deviation))
