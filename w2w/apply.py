"""Stages that use a weight space: invert photographs, sample new models, edit."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from common import storage
from w2w import build, context, data, directions, evaluate, generate, inversion, subspace
from w2w.context import Context, FaceTable

INVERTED, TRAINED, REFERENCES = slice(0, 1), slice(0, 5), slice(5, 10)
"""A person's photographs: for single-image methods, for the multi-image one, for judging."""


def people(config: ConfigDict) -> tuple[int, ...]:
    """The people to invert: test people, or validation people where the config says so."""
    chosen = data.VALIDATION_PEOPLE if config.split == "validation" else data.TEST_PEOPLE
    return chosen[: config.people]


def photographs(table: FaceTable, who: tuple[int, ...], which: slice) -> np.ndarray:
    """uint8 ``[P, n, size, size]``."""
    return np.stack([table.faces.of(person)[which] for person in who])


def gallery(table: FaceTable, who: tuple[int, ...]) -> evaluate.Gallery:
    """The held-out photographs of people."""
    references = np.stack([table.descriptors[table.rows(p)][REFERENCES] for p in who])
    return evaluate.Gallery(evaluate.unit(references, table.centre), table.centre)


def invert(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: adapters of people outside the space, by four ways.

    ``w2w``: coefficients from one photograph; ``w2w-N``: the same in the space of the first N
    models; ``single``: an unconstrained adapter on the same photograph; ``multi``: one on five
    photographs. ``config.adapter`` is the recipe of the unconstrained ones.
    """
    ctx = context.load(config, inputs["base"])
    table = context.load_faces(inputs["faces"])
    population, _ = storage.load_arrays(inputs["populate"] / "adapters.safetensors")
    full, _ = subspace.load(inputs["space"] / "space.safetensors")
    who = people(config)
    one, many = photographs(table, who, INVERTED), photographs(table, who, TRAINED)
    recipe = context.inversion_recipe(config)

    def solve(space: subspace.Subspace) -> tuple[np.ndarray, np.ndarray]:
        found = inversion.invert(
            jnp.asarray(context.encode(ctx, one)),
            context.key(config, "inversion"),
            space,
            ctx.shared,
            ctx.layout,
            ctx.model,
            ctx.lora_config,
            recipe,
        )
        return np.asarray(found), np.asarray(subspace.unproject(space, found))

    arrays = {}
    arrays["coefficients"], arrays["w2w"] = _timed("inversion", functools.partial(solve, full))
    for count in config.counts:
        if count < len(population["vectors"]):
            space = subspace.fit(
                population["vectors"][:count], min(config.components, count - 1)
            )
            padded = subspace.widen(space, full.k)
            _, arrays[f"w2w-{count}"] = _timed(
                f"inversion, {count}", functools.partial(solve, padded)
            )
    who_array = np.asarray(who, np.int32)
    for name, photos in (("single", one), ("multi", many)):
        frames = np.tile(photos, (1, many.shape[1] // photos.shape[1], 1, 1))
        arrays[name] = build.fit_adapters(ctx, frames, config, out / name)
    storage.save_arrays(out / "inverted.safetensors", {**arrays, "person": who_array})


def _timed(what: str, function: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = function()
    print(f"{what}: {time.perf_counter() - start:.0f} s", flush=True)
    return result


def portraits(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: images of every inverted person by every method, and of the base model."""
    ctx = context.load(config, inputs["base"])
    arrays, _ = storage.load_arrays(inputs["invert"] / "inverted.safetensors")
    prompts = [config.prompts.instance] * config.images
    images = {}
    for name, vectors in arrays.items():
        if name not in ("person", "coefficients"):
            images[name] = draw(ctx, config, vectors, prompts)
    found = {name: to_bytes(values) for name, values in images.items()}
    known, _ = storage.load_arrays(inputs["base"] / "class_images.safetensors")
    base = known["images"][None, : config.images, ..., None]
    found["base"] = np.repeat(base, len(arrays["person"]), axis=0)
    storage.save_arrays(out / "portraits.safetensors", found)


def draw(
    ctx: Context, config: ConfigDict, vectors: Any, prompts: list[str], **more: Any
) -> np.ndarray:
    """Images ``[P, n, size, size, 1]`` in [0, 1] with the run's noise."""
    return generate.draw(
        vectors,
        prompts,
        context.key(config, "portraits"),
        ctx.params,
        ctx.model,
        ctx.lora_config,
        ctx.layout,
        ctx.drawing,
        **more,
    )


def to_bytes(images: np.ndarray) -> np.ndarray:
    """[0, 1] to uint8."""
    return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)


