"""How maps change with noise on the image: the paper's claim that LIG is steadier than IG.

The paper counts the pixels at or above a tenth of a map's maximum; beside it stands the rank
correlation to the map of the clean image. Codes are searched anew for each noisy image: whoever
explains an image has no clean one.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from medical.explain import gradients, latent, localise
from medical.medxgan import codes as codes_of
from medical.medxgan import invert, train
from medical.medxgan.losses import margin

Arrays = dict[str, np.ndarray]
MAPS = ("difference", "lig", "lig_path", "ig_negative", "ig_black")
METRICS = ("area", "rank")


def robustness(
    config: ConfigDict, nets: train.Nets, frozen: Any, made: Any, header: Any, images: np.ndarray,
    codes: invert.Codes, keys: tuple[jax.Array, jax.Array],
) -> Arrays:
    """Area and rank correlation of each map at each level of noise.

    Args:
      config: with ``explain`` (``noise``: deviations in units of the pixels, ``noisy``: how many
        images, ``points``) and ``invert``.
      nets: networks.
      frozen: variables of the classifier.
      made: variables of generator and encoder.
      header: of the generator's file.
      images: ``[n, h, w, c]`` in [-1, 1], of which the first ``noisy`` are taken.
      codes: of the images.
      keys: of the noise and of the search.

    Returns:
      ``MAP.DEVIATION.area`` and ``.rank`` to ``[images]``; deviation 0 has an area only.
    """
    levels = tuple(config.explain.noise)
    if not levels:
        return {}
    some = images[: config.explain.noisy]
    noise = np.asarray(jax.random.normal(keys[0], (len(levels), *some.shape)))
    scales = np.asarray(levels, np.float32)[:, None, None, None, None]
    noisy = np.clip(some[None] + scales * noise, -1, 1).reshape(-1, *some.shape[1:])
    found = codes_of.find_codes(config.invert, nets, frozen, made, header, noisy, keys[1])
    # One program for the clean images, which come first, and the noisy ones.
    count = len(some)
    every = _program(nets, config.explain.points)(
        frozen, made["generator"], jnp.concatenate([jnp.asarray(some), jnp.asarray(noisy)]),
        jnp.concatenate([codes.z1[:count], found.z1]),
        jnp.concatenate([codes.z2[:count], found.z2]))
    clean = {name: values[:count] for name, values in every.items()}
    return compare(clean, {name: values[count:] for name, values in every.items()}, levels)


def compare(clean: Any, changed: Any, levels: tuple[float, ...]) -> Arrays:
    """Area and rank correlation.

    Args:
      clean: map to signed attributions ``[n, h, w, c]``.
      changed: likewise ``[levels n, h, w, c]``, level by level.
      levels: deviations.
    """
    table = {}
    for name, values in clean.items():
        first = localise.magnitude(values)
        table[f"{name}.0.area"] = localise.sparsity(first)
        parts = np.split(localise.magnitude(changed[name]), len(levels))
        for level, part in zip(levels, parts, strict=True):
            table[f"{name}.{level:g}.area"] = localise.sparsity(part)
            table[f"{name}.{level:g}.rank"] = np.array(
                [_rank(a, b) for a, b in zip(first, part, strict=True)])
    return table


def _rank(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation; 0 where a map is constant and so ranks nothing."""
    if first.min() == first.max() or second.min() == second.max():
        return 0.0
    return float(stats.spearmanr(first.ravel(), second.ravel()).statistic)


@functools.cache
def _program(nets: train.Nets, points: int) -> Callable:
    def explain(
        frozen: Any, generator: Any, images: jax.Array, z1: jax.Array, z2: jax.Array
    ) -> dict[str, jax.Array]:
        def score(x: jax.Array) -> jax.Array:
            return margin(nets.classifier.apply(frozen, x))

        def generate(both: jax.Array) -> jax.Array:
            return nets.generator.apply(
                generator, both[:, : nets.latent[0]], both[:, nets.latent[0] :])

        sick = jnp.concatenate([z1, z2], -1)
        well = jnp.concatenate([z1, jnp.zeros_like(z2)], -1)
        negative = generate(well)
        return {
            "difference": generate(sick) - negative,
            "lig": latent.lig(score, generate, well, sick, 11),
            "lig_path": latent.path_integral(score, generate, well, sick, points),
            "ig_negative": gradients.integrated_gradients(score, images, negative, points),
            "ig_black": gradients.integrated_gradients(
                score, images, -jnp.ones_like(images), points),
        }

    return jax.jit(explain)
