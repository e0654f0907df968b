"""From photographs to latents: the people of a folder, framed views, the posterior of each view.

The settings are those of a stage that looks at photographs (``config.invert``, ``config.train``)
with the seed and the base model's ``size`` beside them.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from common import rng
from common.config import ConfigError
from common.storage import save_arrays
from w2w.adapters import photographs
from w2w.adapters.photographs import Frame, Person, PhotographError
from w2w.diffusion import latents
from w2w.diffusion.latents import Photographs
from w2w.diffusion.pipeline import Pipeline


def find_people(config: ConfigDict, where: str) -> list[Person]:
    """The people of ``config.images`` and, where the settings have them, ``config.masks``.

    Raises:
      ConfigError: see :func:`w2w.adapters.photographs.find`; the message begins with ``where``.
    """
    try:
        return photographs.find(config.images, config.get("masks", ""))
    except PhotographError as error:
        raise ConfigError(f"{where}: {error}") from error


def check_views(config: ConfigDict) -> None:
    """Raises ValueError for settings of views that mean nothing."""
    views = config.views, config.zoom, config.mirror
    photographs.draw_frames((1, 1), (1, 1), *views, np.random.SeedSequence(0))


def image_size(config: ConfigDict, pipeline: Pipeline) -> tuple[int, int]:
    """Height and width in pixels that photographs are brought to.

    Raises:
      ConfigError: a size that the networks cannot process.
    """
    factor = pipeline.vae.config.factor
    multiple = factor * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    height, width = (factor * side for side in pipeline.sample_size)
    if config.size:
        height = width = config.size
    if height % multiple or width % multiple or min(height, width) < 1:
        raise ConfigError(f"config.base.size: {height} x {width}, not multiples of {multiple}")
    return height, width


def frames_of(
    person: Person, path: pathlib.Path, picture: Image.Image, size: tuple[int, int], config: Any
) -> list[Frame]:
    """The views of one photograph; they depend on the seed and the two names alone."""
    words = (config.seed, rng.name_hash(person.name), rng.name_hash(path.name))
    seed = np.random.SeedSequence(words)
    views = config.views, config.zoom, config.mirror
    return photographs.draw_frames(picture.size, size, *views, seed)


def count_views(person: Person, size: tuple[int, int], config: ConfigDict) -> int:
    """Number of views of a person's photographs, all of which are read.

    Raises:
      PhotographError: a picture cannot be read.
    """
    pictures = ((path, photographs.read_image(path)) for path in person.images)
    return sum(len(frames_of(person, path, image, size, config)) for path, image in pictures)


def encode_person(person: Person, pipeline: Pipeline, config: ConfigDict) -> dict[str, np.ndarray]:
    """``mean`` and ``deviation [views, h, w, c]``, and ``mask [views, h, w, 1]`` if there are any.

    Raises:
      PhotographError: a picture cannot be read, a mask does not fit its photograph, or none of the
        views meets a mask.
    """
    size = image_size(config, pipeline)
    latent_size = size[0] // pipeline.vae.config.factor, size[1] // pipeline.vae.config.factor
    found: dict[str, list[np.ndarray]] = {"mean": [], "deviation": []}
    if person.masks:
        found["mask"] = []
    for i, path in enumerate(person.images):
        image = photographs.read_image(path)
        mask = photographs.read_mask(person.masks[i], image) if person.masks else None
        for frame in frames_of(person, path, image, size, config):
            pixels = photographs.apply_frame(image, frame, size) / 127.5 - 1
            mean, deviation = latents.posterior(pipeline, jnp.asarray(pixels))
            found["mean"].append(np.asarray(mean))
            found["deviation"].append(np.asarray(deviation))
            if mask is not None:
                weights = photographs.apply_frame(mask, frame, latent_size)
                found["mask"].append(weights[..., None])
    if person.masks and not any(mask.any() for mask in found["mask"]):
        raise PhotographError(
            f"{person.masks[0].parent}: no view of {person.name} meets a mask; more views or "
            "pictures of the model's proportions help"
        )
    return {name: np.stack(arrays) for name, arrays in found.items()}


def encode(
    people: Sequence[Person], pipeline: Pipeline, config: ConfigDict, views: int = 0
) -> Photographs:
    """Latents of all people's photographs, ``[people, views, ...]``, padded.

    Args:
      people: their photographs and masks.
      pipeline: holds the autoencoder.
      config: see the module docstring.
      views: length of the axis of views; 0 for the largest number of a person's.

    Raises:
      PhotographError: see :func:`encode_person`.
    """
    found = [encode_person(person, pipeline, config) for person in people]
    counts = [len(arrays["mean"]) for arrays in found]
    length = views or max(counts)

    def padded(name: str) -> jax.Array:
        rows = [(arrays[name], (0, length - len(arrays[name]))) for arrays in found]
        return jnp.stack([np.pad(row, [more, (0, 0), (0, 0), (0, 0)]) for row, more in rows])

    mask = padded("mask") if "mask" in found[0] else None
    return Photographs(padded("mean"), padded("deviation"), jnp.asarray(counts, jnp.int32), mask)


def save_pictures(
    people: Sequence[Person], config: ConfigDict, size: tuple[int, int], out: pathlib.Path
) -> None:
    """``photographs.safetensors``: what was looked at, uint8 ``[people, height, width, 3]``.

    The first view of each person's first photograph; what a mask leaves out is dimmed.
    """
    shown = []
    for person in people:
        path = person.images[0]
        image = photographs.read_image(path)
        frame = frames_of(person, path, image, size, config)[0]
        pixels = photographs.apply_frame(image, frame, size)
        if person.masks:
            mask = photographs.read_mask(person.masks[0], image)
            pixels = pixels * (0.3 + 0.7 * photographs.apply_frame(mask, frame, size)[..., None])
        shown.append(np.round(pixels).astype(np.uint8))
    save_arrays(out / "photographs.safetensors", {"pictures": np.stack(shown)})
