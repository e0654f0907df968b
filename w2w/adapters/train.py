"""Stage that trains: from pictures of people to one adapter for each, as DreamBooth-LoRA.

The adapters are those of :mod:`w2w.diffusion.dreambooth`, written as folders of PEFT, which the
import stage reads like any others.
"""

import pathlib
import shutil
from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from common import rng, sharding
from common.checkpoint import Checkpointer
from common.config import ConfigError
from common.storage import load_arrays, save_arrays, save_json
from common.writer import Writer
from w2w import adapters, population
from w2w.adapters import base_model, class_images, encode
from w2w.adapters.photographs import Person
from w2w.diffusion import dreambooth
from w2w.diffusion.dreambooth import Problem, Recipe, Shared
from w2w.diffusion.latents import Photographs
from w2w.diffusion.pipeline import Pipeline, predictor
from w2w.lora_layout import Layout, LoraConfig, Params
from w2w.population import Group

WHERE = "config.train"  # in messages
LEAST = 3  # people; fewer adapters make no space
SHOWN = 8  # people whose photographs are kept for the report


def find_people(config: ConfigDict) -> list[Person]:
    """The people of ``config.images``.

    Raises:
      ConfigError: see :func:`w2w.adapters.encode.find_people`; too few people for a space, or a
        name that an adapter's folder cannot have.
    """
    people = encode.find_people(config, WHERE)
    if len(people) < LEAST:
        raise ConfigError(
            f"config.train.images: {config.images} has {len(people)} of the at least {LEAST} "
            "people that a space needs; expected one sub-folder for each person"
        )
    if any(person.name == "unet" for person in people):
        raise ConfigError("config.train.images: a person's folder cannot be called 'unet'")
    return people


def recipe_of(config: ConfigDict) -> Recipe:
    """The recipe of the configuration.

    Raises:
      ConfigError: a value that means nothing.
    """
    try:
        return Recipe(
            steps=config.steps,
            batch=config.batch,
            class_batch=config.class_batch,
            prior_weight=config.prior_weight,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            clip=config.clip,
        )
    except ValueError as error:
        raise ConfigError(f"{WHERE}: {error}") from error


def check(config: ConfigDict) -> None:
    """Looks at all settings that mean something without the model.

    Raises:
      ConfigError: a value that means nothing.
    """
    recipe_of(config)
    try:
        encode.check_views(config)
        if config.class_images and not config.class_batch:
            raise ValueError("class_images are not looked at with class_batch = 0")
        for name in ("alpha", "class_count", "class_steps", "class_at_once", "draws"):
            if not config[name] > 0:
                raise ValueError(f"{name} = {config[name]} must be positive")
        LoraConfig(config.rank, config.alpha, config.targets)
    except ValueError as error:
        raise ConfigError(f"{WHERE}: {error}") from error


def lora_config_of(config: ConfigDict, params: Params) -> LoraConfig:
    """Targets, rank and alpha of the configuration.

    Raises:
      ConfigError: a target that the UNet does not have, or that is no matrix.
    """
    found = LoraConfig(config.rank, float(config.alpha), config.targets)
    try:
        Layout.from_params(params, found)
    except ValueError as error:
        raise ConfigError(f"config.train.targets: {error}") from error
    return found


class Work(NamedTuple):
    """What all groups of people have in common.

    Attributes:
      config: settings of the stage.
      pipeline: the base model.
      problem: what a step is compiled for.
      shared: arrays on all devices.
      views: longest list of a person's views.
      rows: sharding over people.
      key: random key.
      evaluate: compiled :func:`dreambooth.make_evaluation`.
    """

    config: ConfigDict
    pipeline: Pipeline
    problem: Problem
    shared: Shared
    views: int
    rows: NamedSharding
    key: jax.Array
    evaluate: Any


def shared_arrays(
    config: ConfigDict, inputs: dict[str, pathlib.Path], pipeline: Pipeline
) -> Shared:
    """Network, prompts, and the class images of the configuration or of the stage before."""
    size = encode.image_size(config, pipeline)

    def condition(prompt: str) -> Any:
        return pipeline.encode_text(pipeline.tokenize([prompt]), size)

    shared = Shared(pipeline.params["unet"], condition(config.prompt))
    if not config.class_batch:
        return shared
    drawn = inputs.get(class_images.NAME)
    images = class_images.find(config.class_images if drawn is None else drawn / "images")
    encoded = encode.encode([images], pipeline, config)
    return shared._replace(
        class_condition=condition(config.class_prompt),
        class_images=jax.tree.map(lambda leaf: leaf[0], encoded),
    )


