"""Drawing images with many adapted models at once, with delayed injection of edits."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from w2w import lora, models
from w2w.models import FaceModel


class Drawing(struct.PyTreeNode):
    """Settings of the sampler; static.

    Attributes:
      steps: Heun steps.
      guidance: scale of classifier-free guidance.
      shift: time shift of the sampler's grid.
    """

    steps: int = struct.field(pytree_node=False, default=12)
    guidance: float = struct.field(pytree_node=False, default=2.0)
    shift: float = struct.field(pytree_node=False, default=1.5)


@functools.partial(jax.jit, static_argnames=("model", "config", "layout", "drawing"))
def _draw(
    params: Any,
    early: jax.Array,
    late: jax.Array,
    injection: jax.Array,
    text: jax.Array,
    empty: jax.Array,
    key: jax.Array,
    model: FaceModel,
    config: lora.LoraConfig,
    layout: lora.Layout,
    drawing: Drawing,
) -> jax.Array:
    def one(early, late):
        def predict(x, times, features, t):
            vector = jnp.where(t <= injection, late, early)
            adapter = lora.unflatten(vector, layout)
            return lora.adapted(model.predict, params["unet"], adapter, config)(x, times, features)

        latents = models.sample_latents(
            predict,
            key,
            text,
            empty,
            model.latent_shape,
            steps=drawing.steps,
            guidance=drawing.guidance,
            shift=drawing.shift,
        )
        return model.to_images(params, latents)

    return (jax.vmap(one)(early, late) + 1.0) / 2.0


def draw(
    vectors: jax.Array | np.ndarray,
    prompts: list[str],
    key: jax.Array,
    params: dict,
    model: FaceModel,
    config: lora.LoraConfig,
    layout: lora.Layout,
    drawing: Drawing,
    *,
    before: jax.Array | np.ndarray | None = None,
    injection: float = 1.0,
    group: int = 16,
) -> np.ndarray:
    """One image for each adapter and prompt.

    All adapters start from the same noise, so that images differ only by their weights; images of
    one adapter start from different noise.

    Args:
      vectors: flat adapters ``[P, D]``.
      prompts: ``n`` prompts; give one several times for several images.
      key: key of the noise.
      params: parameters of the base model.
      model: the face model.
      config: the adapters' rank and scale.
      layout: order of the adapters' values.
      drawing: sampler settings.
      before: adapters ``[P, D]`` in use while ``t > injection`` (delayed injection, section 4.3 of
        the paper: the layout of the image then stays that of the unedited model); ``vectors`` if
        None.
      injection: time in [0, 1] from which on ``vectors`` are in use; 1 is from the start.
      group: adapters per compiled call.

    Returns:
      float32 ``[P, n, size, size, 1]`` in [0, 1].
    """
    vectors = jnp.asarray(vectors)
    early = vectors if before is None else jnp.asarray(before)
    if early.shape != vectors.shape:
        raise ValueError(f"adapters before {early.shape}, after {vectors.shape}")
    text = model.encode(params, model.tokenizer(prompts))
    empty = model.encode(params, model.tokenizer([""]))
    count = vectors.shape[0]
    group = min(group, count)
    out = []
    for start in range(0, count, group):
        rows = np.minimum(np.arange(start, start + group), count - 1)
        images = _draw(
            params,
            early[rows],
            vectors[rows],
            jnp.float32(injection),
            text,
            empty,
            key,
            model,
            config,
            layout,
            drawing,
        )
        out.append(np.asarray(images))
    return np.concatenate(out)[:count]
