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
    photographs = data.Photographs(config.image_size)
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
    chosen = space_identities(config.models)
    rng = np.random.default_rng(config.seed)
    rows = [np.flatnonzero(found.identity == identity) for identity in chosen]
    frames = np.stack([_frames(photographs, r, config.frames, rng) for r in rows])
    storage.save_arrays(out / "frames.safetensors", {"frames": frames, "identity": chosen})


def space_identities(count: int) -> np.ndarray:
    """The first ``count`` identities of the population, in a fixed shuffled order.

    The 25 Olivetti training people and CelebA photographs; never test or validation people.
    """
    available = [*data.TRAINING_PEOPLE, *range(data.FIRST_CELEBA, data.FIRST_CELEBA + 999)]
    if count > len(available):
        raise ValueError(f"{count} models asked for, {len(available)} training identities exist")
    celeba = np.random.default_rng(0).permutation(available[len(data.TRAINING_PEOPLE) :])
    people = np.random.default_rng(1).permutation(available[: len(data.TRAINING_PEOPLE)])
    if count <= len(people):
        return people[:count].astype(np.int32)
    chosen = np.concatenate([people, celeba[: count - len(people)]])
    return np.random.default_rng(2).permutation(chosen).astype(np.int32)


def _frames(
    photographs: data.Photographs, rows: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """``count`` jittered frames, spread evenly over an identity's photographs."""
    each = -(-count // len(rows))
    frames = photographs.variants(rows, each, data.Jitter(), rng)
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
    """Stage: one adapter for each identity, group by group; a whole group is never done twice."""
    ctx = context.load(config, inputs["base"])
    arrays, _ = storage.load_arrays(inputs["faces"] / "frames.safetensors")
    vectors = fit_adapters(
        ctx,
        arrays["frames"],
        arrays["identity"],
        config,
        out / "groups",
        Writer(out),
    )
    storage.save_arrays(
        out / "adapters.safetensors",
        {"vectors": vectors, "identity": arrays["identity"]},
        {"sha256": ctx.layout.sha256, "rank": config.lora.rank, "alpha": config.lora.alpha},
    )
    if distributed.is_main():
        shutil.rmtree(out / "groups")


def fit_adapters(
    ctx: Context,
    frames: np.ndarray,
    identity: np.ndarray,
    config: ConfigDict,
    folder: Path,
    writer: Writer | None = None,
) -> np.ndarray:
    """Trains an adapter on ``frames`` uint8 ``[N, n, size, size]`` of each identity; ``[N, D]``.

    Groups of ``config.adapter.group`` are one compiled program, sharded over the devices. Each
    adapter's random numbers depend on its identity only, so neither the grouping nor an
    interruption changes the result.
    """
    recipe = context.adapter_recipe(config)
    mesh = sharding.make_mesh()
    rows = NamedSharding(mesh, PartitionSpec("data"))
    shared = jax.device_put(ctx.shared, NamedSharding(mesh, PartitionSpec()))
    step = train.compiled_population_step(ctx.model, ctx.lora_config, recipe)
    init_key, data_key = context.key(config, "adapter"), context.key(config, "frames")
    parts = []
    groups = population.groups(len(frames), config.adapter.group, mesh.devices.size)
    for number, group in enumerate(groups):
        path = folder / f"{number:04d}.safetensors"
        if not path.is_file():
            start = time.perf_counter()
            size = len(group.indices)
            states = train.init_population(init_key, size, ctx.shared, ctx.lora_config, recipe)
            states = jax.device_put(states, rows)
            keys = jax.device_put(
                jax.vmap(lambda i: jax.random.fold_in(data_key, i))(
                    jnp.asarray(identity[group.indices])
                ),
                rows,
            )
            latents = jax.device_put(context.encode(ctx, frames[group.indices]), rows)
            for _ in range(recipe.num_steps):
                states, values = step(states, latents, keys, shared)
            if not bool(jnp.isfinite(values).all()):
                raise FloatingPointError(f"adapters of group {number}: losses {values}")
            found = population.flatten_population(states.params, ctx.layout)[: group.valid]
            folder.mkdir(parents=True, exist_ok=True)
            storage.save_arrays(path, {"vectors": np.asarray(found)})
            seconds = time.perf_counter() - start
            print(
                f"adapters: {sum(g.valid for g in groups[: number + 1])} of {len(frames)}, "
                f"{group.valid / seconds:.2f} per second, loss {float(values.mean()):.4f}",
                flush=True,
            )
            if writer is not None:
                writer.scalars(number, {"loss": values.mean(), "seconds": seconds})
        parts.append(storage.load_arrays(path)[0]["vectors"])
    return np.concatenate(parts)


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