def train(config: ConfigDict, inputs: dict[str, pathlib.Path], out: pathlib.Path) -> None:
    """Stage: ``adapters/<person>`` in PEFT's layout, and ``train.json`` with errors of each.

    Groups of people are trained one after another. A stage that was stopped leaves out the groups
    that are finished and continues the one that is not.
    """
    people = find_people(config)
    pipeline = base_model.load(config.pipeline, config.dtype, config.remat)
    lora_config = lora_config_of(config, pipeline.params["unet"])
    problem = Problem(
        predictor(pipeline.unet), pipeline.scheduler.process, lora_config, recipe_of(config)
    )
    size = encode.image_size(config, pipeline)
    counts = [encode.count_views(person, size, config) for person in people]  # reads all pictures
    shared = shared_arrays(config, inputs, pipeline)
    print(
        f"training adapters of {len(people)} people from {sum(len(p.images) for p in people)} "
        f"photographs, {sum(counts)} views, and "
        f"{0 if shared.class_images is None else int(shared.class_images.views)} of the class",
        flush=True,
    )
    devices = jax.local_devices()[: len(people)]
    mesh = sharding.make_mesh(devices=devices)
    work = Work(
        config,
        pipeline,
        problem,
        jax.device_put(shared, NamedSharding(mesh, PartitionSpec())),
        max(counts),
        NamedSharding(mesh, PartitionSpec("data")),
        rng.stream(jax.random.key(config.seed), "train"),
        jax.jit(dreambooth.make_evaluation(problem, config.draws)),
    )
    groups = population.groups(len(people), config.at_once or len(people), len(devices))
    parts = []
    for number, group in enumerate(groups):
        # Another number of devices makes other groups, which are not mistaken for these.
        place = out / "groups" / f"{group.indices[0]}-{len(group.indices)}"
        finished = place.with_suffix(".safetensors")
        if not finished.is_file():
            name = "train" if len(groups) == 1 else f"train{number}"
            save_arrays(finished, train_group(people, group, work, place, name, out))
            shutil.rmtree(place)
        parts.append(load_arrays(finished)[0])
    found = population.collect(parts, groups)
    rows = [
        {
            "name": person.name,
            "photographs": len(person.images),
            "error_of_base_model": float(found["before"][i]),
            "error": float(found["after"][i]),
        }
        for i, person in enumerate(people)
    ]
    save_json(out / "train.json", {"people": rows, "rank": config.rank, "alpha": config.alpha})
    encode.save_pictures(people[:SHOWN], config, size, out)
    shutil.rmtree(out / "groups")
    before, after = (float(np.mean(found[name])) for name in ("before", "after"))
    print(f"denoising error: {before:.4g} of the base model, {after:.4g} of the trained ones")


def train_group(
    people: Sequence[Person],
    group: Group,
    work: Work,
    place: pathlib.Path,
    name: str,
    out: pathlib.Path,
) -> dict[str, jax.Array]:
    """Trains and writes the adapters of one group.

    Args:
      people: of all groups.
      group: chooses some of them.
      work: what all groups have in common.
      place: folder of the checkpoints.
      name: of the phase in logs.
      out: of the stage; gets ``adapters``.

    Returns:
      Errors ``before`` and ``after`` training, ``[size]``, on the same draws.
    """
    chosen = [people[i] for i in group.indices[: group.valid]]
    encoded = encode.encode(chosen, work.pipeline, work.config, work.views)
    indices = group.indices - group.indices[0]
    part: Photographs = jax.tree.map(
        lambda leaf: jax.device_put(leaf[indices], work.rows), encoded
    )
    with (
        closing(Checkpointer(place, keep=1)) as checkpointer,
        closing(Writer(out)) as writer,
    ):
        vectors = dreambooth.train(
            part,
            work.shared,
            work.problem,
            work.key,
            checkpointer=checkpointer,
            writer=writer,
            save_every=work.config.save_every,
            name=name,
        )
    given = part, work.shared.params, work.shared.condition, rng.stream(work.key, "judge")
    before, after = (work.evaluate(v, *given) for v in (jnp.zeros_like(vectors), vectors))
    layout = Layout.from_params(work.shared.params, work.problem.lora_config)
    for person, vector in zip(chosen, np.asarray(vectors), strict=False):  # without the padding
        path = out / "adapters" / person.name
        adapters.save(path, vector, layout, alpha=work.config.alpha, format="peft")
    return {"before": before, "after": after}
