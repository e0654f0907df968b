"""Stages that build a weight space: photographs, base model, population of adapters, space."""

import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from common import distributed, sharding, storage
from common.writer import Writer
from w2w import base, context, data, evaluate, models, population, subspace, train
from w2w.context import Context


def faces(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: canonical photographs, and what the independent networks say of them."""
    del inputs
    photographs = data.Photographs(config.image_size, config.celeba, config.olivetti)
    found = photographs.faces()
    images = found.images[..., None]
    labels = evaluate.attribute_values(images)
    storage.save_arrays(
        out / "faces.safetensors",
        {
            "images": found.images,
            "identity": found.identity,
            "descriptors": evaluate.describe(images),
            **{f"label.{name}": values for name, values in labels.items()},
        },
    )
    chosen = space_identities(config.models, config.celeba, config.olivetti)
    rng = np.random.default_rng(config.seed)
    rows = [np.flatnonzero(found.identity == identity) for identity in chosen]
    jitter = data.Jitter(**config.jitter)
    frames = np.stack([_frames(photographs, r, config.frames, jitter, rng) for r in rows])
    storage.save_arrays(out / "frames.safetensors", {"frames": frames, "identity": chosen})


def space_identities(
    count: int, celeba: int = data.CELEBA_PHOTOGRAPHS, olivetti: int = data.OLIVETTI_PEOPLE
) -> np.ndarray:
    """The first ``count`` identities of the population, in a fixed shuffled order.

    The training people among the first ``olivetti`` (25 of 40) and (the first ``celeba``) CelebA
    photographs; never test or validation people.
    """
    known = [person for person in data.TRAINING_PEOPLE if person < olivetti]
    if count > len(known) + celeba:
        raise ValueError(f"{count} models asked for, {len(known) + celeba} training identities "
                         "exist")
    photographed = data.FIRST_CELEBA + np.random.default_rng(0).permutation(celeba)
    people = np.random.default_rng(1).permutation(known)
    if count <= len(people):
        return people[:count].astype(np.int32)
    chosen = np.concatenate([people, photographed[: count - len(people)]])
    return np.random.default_rng(2).permutation(chosen).astype(np.int32)


def _frames(
    photographs: data.Photographs, rows: np.ndarray, count: int, jitter: data.Jitter,
    rng: np.random.Generator,
) -> np.ndarray:
    """``count`` jittered frames, spread evenly over an identity's photographs."""
    each = -(-count // len(rows))
    frames = photographs.variants(rows, each, jitter, rng)
    return frames.transpose(1, 0, 2, 3).reshape(-1, *frames.shape[2:])[:count]


def obtain_base(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: the base model's weights, and images of the class drawn with it."""
    path = inputs["train"] / "face_base.safetensors" if "train" in inputs else Path(config.path)
    model, params, card = models.load(path)
    print(f"base model {path}: {card}", flush=True)
    shutil.copyfile(path, out / "face_base.safetensors")
    images = base.draw(
        model,
        params,
        [config.prompts.class_] * config.class_images,
        context.key(config, "class"),
        config.sample,
    )
    pixels = np.round(images[..., 0] * 255).astype(np.uint8)
    storage.save_arrays(out / "class_images.safetensors", {"images": pixels})


def populate(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: one adapter for each identity, group by group; a whole group is never done twice.

    Several processes share the groups out among them.
    """
    ctx = context.load(config, inputs["base"])
    arrays, _ = storage.load_arrays(inputs["faces"] / "frames.safetensors")
    vectors = fit_adapters(
        ctx,
        arrays["frames"],
        config,
        out / "groups",
        Writer(out),
        together=True,
    )
    if not distributed.is_main():
        return
    storage.save_arrays(
        out / "adapters.safetensors",
        {"vectors": vectors, "identity": arrays["identity"]},
        {"sha256": ctx.layout.sha256, "rank": config.lora.rank, "alpha": config.lora.alpha},
    )
    shutil.rmtree(out / "groups")


def fit_adapters(
    ctx: Context,
    frames: np.ndarray,
    config: ConfigDict,
    folder: Path,
    writer: Writer | None = None,
    together: bool = False,
) -> np.ndarray:
    """Trains an adapter on ``frames`` uint8 ``[N, n, size, size]`` of each identity; ``[N, D]``.

    Groups of ``config.adapter.group`` (for each device) are one compiled program, sharded over the
    devices of this process. With ``together``, all processes of the run make this call with one
    ``folder`` that they share, and divide the groups. All adapters share their random numbers (see
    :func:`w2w.train.make_population_step`), so neither the grouping nor the processes nor an
    interruption change the result.
    """
    recipe = context.adapter_recipe(config)
    mesh = sharding.make_mesh(devices=jax.local_devices())
    rows = NamedSharding(mesh, PartitionSpec("data"))
    shared = jax.device_put(ctx.shared, NamedSharding(mesh, PartitionSpec()))
    step = train.compiled_population_step(ctx.model, ctx.lora_config, recipe, rows)
    init_key = context.key(config, "adapter")
    key = jax.device_put(context.key(config, "frames"), NamedSharding(mesh, PartitionSpec()))
    groups = population.groups(len(frames), config.adapter.group, mesh.devices.size)
    paths = [folder / f"{number:04d}.safetensors" for number in range(len(groups))]
    first, every = (jax.process_index(), jax.process_count()) if together else (0, 1)
    for number in range(first, len(groups), every):
        group, path = groups[number], paths[number]
        if not path.is_file():
            start = time.perf_counter()
            size = len(group.indices)
            states = train.init_population(init_key, size, ctx.shared, ctx.lora_config, recipe)
            states = jax.device_put(states, rows)
            latents = jax.device_put(context.encode(ctx, frames[group.indices]), rows)
            for _ in range(recipe.num_steps):
                states, values = step(states, latents, key, shared)
            if not bool(jnp.isfinite(values).all()):
                raise FloatingPointError(f"adapters of group {number}: losses {values}")
            found = population.flatten_population(states.eval_params, ctx.layout)[: group.valid]
            folder.mkdir(parents=True, exist_ok=True)
            storage.save_arrays(path, {"vectors": np.asarray(found)})
            seconds = time.perf_counter() - start
            print(
                f"adapters: group {number + 1} of {len(groups)}, {group.valid} models, "
                f"{group.valid / seconds:.2f} per second, loss {float(values.mean()):.4f}",
                flush=True,
            )
            if writer is not None:
                writer.scalars(number, {"loss": values.mean(), "seconds": seconds})
    if together:
        distributed.barrier("adapters")
    return np.concatenate([storage.load_arrays(path)[0]["vectors"] for path in paths])


def space(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: the principal subspace of the population, its coefficients, and its quality."""
    arrays, header = storage.load_arrays(inputs["populate"] / "adapters.safetensors")
    vectors = arrays["vectors"]
    found = subspace.fit(vectors, min(config.components, len(vectors) - 1))
    subspace.save(out / "space.safetensors", found, header)
    coefficients = subspace.project(found, jnp.asarray(vectors))
    storage.save_arrays(
        out / "coefficients.safetensors",
        {"coefficients": coefficients, "identity": arrays["identity"]},
    )
    held = max(1, len(vectors) // 8)
    counts = [n for n in config.counts if n <= len(vectors) - held]
    ks = [k for k in config.reconstruction_ks if k < min(counts)]
    table = subspace.heldout_reconstruction(vectors[held:], vectors[:held], counts, ks)
    storage.save_json(
        out / "quality.json",
        {
            "explained": np.asarray(subspace.explained_variance(found)).tolist(),
            "heldout_models": held,
            "counts": counts,
            "ks": ks,
            "heldout_error": np.asarray(table).tolist(),
        },
    )
