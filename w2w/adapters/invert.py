"""Stage that inverts photographs: from pictures of people to models of the space."""

import pathlib
import shutil
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from common import rng, sharding
from common.checkpoint import Checkpointer
from common.config import ConfigError
from common.storage import save_arrays
from common.writer import Writer
from w2w import population, subspace
from w2w.adapters import base_model, encode
from w2w.adapters import stages as own_adapters
from w2w.diffusion import inversion
from w2w.diffusion.inversion import Problem, Recipe, Shared
from w2w.diffusion.pipeline import predictor
from w2w.subspace import Subspace

WHERE = "config.invert"  # in messages
PREFIX = "inverted-"  # of the names of inverted models, before the person's


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
        encode.check_views(config)
        return Recipe(
            config.steps, config.batch, config.learning_rate, config.weight_decay, config.units
        )
    except ValueError as error:
        raise ConfigError(f"config.invert: {error}") from error


def invert(config: ConfigDict, inputs: dict[str, pathlib.Path], out: pathlib.Path) -> None:
    """Stage: the model of each person; ``models.safetensors`` also has both losses of each."""
    people = encode.find_people(config, WHERE)
    bank = own_adapters.open_bank(inputs)
    whole, training = own_adapters.open_space(inputs)
    space = chosen_components(whole, config.components, config.component_dtype)
    pipeline = base_model.load(config.pipeline, config.dtype, config.remat)
    params = pipeline.params["unet"]
    lora_config = base_model.lora_config(bank.layout, bank.alpha, params, config.pipeline)
    problem = Problem(
        predictor(pipeline.unet),
        pipeline.scheduler.process,
        bank.layout,
        lora_config,
        recipe_of(config),
    )
    size = encode.image_size(config, pipeline)
    condition = pipeline.encode_text(pipeline.tokenize([config.prompt]), size)
    latents = encode.encode(people, pipeline, config)
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
    encode.save_pictures(people, config, size, out)
    shutil.rmtree(out / "groups")
    print(f"denoising loss: {before.mean():.4g} of the mean model, {after.mean():.4g} inverted")
