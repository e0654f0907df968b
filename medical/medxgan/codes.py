"""Codes of real images and of their negative counterparts, as a configuration asks for them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from medical.medxgan import invert, losses, train

NEGATIVES = ("zero", "optimised")


def find_codes(
    config: ConfigDict, nets: train.Nets, frozen: Any, made: Any, header: Any, images: np.ndarray,
    key: jax.Array,
) -> invert.Codes:
    """Codes of the images: from the encoder where there is one, then by optimisation.

    Args:
      config: ``config.invert``.
      nets: networks.
      frozen: variables of the classifier.
      made: variables of the generator and, if there is one, the encoder.
      header: of the generator's file.
      images: ``[n, h, w, c]``.
      key: of the starts.
    """
    target = jnp.asarray(images)
    keys = jax.random.split(key, config.restarts)
    starts = [invert.published_start(each, len(images), nets.latent) for each in keys]
    if header["encodes"]:
        assert nets.encoder is not None
        mean, _ = applied(nets.encoder)(made["encoder"], target)
        first = invert.Codes(mean[:, : nets.latent[0]], mean[:, nets.latent[0] :], starts[0].loss)
        # Further restarts keep the anatomy and draw another pathology.
        starts = [first, *(s._replace(z1=first.z1) for s in starts[1:])]
    start = jax.tree.map(lambda *parts: jnp.concatenate(parts), *starts)
    recipe = invert.Recipe(config.num_steps, config.learning_rate, config.pixels,
                           config.class_weight, config.prior)
    return _program(nets, recipe)(
        made["generator"], frozen, target, start, None, header["temperature"])


def find_negative(
    config: ConfigDict, nets: train.Nets, frozen: Any, made: Any, header: Any,
    codes: invert.Codes, key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Codes ``[n, d1]`` and ``[n, d2]`` of the negative counterparts.

    ``config.negative`` "zero" keeps z1 and sets z2 to 0 (the paper, and the released code for
    X-rays). "optimised" is the released code for brain slices: both codes are searched anew from
    normal ones, for an image that is close to the positive reconstruction and that the classifier
    calls negative.
    """
    if config.negative not in NEGATIVES:
        raise ValueError(f"config.invert.negative {config.negative!r}; known: "
                         f"{', '.join(NEGATIVES)}")
    if config.negative == "zero":
        return codes.z1, jnp.zeros_like(codes.z2)
    positive = applied(nets.generator)(made["generator"], codes.z1, codes.z2)
    first, second = jax.random.split(key)
    start = invert.Codes(jax.random.normal(first, codes.z1.shape),
                         jax.random.normal(second, codes.z2.shape), codes.loss)
    recipe = invert.Recipe(config.num_steps, 0.1, config.pixels, max(config.class_weight, 1.0),
                           config.prior)
    found = _program(nets, recipe)(made["generator"], frozen, positive, start,
                                   jnp.zeros(len(positive)), header["temperature"])
    return found.z1, found.z2


@functools.cache
def applied(net: Any) -> Callable[..., Any]:
    """The jitted network, of its variables and inputs; one for all callers."""
    return jax.jit(net.apply)


@functools.cache
def _program(nets: train.Nets, recipe: invert.Recipe) -> Callable[..., invert.Codes]:
    """The jitted search; one compilation for the runs of all seeds and controls."""

    @jax.jit
    def run(
        generator: Any, judge: Any, target: jax.Array, start: invert.Codes,
        wanted: jax.Array | None, temperature: Any,
    ) -> invert.Codes:
        return invert.invert(
            lambda a, b: nets.generator.apply(generator, a, b),
            lambda x: losses.margin(nets.classifier.apply(judge, x)), target, start,
            dataclasses.replace(recipe, temperature=temperature), wanted)

    return run
