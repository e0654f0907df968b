"""Stage that draws: images of trained, sampled, edited and inverted models."""

import io
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from common import figures, rng
from common.storage import load_arrays, load_json, write_whole
from w2w import population
from w2w.adapters import base_model
from w2w.adapters import stages as own_adapters
from w2w.adapters.encode import image_size
from w2w.diffusion.generate import generate
from w2w.diffusion.pipeline import Pipeline
from w2w.lora_layout import Layout, LoraConfig

FIGURES = {
    "trained.png": "A photograph of each of the first trained people, and images of the adapter.",
    "samples.png": "The mean model and sampled models (rows), one column for each prompt and seed.",
    "edits.png": "Edited models (rows) by strength, all from the first seed of the first prompt.",
    "inversions.png": "What was looked at (masked parts dimmed), and images of its inversion.",
}


def texts(config: ConfigDict) -> list[str]:
    """The prompt of each column."""
    return [prompt for prompt in config.prompts for _ in range(config.images)]


def draw_models(
    names: Sequence[str],
    vectors: np.ndarray,
    pipeline: Pipeline,
    layout: Layout,
    lora_config: LoraConfig,
    config: ConfigDict,
    folder: pathlib.Path,
    columns: int | None = None,
) -> list[list[np.ndarray]]:
    """Images of each model, and PNG files of them at full size; those that are there are kept.

    Args:
      names: of the models; images are called ``<name>-<column>.png``.
      vectors: ``[N, D]``.
      pipeline: the base model.
      layout: order of the vectors.
      lora_config: rank and scale of the adapters.
      config: prompts, guidance, steps.
      folder: of the PNG files.
      columns: number of images of each model; None for all of :func:`texts`.

    Returns:
      Thumbnails, uint8 ``[height, width, 3]``, by model and column.
    """
    size = image_size(config, pipeline)
    prompts = texts(config)[:columns]
    factor = pipeline.vae.config.factor
    shape = size[0] // factor, size[1] // factor, pipeline.unet.config.in_channels
    key = rng.stream(jax.random.key(config.seed), "draw")
    seeds = jnp.stack(
        [jax.random.normal(jax.random.fold_in(key, i), shape) for i in range(config.images)]
    )
    latents = jnp.tile(seeds, (len(config.prompts), 1, 1, 1))[:columns]
    safe = [name.replace("/", "_") for name in names]
    paths = [[folder / f"{name}-{i}.png" for i in range(len(prompts))] for name in safe]
    folder.mkdir(exist_ok=True)
    for group in population.groups(len(names), config.at_once):
        chosen = group.indices[: group.valid]
        if all(path.is_file() for i in chosen for path in paths[i]):
            continue
        images = generate(
            pipeline,
            prompts,
            config.negative or None,
            key=key,
            latents=latents,
            steps=config.steps,
            guidance=config.guidance,
            adapter=population.unflatten_population(jnp.asarray(vectors[group.indices]), layout),
            lora_config=lora_config,
            image_size=size,
        )
        for i, rows in zip(chosen, np.asarray(images, np.float32), strict=False):  # no padding
            for path, image in zip(paths[i], rows, strict=True):
                save_image(path, image)
    return [[thumbnail(Image.open(path), config.thumbnail) for path in row] for row in paths]


def save_image(path: pathlib.Path, image: np.ndarray) -> None:
    """Writes an image in [0, 1], ``[height, width, 3]``, as PNG; the file appears whole or not."""
    buffer = io.BytesIO()
    Image.fromarray(np.round(255 * image).astype(np.uint8)).save(buffer, "PNG")
    write_whole(path, buffer.getvalue())


def thumbnail(image: Image.Image, side: int) -> np.ndarray:
    """uint8 ``[height, width, 3]`` of at most ``side`` pixels a side; nothing is enlarged."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(small)


def draw(config: ConfigDict, inputs: dict[str, pathlib.Path], out: pathlib.Path) -> None:
    """Stage: ``images/*.png`` of all models, and a sheet of each kind (:data:`FIGURES`)."""
    bank = own_adapters.open_bank(inputs)
    space, _ = own_adapters.open_space(inputs)
    pipeline = base_model.load(config.pipeline, config.dtype, config.remat)
    lora_config = base_model.lora_config(
        bank.layout, bank.alpha, pipeline.params["unet"], config.pipeline
    )

    def drawn(names, vectors, columns=None):
        settings = pipeline, bank.layout, lora_config, config, out / "images", columns
        return draw_models(names, vectors, *settings)

    headings = texts(config)
    if "train" in inputs:
        looked, _ = load_arrays(inputs["train"] / "photographs.safetensors")
        trained = load_json(inputs["train"] / "train.json")["people"][: len(looked["pictures"])]
        pairs = {row["name"]: looked["pictures"][i] for i, row in enumerate(trained)}
        names = [name for name in pairs if name in bank.names]
        vectors = np.stack([bank[bank.names.index(name)] for name in names])
        rows = drawn([f"trained-{name}" for name in names], vectors.astype(np.float32))
        for row, name in zip(rows, names, strict=True):
            row.insert(0, thumbnail(Image.fromarray(pairs[name]), config.thumbnail))
        columns = ["photograph", *headings]
        figures.grid(rows, out / "trained.png", row_labels=names, column_labels=columns)
    arrays, header = load_arrays(inputs["sample"] / "models.safetensors")
    names = [own_adapters.MEAN, *header["names"]]
    rows = drawn(names, np.concatenate([np.asarray(space.mean)[None], arrays["vectors"]]))
    figures.grid(rows, out / "samples.png", row_labels=names, column_labels=headings)
    if "edit" in inputs:
        arrays, header = load_arrays(inputs["edit"] / "models.safetensors")
        count = len(header["strengths"])
        flat = [row[0] for row in drawn(header["names"], arrays["vectors"], 1)]
        rows = [flat[i : i + count] for i in range(0, len(flat), count)]
        labels = [f"{model}, {attribute}" for attribute, model in header["rows"]]
        strengths = [f"{strength:+g}" for strength in header["strengths"]]
        figures.grid(rows, out / "edits.png", row_labels=labels, column_labels=strengths)
    if "invert" in inputs:
        arrays, header = load_arrays(inputs["invert"] / "models.safetensors")
        looked, _ = load_arrays(inputs["invert"] / "photographs.safetensors")
        rows = drawn(header["names"], arrays["vectors"])
        for row, picture in zip(rows, looked["pictures"], strict=True):
            row.insert(0, thumbnail(Image.fromarray(picture), config.thumbnail))
        columns = ["photograph", *headings]
        path = out / "inversions.png"
        figures.grid(rows, path, row_labels=header["names"], column_labels=columns)
