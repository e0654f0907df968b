"""Using a trained network: generate, project, measure the drift, interpolate, combine.

A `Model` is a pytree, so every function here can be jitted, differentiated and vmapped over models.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from common import storage
from ign import noise
from ign.models import NetConfig, build

PyTree = Any
Array = jax.Array | np.ndarray


class Model(struct.PyTreeNode):
    """A network in evaluation mode with the noise it was trained on.

    Attributes:
        variables: parameters, and averages of batch normalisation where there are any.
        spectrum: statistics of the noise; None for standard normal.
        config: architecture; static.
    """

    variables: PyTree
    spectrum: noise.Spectrum | None
    config: NetConfig = struct.field(pytree_node=False)

    def __call__(self, x: Array, labels: Array | None = None) -> jax.Array:
        """`f(x)`, `[batch, size, size, channels]` in [-1, 1]."""
        y = build(self.config).apply(self.variables, x, labels)
        assert isinstance(y, jax.Array)  # no collection is mutable
        return y

    def noise(self, key: jax.Array, count: int) -> jax.Array:
        """`[count, size, size, channels]` noise."""
        return noise.sample(self.spectrum, key, (count, *self.config.shape))

    def noise_mean(self) -> jax.Array:
        """Mean of the noise, `[size, size, channels]`: 0, or the mean image of the spectrum."""
        if self.spectrum is None:
            return jnp.zeros(self.config.shape)
        transform = jax.lax.complex(self.spectrum.mean_real, self.spectrum.mean_imag)
        return jnp.fft.ifft2(transform, axes=(0, 1)).real


def project(model: Model, x: Array, k: int = 1, labels: Array | None = None) -> jax.Array:
    """`f^k(x)`: the images after k applications.

    Args:
        model: see `Model`.
        x: `[batch, size, size, channels]` in [-1, 1], or noise.
        k: number of applications, static, at least 0.
        labels: int32 `[batch]` of a conditional network.

    Raises:
        ValueError: k is negative.
    """
    if k < 0:
        raise ValueError(f"k is {k}, the number of applications cannot be negative")
    x = jnp.asarray(x)
    for _ in range(k):
        x = model(x, labels)
    return x


def trajectory(
    model: Model, x: Array, k: int, labels: Array | None = None
) -> jax.Array:
    """`x, f(x), ..., f^k(x)` stacked: `[k + 1, batch, size, size, channels]`."""

    def apply(x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        y = model(x, labels)
        return y, y

    x = jnp.asarray(x)
    _, steps = jax.lax.scan(apply, x, None, length=k)
    return jnp.concatenate([x[None], steps])


def drift(model: Model, x: Array, labels: Array | None = None) -> jax.Array:
    """Mean absolute difference of `f(x)` and `x`, `[batch]`: 0 on the model's manifold."""
    return jnp.mean(drift_map(model, x, labels), axis=(1, 2))


def drift_map(model: Model, x: Array, labels: Array | None = None) -> jax.Array:
    """Where `f` changes `x`: absolute difference, mean over channels, `[batch, size, size]`."""
    return jnp.mean(jnp.abs(model(x, labels) - x), axis=-1)


def generate(
    model: Model, key: jax.Array, count: int, k: int = 1, labels: Array | None = None
) -> jax.Array:
    """`f^k` of fresh noise: `[count, size, size, channels]` in [-1, 1]."""
    return project(model, model.noise(key, count), k, labels)


def interpolate_noise(model: Model, first: Array, last: Array, steps: int) -> jax.Array:
    """Noise on the arc from `first` to `last`, `[steps, ...]`, ends included.

    `mean + cos(a) (first - mean) + sin(a) (last - mean)`, a from 0 to 90 degrees: for independent
    Gaussian images every point has the distribution of the noise, as no straight line's has.

    Raises:
        ValueError: fewer than 2 steps.
    """
    if steps < 2:
        raise ValueError(f"an interpolation needs at least 2 steps, got {steps}")
    angle = jnp.linspace(0.0, jnp.pi / 2, steps).reshape(-1, *(1,) * first.ndim)
    mean = jnp.broadcast_to(model.noise_mean(), first.shape)[None]
    return mean + jnp.cos(angle) * (first[None] - mean) + jnp.sin(angle) * (last[None] - mean)


def combine_noise(model: Model, noises: Array, coefficients: Array) -> jax.Array:
    """Arithmetic on noise, `mean + sum_i c_i (z_i - mean) / |c|`, of the noise's distribution.

    Args:
        model: see `Model`.
        noises: `[terms, ..., size, size, channels]`.
        coefficients: `[terms]`, such as (1, -1, 1).
    """
    mean = jnp.broadcast_to(model.noise_mean(), noises.shape[1:])
    total = jnp.tensordot(coefficients, noises - mean[None], axes=1)
    return mean + total / jnp.linalg.norm(coefficients)


def save(path: Path, model: Model, card: dict[str, Any] | None = None) -> Path:
    """Writes network, noise statistics and architecture to one safetensors file."""
    spectrum = model.spectrum
    header = {
        "net": vars(model.config),
        "noise": "normal" if spectrum is None else spectrum.form,
        "card": card or {},
    }
    tree = {"variables": model.variables}
    if spectrum is not None:
        tree["spectrum"] = noise.to_arrays(spectrum)
    return storage.save_tree(path, tree, header)


def load(path: Path) -> Model:
    """Reads what `save` wrote.

    Raises:
        KeyError: the file is not of a model, or lacks a part.
    """
    _, header = storage.load_arrays(path)
    if "net" not in header:
        raise KeyError(f"{path}: no architecture in the file's header")
    tree = jax.tree.map(jnp.asarray, storage.load_tree(path))
    spectrum = None
    if header["noise"] != "normal":
        spectrum = noise.from_arrays(tree["spectrum"], header["noise"])
    return Model(tree["variables"], spectrum, NetConfig(**header["net"]))


def in_blocks(function: Any, *arrays: np.ndarray, block: int = 256) -> np.ndarray:
    """`function` of equally long host arrays, a block of rows at a time, with one compilation.

    The last rows again fill up the last block.
    """
    count = len(arrays[0])
    block = min(block, count)
    results = []
    for start in range(0, count, block):
        rows = np.minimum(np.arange(start, start + block), count - 1)
        found = np.asarray(function(*(jnp.asarray(a[rows]) for a in arrays)))
        results.append(found[: min(block, count - start)])
    return np.concatenate(results)
