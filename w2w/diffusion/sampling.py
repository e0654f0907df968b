"""The sampling loop, classifier-free guidance and weights that change with the timestep.

All are functions of a *denoiser*, ``(x [batch, ...], t scalar float32) -> prediction``: the network
with everything but the noisy latents and the timestep bound in.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from w2w.diffusion import flow
from w2w.diffusion.schedulers import Scheduler

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]


def sample(
    denoise: Denoiser,
    latents: jax.Array,
    scheduler: Scheduler,
    steps: int,
    key: jax.Array | None = None,
) -> jax.Array:
    """Takes latents of pure noise to clean ones; one ``lax.scan`` over the network's calls.

    Args:
      denoise: see the module docstring.
      latents: standard normal ``[batch, ...]``; the scheduler scales them.
      scheduler: see :mod:`w2w.diffusion.schedulers`.
      steps: steps of the scheduler (PNDM calls the network once more).
      key: of the noise of stochastic schedulers; call i has the noise of ``fold_in(key, i)``.

    Raises:
      ValueError: a stochastic scheduler without a key.
    """
    if scheduler.stochastic and key is None:
        raise ValueError(f"{type(scheduler).__name__} adds noise at each step and needs a key")
    table = scheduler.table(steps)

    def call(state, item):
        index, row = item
        row = {name: value.astype(latents.dtype) for name, value in row.items()}
        prediction = denoise(state.sample * row["input_scale"], row["timestep"])
        noise = None
        if scheduler.stochastic:
            assert key is not None  # checked above
            call_key = jax.random.fold_in(key, index)
            noise = jax.random.normal(call_key, latents.shape, latents.dtype)
        return scheduler.step(row, state, prediction.astype(latents.dtype), noise), None

    items = jnp.arange(len(table["timestep"])), {k: jnp.asarray(v) for k, v in table.items()}
    state, _ = jax.lax.scan(call, scheduler.start(latents, table), items)
    return state.sample


def guided(
    predict: Callable[[jax.Array, jax.Array, Any], jax.Array],
    condition: Any,
    negative: Any,
    scale: ArrayLike,
) -> Denoiser:
    """Denoiser with classifier-free guidance (Ho and Salimans, 2022): ``n + scale (c - n)``.

    Both predictions are one batch.

    Args:
      predict: ``(x [batch, ...], t, condition) -> prediction``.
      condition: pytree of arrays ``[batch, ...]``, of the prompts.
      negative: the same of the negative prompts; None for no guidance.
      scale: guidance scale, may be traced.
    """
    if negative is None:
        return lambda x, t: predict(x, t, condition)
    both = jax.tree.map(lambda c, n: jnp.concatenate([c, n]), condition, negative)

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        out = predict(jnp.concatenate([x, x]), t, both)
        factor: Any = jnp.asarray(scale, out.dtype)
        return flow.guided(out[: len(x)], out[len(x) :], factor)

    return denoise


def delayed(
    denoise: Callable[[Any, jax.Array, jax.Array], jax.Array],
    original: Any,
    edited: Any,
    threshold: ArrayLike,
) -> Denoiser:
    """Denoiser whose weights change: ``original`` while ``t > threshold``, then ``edited``.

    The delayed injection of Dravid et al. (2024, section 3.3 and appendix I): early calls fix the
    layout, so edits that come later keep it.

    Args:
      denoise: ``(weights, x, t) -> prediction``.
      original: pytree of weights, for instance a LoRA adapter.
      edited: pytree of the same structure and shapes.
      threshold: timestep, may be traced; at or above the first timestep all calls are edited.
    """

    def switched(x: jax.Array, t: jax.Array) -> jax.Array:
        late = t <= jnp.asarray(threshold, t.dtype)
        return denoise(jax.tree.map(lambda o, e: jnp.where(late, e, o), original, edited), x, t)

    return switched


def edited_calls(scheduler: Scheduler, steps: int, threshold: float) -> int:
    """Number of the network's calls with edited weights under :func:`delayed`."""
    return int(np.sum(scheduler.table(steps)["timestep"] <= threshold))
