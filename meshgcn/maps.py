"""Class-specific gradient maps of a network on a mesh: Grad-CAM and HiResCAM, and their averages.

A are the outputs of a level's block (or stem), `[vertices, channels]`, and y the logit of a class.

    Grad-CAM   relu(sum_k A_vk mean_u dy/dA_uk)      (Selvaraju et al. 2017; Pope et al. 2019)
    HiResCAM   relu(sum_k A_vk dy/dA_vk)             (Draelos and Carin 2020)

Both are interpolated to the finest mesh. With a flattened head the gradient depends on the vertex,
Grad-CAM averages it away and localises poorly; HiResCAM does not.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from meshgcn.hierarchy import Hierarchy, upsample

__all__ = ["METHODS", "average", "explain", "randomised"]

METHODS = ("gradcam", "hirescam")


@functools.cache
def _program(model: nn.Module, level: int, target: int) -> Callable:
    def run(variables: Any, x: jax.Array, hierarchy: Hierarchy) -> dict[str, jax.Array]:
        def logit(probe: jax.Array, shapes: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
            probes = [
                probe if i == level else jnp.zeros((), x.dtype)[None, None, None]
                for i in range(len(shapes))
            ]
            taps: list[jax.Array] = []
            logits: Any = model.apply(variables, x, hierarchy, probes=probes, taps=taps)
            return logits[:, target].sum(), taps

        taps: list[jax.Array] = []
        model.apply(variables, x, hierarchy, taps=taps)
        gradient, taps = jax.grad(logit, has_aux=True)(jnp.zeros_like(taps[level]), taps)
        active = taps[level]  # [vertices, batch, channels]
        weight = gradient.mean(axis=0, keepdims=True)
        found = {
            "gradcam": nn.relu((active * weight).sum(axis=-1)).T,
            "hirescam": nn.relu((active * gradient).sum(axis=-1)).T,
        }
        return {name: upsample(hierarchy, value, level) for name, value in found.items()}

    return jax.jit(run)


def explain(
    model: nn.Module,
    variables: Any,
    x: np.ndarray,
    hierarchy: Hierarchy,
    level: int,
    target: int = 1,
    batch: int = 16,
) -> dict[str, np.ndarray]:
    """Maps of each scan on the finest mesh, for each of `METHODS`.

    Args:
      model: a `meshgcn.models.MeshNet`.
      variables: its "params" (and "batch_stats").
      x: standardised features `[scans, vertices, features]`.
      hierarchy: operators.
      level: whose block's output is explained; 0 is the finest.
      target: class of the logit.
      batch: scans at once; the last batch is filled up.

    Returns:
      name -> float32 `[scans, vertices]`, not negative.

    Raises:
      ValueError: a level that the network does not have.
    """
    levels = getattr(model, "levels", 0)
    if not 0 <= level < levels:
        raise ValueError(f"level {level}: the network has {levels}")
    run = _program(model, level, target)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in METHODS}
    for start in range(0, len(x), batch):
        rows = np.minimum(np.arange(start, start + batch), len(x) - 1)
        found = run(variables, jnp.asarray(x[rows]), hierarchy)
        for name in METHODS:
            parts[name].append(np.asarray(found[name])[: len(x) - start])
    empty = np.zeros((0, x.shape[1]), np.float32)
    return {name: np.concatenate([empty, *rows]) for name, rows in parts.items()}


def average(maps: np.ndarray) -> np.ndarray:
    """Mean over scans of maps `[scans, vertices]`, each divided by its largest value first."""
    if len(maps) == 0:
        return np.zeros(maps.shape[1])
    largest = maps.max(axis=1, keepdims=True)
    return (maps / np.where(largest > 0, largest, 1.0)).mean(axis=0)


def randomised(model: nn.Module, variables: Any, seed: int, hierarchy: Hierarchy, x: Any) -> Any:
    """Fresh random weights in the place of the trained ones (Adebayo et al. 2018).

    The statistics of batch normalisation stay, so that activations keep a sane size.
    """
    fresh = model.init(jax.random.key(seed), jnp.asarray(x[:1]), hierarchy)
    return {**variables, "params": fresh["params"]}