def sample(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: new models from the space, images of them, and their nearest training models.

    Models are drawn from, and compared in, the leading ``config.components`` components, as in the
    paper (1,000 of 64,974). With as many components as models the training models would be
    orthogonal to each other by construction, and every draw nearer to one of them.
    """
    ctx = context.load(config, inputs["base"])
    full, _ = subspace.load(inputs["space"] / "space.safetensors")
    space = subspace.truncate(full, min(config.components, full.k))
    trained, _ = storage.load_arrays(inputs["space"] / "coefficients.safetensors")
    known = jnp.asarray(trained["coefficients"])[:, : space.k]
    coefficients = subspace.sample(
        context.key(config, "sample"), space, config.samples, config.factor
    )
    prompts = [config.prompts.instance] * config.sample_images
    images = draw(ctx, config, subspace.unproject(space, coefficients), prompts)
    members = draw(ctx, config, subspace.unproject(space, known[: config.samples]), prompts)
    nearest, cosine = subspace.nearest(coefficients, known)
    _, own = subspace.nearest(known, known, exclude_self=True)
    storage.save_arrays(
        out / "samples.safetensors",
        {
            "coefficients": coefficients,
            "images": to_bytes(images),
            "training_images": to_bytes(members),
            "nearest": nearest,
            "nearest_cosine": cosine,
            "training_cosine": own,
        },
    )


def attribute_directions(
    coefficients: np.ndarray, labels: dict[str, np.ndarray], components: int
) -> dict[str, directions.Direction]:
    """Calibrated least-squares direction of each attribute, free of the others (joint debiasing).

    Args:
      coefficients: of the training models ``[N, k]``.
      labels: attribute name to ``[N]``; standardised here.
      components: the directions are fitted on this many leading components.
    """
    names = list(labels)
    targets = np.stack([(v - v.mean()) / v.std() for v in labels.values()], axis=1)
    leading = coefficients[:, :components]
    raw = directions.least_squares(leading, targets, intercept=True)
    raw = directions.pad(raw, coefficients.shape[1])
    found = {}
    for i, name in enumerate(names):
        others = np.delete(raw, i, axis=0)
        clean = directions.debias_joint(raw[i], others)
        found[name] = directions.calibrate(clean, coefficients)
    return found


def edit(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: every attribute at every strength on every inverted person, beside prompting."""
    ctx = context.load(config, inputs["base"])
    table = context.load_faces(inputs["faces"])
    space, _ = subspace.load(inputs["space"] / "space.safetensors")
    trained, _ = storage.load_arrays(inputs["space"] / "coefficients.safetensors")
    inverted, _ = storage.load_arrays(inputs["invert"] / "inverted.safetensors")
    rows = [table.rows(int(i)) for i in trained["identity"]]
    labels = {
        name: np.array([values[r].mean() for r in rows]) for name, values in table.labels.items()
    }
    found = attribute_directions(trained["coefficients"], labels, config.edit.components)
    start = jnp.asarray(inverted["coefficients"])
    before = subspace.unproject(space, start)
    prompts = [config.prompts.instance] * config.edit.images
    arrays = {}
    for name, direction in found.items():
        strip = []
        for alpha in config.edit.strengths:
            moved = directions.edit(start, direction, alpha)
            vectors = subspace.unproject(space, moved)
            strip.append(
                draw(
                    ctx,
                    config,
                    vectors,
                    prompts,
                    before=before,
                    injection=config.edit.injection,
                )
            )
        arrays[f"edit.{name}"] = to_bytes(np.stack(strip, axis=1))
        arrays[f"direction.{name}"] = np.asarray(direction.unit)
        arrays[f"strength.{name}"] = np.asarray(direction.strength)
        for word in config.edit.prompts[name]:
            prompted = [f"sks {word}"] * config.edit.images
            arrays[f"prompt.{name}.{word}"] = to_bytes(draw(ctx, config, before, prompted))
    storage.save_arrays(out / "edits.safetensors", arrays, {"strengths": config.edit.strengths})

