"""Stage that inverts photographs: from pictures of people to models of the space."""

import pathlib
import shutil
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from PIL import Image

from common import rng, sharding
from common.checkpoint import Checkpointer
from common.config import ConfigError
from common.storage import save_arrays
from common.writer import Writer
from w2w import population, subspace
from w2w.adapters import base_model, photographs
from w2w.adapters import stages as own_adapters
from w2w.adapters.photographs import Frame, Person, PhotographError
from w2w.diffusion import inversion
from w2w.diffusion.inversion import Photographs, Problem, Recipe, Shared
from w2w.diffusion.pipeline import Pipeline
from w2w.subspace import Subspace

PREFIX = "inverted-"  # of the names of inverted models, before the person's


def find_people(config: ConfigDict) -> list[Person]:
    """The people of ``config.images`` and ``config.masks``.

    Raises:
      ConfigError: see :func:`w2w.adapters.photographs.find`.
    """
    try:
        return photographs.find(config.images, config.masks)
    except PhotographError as error:
        raise ConfigError(f"config.invert: {error}") from error


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
        raise ConfigError(f"config.invert.size: {height} x {width}, not multiples of {multiple}")
    return height, width


def chosen_components(space: Subspace, count: int, dtype: str) -> Subspace:
    """The leading components of a space in a type of their own.

    Raises:
      ConfigError: more components than there are, or an unknown type.
    """
    if not 0 <= count <= space.k:
        raise ConfigError(f"config.invert.components = {count}; the space has {space.k}")
    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"config.invert.component_dtype = {dtype!r}: not float32 or bfloat16")
    return subspace.narrow(subspace.truncate(space, count or space.k), jnp.dtype(dtype))


def recipe_of(config: ConfigDict) -> Recipe:
    """The recipe of the configuration.

    Raises:
      ConfigError: a value that means nothing, also among those of the views.
    """
    try:
        photographs.draw_frames(
            (1, 1), (1, 1), config.views, config.zoom, config.mirror, np.random.SeedSequence(0)
        )
        return Recipe(
            config.steps, config.batch, config.learning_rate, config.weight_decay, config.units
        )
    except ValueError as error:
        raise ConfigError(f"config.invert: {error}") from error


def frames_of(
    person: Person, path: pathlib.Path, picture: Image.Image, size: tuple[int, int], config: Any
) -> list[Frame]:
    """The views of one photograph; they depend on the seed and the two names alone."""
    words = (config.seed, rng.name_hash(person.name), rng.name_hash(path.name))
    seed = np.random.SeedSequence(words)
    views = config.views, config.zoom, config.mirror
    return photographs.draw_frames(picture.size, size, *views, seed)


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
            mean, deviation = inversion.posterior(pipeline, jnp.asarray(pixels))
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


def encode(people: list[Person], pipeline: Pipeline, config: ConfigDict) -> Photographs:
    """Latents of all people's photographs, ``[people, views, ...]``, padded.

    Raises:
      PhotographError: see :func:`encode_person`.
    """
    found = [encode_person(person, pipeline, config) for person in people]
    counts = [len(views["mean"]) for views in found]

    def padded(name: str) -> jax.Array:
        rows = [(views[name], (0, max(counts) - len(views[name]))) for views in found]
        return jnp.stack([np.pad(row, [more, (0, 0), (0, 0), (0, 0)]) for row, more in rows])

    mask = padded("mask") if "mask" in found[0] else None
    return Photographs(padded("mean"), padded("deviation"), jnp.asarray(counts, jnp.int32), mask)


def invert(config: ConfigDict, inputs: dict[str, pathlib.Path], out: pathlib.Path) -> None:
    """Stage: the model of each person; ``models.safetensors`` also has both losses of each."""
    people = find_people(config)
    bank = own_adapters.open_bank(inputs)
    whole, training = own_adapters.open_space(inputs)
    space = chosen_components(whole, config.components, config.component_dtype)
    pipeline = base_model.load(config.pipeline, config.dtype, config.remat)
    params = pipeline.params["unet"]
    lora_config = base_model.lora_config(bank.layout, bank.alpha, params, config.pipeline)
    problem = Problem(
        inversion.predictor(pipeline.unet),
        pipeline.scheduler.process,
        bank.layout,
        lora_config,
        recipe_of(config),
    )
    tokens = pipeline.tokenize([config.prompt])
    condition = pipeline.encode_text(tokens, image_size(config, pipeline))
    latents = encode(people, pipeline, config)
    print(
        f"inverting {sum(len(p.images) for p in people)} photographs of {len(people)} people, "
        f"{int(latents.views.sum())} views, {space.k} components",
        flush=True,
    )

    devices = jax.local_devices()[: len(people)]
    mesh = sharding.make_mesh(devices=devices)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    shared = Shared(space, params, condition)
    shared = jax.device_put(shared, NamedSharding(mesh, PartitionSpec()))
    seeds = np.asarray([rng.name_hash(person.name) for person in people], np.uint32)
    evaluate = jax.jit(inversion.make_evaluation(problem, config.draws))
    key = jax.random.key(config.seed)
    groups = population.groups(len(people), config.at_once or len(people), len(devices))
    parts = []
    for number, group in enumerate(groups):
        part, own = jax.tree.map(
            lambda leaf, chosen=group.indices: jax.device_put(leaf[chosen], rows),
            (latents, seeds),
        )
        with (
            closing(Checkpointer(out / "groups" / f"{number}", keep=1)) as checkpointer,
            closing(Writer(out)) as writer,
        ):
            beta = inversion.invert(
                part,
                own,
                shared,
                problem,
                rng.stream(key, "invert"),
                checkpointer=checkpointer,
                writer=writer,
                save_every=config.save_every,
                name="invert" if len(groups) == 1 else f"invert{number}",
            )
        judge = rng.stream(key, "judge")
        before = evaluate(jnp.zeros_like(beta), part, own, shared, judge)
        parts.append((beta, before, evaluate(beta, part, own, shared, judge)))
    beta, before, after = population.collect(parts, groups)
    nearest, cosine = subspace.nearest(jnp.asarray(beta), jnp.asarray(training[:, : space.k]))
    full = np.pad(beta, [(0, 0), (0, whole.k - space.k)])
    arrays = {
        "coefficients": full,
        "vectors": subspace.unproject(whole, jnp.asarray(full)),
        "loss_of_mean_model": before,
        "loss": after,
        "nearest": nearest,
        "cosine": cosine,
    }
    header = {"names": [PREFIX + person.name for person in people], "components": space.k}
    save_arrays(out / "models.safetensors", arrays, header)
    save_pictures(people, config, image_size(config, pipeline), out)
    shutil.rmtree(out / "groups")
    print(f"denoising loss: {before.mean():.4g} of the mean model, {after.mean():.4g} inverted")


def save_pictures(
    people: list[Person], config: ConfigDict, size: tuple[int, int], out: pathlib.Path
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
