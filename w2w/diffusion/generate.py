"""Images from prompts with one adapter, a population, or adapters that change with time."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from w2w import lora
from w2w.diffusion import sampling
from w2w.diffusion.pipeline import Condition, Pipeline, predict
from w2w.diffusion.schedulers import Scheduler
from w2w.diffusion.unet import UNet


def generate(
    pipeline: Pipeline,
    prompts: str | Sequence[str],
    negative_prompts: str | Sequence[str] | None = None,
    *,
    key: jax.Array | None = None,
    latents: jax.Array | None = None,
    steps: int = 50,
    guidance: ArrayLike = 7.5,
    adapter: lora.Adapter | None = None,
    lora_config: lora.LoraConfig | None = None,
    multiplier: ArrayLike = 1.0,
    original: lora.Adapter | None = None,
    threshold: ArrayLike | None = None,
    image_size: tuple[int, int] | None = None,
    decode: bool = True,
) -> jax.Array:
    """Generates one image for each prompt (and each adapter).

    Sampling is one compiled program; other prompts, adapters, guidance scales, multipliers and
    thresholds do not compile again. With a population of adapters the base network's weights are
    shared: its products run once over all images.

    Args:
      pipeline: see :func:`w2w.diffusion.pipeline.load_pipeline`.
      prompts: texts.
      negative_prompts: texts to steer away from, one or as many as prompts; None for the empty
        text (SDXL: for zero features, where its files say so).
      key: random key of the initial latents, if they are not given, and of stochastic schedulers.
      latents: standard normal ``[prompts, h, w, channels]``, the same for all adapters, or
        ``[adapters, prompts, h, w, channels]``.
      steps: steps of the pipeline's scheduler.
      guidance: classifier-free guidance scale; exactly 1 as a Python number skips the negative
        prompts (and half of the work).
      adapter: factors ``a [in, rank]``, ``b [rank, out]``, or with a leading axis for a
        population; None for the base network.
      lora_config: of the adapter; gives the scale.
      multiplier: extra factor of the adapter.
      original: adapter for the timesteps above ``threshold`` (delayed injection).
      threshold: see :func:`w2w.diffusion.sampling.delayed`.
      image_size: height and width in pixels; None for the model's own.
      decode: return images instead of latents.

    Returns:
      Images in [0, 1], ``[prompts, height, width, 3]``, or scaled latents ``[prompts, h, w,
      channels]``; with a population ``[adapters, prompts, ...]``.

    Raises:
      ValueError: arguments that do not fit each other or the model.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise ValueError("no prompts")
    if (adapter is None) != (lora_config is None):
        raise ValueError("adapter and lora_config must be given together")
    if (original is None) != (threshold is None):
        raise ValueError("original and threshold must be given together")
    if original is not None and adapter is None:
        raise ValueError("original and threshold need the adapter that replaces the original")
    factor, (height, width) = pipeline.vae.config.factor, pipeline.sample_size
    size = image_size or (factor * height, factor * width)
    shape = _latent_shape(pipeline, size)
    population = _is_population(adapter)
    if latents is None:
        if key is None:
            raise ValueError("generate needs a key or latents")
        latents = jax.random.normal(jax.random.fold_in(key, 0), (len(texts), *shape))
    elif latents.shape[-4:] != (len(texts), *shape) or latents.ndim > 4 + population:
        raise ValueError(
            f"latents {latents.shape}, expected {(len(texts), *shape)}"
            f"{' or a leading axis of adapters' if population else ''}"
        )
    sampling_key = None if key is None else jax.random.fold_in(key, 1)
    condition = pipeline.encode_text(pipeline.tokenize(texts), size)
    negative = None
    if not (isinstance(guidance, int | float) and guidance == 1):
        negative = _negative(pipeline, negative_prompts, condition, len(texts), size)
    found = _sample(
        pipeline.params["unet"],
        latents,
        condition,
        negative,
        sampling_key,
        adapter,
        original,
        threshold,
        guidance,
        multiplier,
        unet=pipeline.unet,
        scheduler=pipeline.scheduler,
        steps=steps,
        lora_config=lora_config,
    )
    if not decode:
        return found
    images = pipeline.decode(found.reshape(-1, *shape))
    images = jnp.clip(0.5 * images + 0.5, 0.0, 1.0)
    return images.reshape(*found.shape[:-3], *images.shape[1:])


def _latent_shape(pipeline: Pipeline, size: tuple[int, int]) -> tuple[int, int, int]:
    factor = pipeline.vae.config.factor
    multiple = factor * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    if len(size) != 2 or any(side % multiple or side <= 0 for side in size):
        raise ValueError(f"image_size {size} must be two positive multiples of {multiple}")
    return size[0] // factor, size[1] // factor, pipeline.unet.config.in_channels


def _is_population(adapter: lora.Adapter | None) -> bool:
    ranks = {leaf.ndim for leaf in jax.tree.leaves(adapter)}
    if ranks - {2, 3} or len(ranks) > 1:
        raise ValueError(f"adapter factors must all have 2 axes or all 3, found {sorted(ranks)}")
    return ranks == {3}


def _negative(
    pipeline: Pipeline,
    prompts: str | Sequence[str] | None,
    condition: Condition,
    count: int,
    size: tuple[int, int],
) -> Condition:
    """The condition of the negative prompts."""
    if prompts is None and pipeline.zero_empty_negative:
        assert condition.pooled is not None  # of SDXL only
        zeros = jnp.zeros_like(condition.text), jnp.zeros_like(condition.pooled)
        return Condition(*zeros, condition.sizes)
    texts = [prompts or ""] * count if prompts is None or isinstance(prompts, str) else [*prompts]
    if len(texts) != count:
        raise ValueError(f"{len(texts)} negative prompts for {count} prompts")
    return pipeline.encode_text(pipeline.tokenize(texts), size)


@functools.partial(jax.jit, static_argnames=("unet", "scheduler", "steps", "lora_config"))
def _sample(
    params: Any,
    latents: jax.Array,
    condition: Condition,
    negative: Condition | None,
    key: jax.Array | None,
    adapter: lora.Adapter | None,
    original: lora.Adapter | None,
    threshold: ArrayLike | None,
    guidance: ArrayLike,
    multiplier: ArrayLike,
    *,
    unet: UNet,
    scheduler: Scheduler,
    steps: int,
    lora_config: lora.LoraConfig | None,
) -> jax.Array:
    """Latents of all prompts and adapters."""

    def network(weights, x, t, condition):
        apply_fn = functools.partial(predict, unet)
        times = jnp.full((len(x),), t)
        if weights is None:
            return apply_fn(params, x, times, condition)
        assert lora_config is not None  # given together
        adapted = lora.adapted(apply_fn, params, weights, lora_config, multiplier)
        return adapted(x, times, condition)

    def denoise(weights, x, t):
        bound = functools.partial(network, weights)
        return sampling.guided(bound, condition, negative, guidance)(x, t)

    def one(adapter, original, latents):
        denoiser: sampling.Denoiser = functools.partial(denoise, adapter)
        if original is not None:
            assert threshold is not None  # given together
            denoiser = sampling.delayed(denoise, original, adapter, threshold)
        return sampling.sample(denoiser, latents, scheduler, steps, key)

    if not _is_population(adapter):
        return one(adapter, original, latents)
    axes = 0, 0 if _is_population(original) else None, 0 if latents.ndim == 5 else None
    return jax.vmap(one, in_axes=axes)(adapter, original, latents)
