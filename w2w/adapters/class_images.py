"""Images of the class that DreamBooth's prior preservation looks at: somebody's, or drawn ones."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from ml_collections import ConfigDict

from common import rng
from common.config import ConfigError
from w2w import population
from w2w.adapters import base_model, photographs
from w2w.adapters.draw import save_image
from w2w.adapters.encode import image_size
from w2w.adapters.photographs import Person, PhotographError
from w2w.diffusion.generate import generate

NAME = "class"  # of the "person" whose photographs they are, and of the stage


def find(folder: str | pathlib.Path) -> Person:
    """The images of a folder, as if of one person.

    Raises:
      ConfigError: no such folder, no images, or images of several classes in sub-folders.
    """
    try:
        found = photographs.find(folder)
    except PhotographError as error:
        raise ConfigError(f"config.train.class_images: {error}") from error
    if len(found) > 1:
        raise ConfigError(
            f"config.train.class_images: {folder} has {len(found)} sub-folders; expected pictures"
        )
    return found[0]._replace(name=NAME)


def draw(config: ConfigDict, inputs: dict[str, pathlib.Path], out: pathlib.Path) -> None:
    """Stage: ``images/*.png`` of the class prompt by the base model alone, as in DreamBooth.

    Each image has noise of its own, whatever its batch; images that are there are kept.
    """
    del inputs
    pipeline = base_model.load(config.pipeline, config.dtype, config.remat)
    size = image_size(config, pipeline)
    factor = pipeline.vae.config.factor
    shape = size[0] // factor, size[1] // factor, pipeline.unet.config.in_channels
    key = rng.stream(jax.random.key(config.seed), "class")
    folder = out / "images"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i:04d}.png" for i in range(config.class_count)]
    groups = population.groups(len(paths), config.class_at_once)
    for group in tqdm.tqdm(groups, desc="class images", unit="batch", disable=None):
        if all(paths[i].is_file() for i in group.indices):
            continue
        first = int(group.indices[0])
        noise = [jax.random.normal(jax.random.fold_in(key, i), shape) for i in group.indices]
        images = generate(
            pipeline,
            [config.class_prompt] * len(noise),
            key=jax.random.fold_in(rng.stream(key, "steps"), first),  # of stochastic schedulers
            latents=jnp.stack(noise),
            steps=config.class_steps,
            guidance=config.class_guidance,
            image_size=size,
        )
        for i, image in zip(group.indices[: group.valid], images, strict=False):  # no padding
            save_image(paths[i], np.asarray(image, np.float32))
    print(f"drew {len(paths)} images of {config.class_prompt!r}")
