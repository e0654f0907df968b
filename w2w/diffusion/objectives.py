"""Training objectives of noise-predicting diffusion models: DreamBooth-LoRA and inversion.

Pure functions of a *predictor*, ``(noisy [batch, h, w, c], timesteps int [batch], condition) ->
prediction``: the UNet with its weights bound in. All of them take noise and timesteps, so that they
are deterministic; :func:`draw` draws both.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from w2w import lora, subspace
from w2w.diffusion.noise import NoiseProcess

Predictor = Callable[[jax.Array, jax.Array, Any], jax.Array]


def draw(
    key: jax.Array, latents: jax.Array, process: NoiseProcess
) -> tuple[jax.Array, jax.Array]:
    """Noise of the latents' shape and uniform timesteps, int32 ``[batch]`` in 0 .. N - 1."""
    noise_key, time_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, latents.shape, latents.dtype)
    return noise, jax.random.randint(time_key, latents.shape[:1], 0, process.steps)


def spread_times(key: jax.Array, part: jax.Array, parts: int, batch: int, steps: int) -> jax.Array:
    """Uniform timesteps, int32 ``[batch]``, in one of ``parts`` equal parts of a process.

    To compare models on few draws that cover all noise levels.
    """
    low, high = part * steps // parts, (part + 1) * steps // parts
    return jax.random.randint(key, (batch,), low, high)


def denoising_errors(
    predict: Predictor,
    latents: jax.Array,
    condition: Any,
    noise: jax.Array,
    timesteps: jax.Array,
    process: NoiseProcess,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Mean squared error of each prediction, float32 ``[batch]`` (Ho et al., 2020, eq. 14).

    Args:
      predict: see the module docstring.
      latents: scaled clean latents ``[batch, h, w, c]``.
      condition: what the network is told, pytree of ``[batch, ...]``.
      noise: standard normal, of the latents' shape.
      timesteps: int ``[batch]``.
      process: noise schedule, and whether noise or velocity is predicted.
      mask: None or weights ``[batch, h, w, 1]`` that multiply prediction and target; the mean is
        over all elements all the same (Dravid et al., 2024, as released).
    """
    predicted = predict(process.add_noise(latents, noise, timesteps), timesteps, condition)
    target = process.target(latents, noise, timesteps)
    error = predicted.astype(jnp.float32) - target.astype(jnp.float32)
    if mask is not None:
        # Selected and not only multiplied: outside the mask even infinities do not count.
        error = jnp.where(mask == 0, 0.0, error) * mask.astype(jnp.float32)
    return jnp.mean(error * error, axis=tuple(range(1, error.ndim)))


def dreambooth(
    predict: Predictor,
    latents: jax.Array,
    condition: Any,
    noise: jax.Array,
    timesteps: jax.Array,
    process: NoiseProcess,
    class_count: int = 0,
    prior_weight: float = 1.0,
) -> jax.Array:
    """Personalisation loss with prior preservation (Ruiz et al., "DreamBooth", 2023), a scalar.

    The mean error of the instance, plus ``prior_weight`` times that of the class.

    Args:
      predict: see the module docstring; for LoRA made by :func:`w2w.lora.adapted`.
      latents: scaled latents of instance images, then of class images, ``[batch, h, w, c]``.
      condition: of the instance prompt for the first, of the class prompt for the others.
      noise: standard normal, of the latents' shape.
      timesteps: int ``[batch]``.
      process: noise schedule, and whether noise or velocity is predicted.
      class_count: number of class images, at the end of the batch.
      prior_weight: weight of the class's error.
    """
    count = len(latents) - class_count
    if not 0 < count <= len(latents):
        raise ValueError(f"{class_count} class images in a batch of {len(latents)}")
    errors = denoising_errors(predict, latents, condition, noise, timesteps, process)
    instance = errors[:count].mean()
    return instance + prior_weight * errors[count:].mean() if class_count else instance


def inversion(
    coefficients: jax.Array,
    space: subspace.Subspace,
    layout: lora.Layout,
    config: lora.LoraConfig,
    apply_fn: Callable[..., jax.Array],
    params: Any,
    latents: jax.Array,
    condition: Any,
    noise: jax.Array,
    timesteps: jax.Array,
    process: NoiseProcess,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Denoising loss of one person's latents as a function of coefficients in a weight space.

    Dravid et al. (2024, eq. 3 and section 3.4): the mean error of the network with the adapter
    ``unproject(coefficients)``. Differentiate with respect to the first argument.

    Args:
      coefficients: ``[j]``, ``j`` at most the components of the space.
      space: principal subspace of flat adapters.
      layout: order of the flat adapters.
      config: of the adapters; gives the scale.
      apply_fn: ``(params, noisy, timesteps, condition) -> prediction``, not jitted.
      params: of the network.
      latents: see :func:`denoising_errors`, likewise the rest.
      condition: what the network is told, pytree of ``[batch, ...]``.
      noise: standard normal, of the latents' shape.
      timesteps: int ``[batch]``.
      process: noise schedule, and whether noise or velocity is predicted.
      mask: None or weights ``[batch, h, w, 1]``.

    Returns:
      A scalar.
    """
    adapter = lora.unflatten(subspace.unproject(space, coefficients), layout)
    predict = lora.adapted(apply_fn, params, adapter, config)
    return denoising_errors(predict, latents, condition, noise, timesteps, process, mask).mean()
