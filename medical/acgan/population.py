"""All trials of one method as one program: subsets and seeds are the leading axis of the state.

The images of all trials lie on the device once; each trial draws its batches from its own table of
rows. One call runs the steps between two validations of every trial and keeps, of each, the
parameters of its best validation.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from common.sharding import AXES, make_mesh, place
from medical.acgan import augment, losses, train
from medical.acgan.methods import METHODS, Method

PyTree = Any
MODES = ("vmap", "map")
SCORED = 500
"""Images that the validation sends through the network at once."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long and on what trials are trained.

    Attributes:
      num_steps: steps of each trial, a multiple of `eval_every`.
      eval_every: steps between validations.
      batch_size: real images of a step, drawn with replacement from the trial's own.
      shift: largest shift in pixels of augmented methods.
      flip: whether they mirror images.
    """

    num_steps: int
    eval_every: int
    batch_size: int
    shift: int = 2
    flip: bool = True

    def __post_init__(self) -> None:
        if self.eval_every < 1 or self.num_steps < 1 or self.num_steps % self.eval_every:
            raise ValueError(
                f"num_steps {self.num_steps} is not a positive multiple of eval_every "
                f"{self.eval_every}")


class Population(struct.PyTreeNode):
    """State of all trials; every leaf has a leading axis ``[trials]``.

    Attributes:
      trials: networks and optimisers.
      best: parameters and statistics of the best validation (the earliest of equals).
      accuracy: its accuracy, -1 before the first.
      step: steps done then.
      history: accuracy of each validation, ``[trials, validations]``.
    """

    trials: train.TrialState
    best: PyTree
    accuracy: jax.Array
    step: jax.Array
    history: jax.Array

    @property
    def params(self) -> PyTree:
        return self.trials.params


def variables(trial: train.TrialState) -> PyTree:
    """Variables of both networks: ``{"generator": {"params", ...}, "discriminator": ...}``."""
    return {name: {"params": trial.params[name], **trial.stats[name]} for name in trial.stats}


def to_unit(images: jax.Array) -> jax.Array:
    """uint8 images as float32 in [-1, 1]; float images as they are."""
    return images.astype(jnp.float32) / 127.5 - 1 if images.dtype == jnp.uint8 else images


def init(
    generator: nn.Module, discriminator: nn.Module, recipe: train.Recipe, image: jax.Array,
    seeds: jax.Array, key: jax.Array, validations: int,
) -> Population:
    """State before the first step.

    Args:
      generator, discriminator: networks.
      recipe: of the training step.
      image: one image ``[1, height, width, channels]``, for the shapes.
      seeds: int32 ``[trials]``; trials of one seed start with the same weights.
      key: random key, the same for every method.
      validations: how many there will be.
    """
    trials = jax.lax.map(
        lambda seed: train.init(
            generator, discriminator, recipe, image, jax.random.fold_in(key, seed)), seeds)
    count = len(seeds)
    return Population(
        trials, jax.tree.map(jnp.copy, variables(trials)), jnp.full(count, -1.0),
        jnp.zeros(count, jnp.int32), jnp.zeros((count, validations)))


def make_chunk(
    generator: nn.Module, discriminator: nn.Module, method: Method, recipe: train.Recipe,
    schedule: Schedule, mode: str = "vmap", mesh: Mesh | None = None,
) -> Callable[[Population, PyTree, jax.Array], tuple[Population, dict[str, jax.Array]]]:
    """Returns the pure program of the steps between two validations, for all trials.

    Its batch holds what never changes: `shared` (``images``, ``labels``, ``valid_images``,
    ``valid_labels``), `trial` (leading axis of trials: ``rows``, ``count``, ``seed``,
    ``per_class``), and `frozen`, generators' variables for a method that needs samples, or None.

    Args:
      generator, discriminator: networks.
      method: what is trained.
      recipe: of the training step.
      schedule: steps and batches.
      mode: "vmap" runs all trials at once: the networks should be made of `conv_products`, since
        convolutions with a batch of kernels are slow everywhere. "map" runs one after another
        within the program, which takes less memory.
      mesh: devices over which the trials are divided; each runs its own without communication.

    Raises:
      ValueError: unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"config.population {mode!r}; known: {', '.join(MODES)}")
    step = train.make_train_step(generator, discriminator, recipe)

    def one(
        state: Population, trial: PyTree, frozen: PyTree, key: jax.Array, shared: PyTree
    ) -> tuple[Population, dict[str, jax.Array]]:
        key = trial_key(key, trial["seed"], trial["per_class"])

        def body(networks: train.TrialState, index: jax.Array) -> tuple:
            drawing, updating = jax.random.split(jax.random.fold_in(key, index))
            batch = draw(drawing, trial, shared, frozen, generator, method, recipe, schedule)
            return step(networks, batch, updating)

        metrics: dict[str, jax.Array]
        trials, metrics = jax.lax.scan(body, state.trials, jnp.arange(schedule.eval_every))
        now = variables(trials)
        right = predict(discriminator, now["discriminator"], shared["valid_images"]).argmax(-1)
        accuracy = jnp.mean(right == shared["valid_labels"])
        better = accuracy > state.accuracy
        done = trials.discriminator.step
        new = Population(
            trials, jax.tree.map(lambda a, b: jnp.where(better, a, b), now, state.best),
            jnp.where(better, accuracy, state.accuracy), jnp.where(better, done, state.step),
            state.history.at[done // schedule.eval_every - 1].set(accuracy))
        averages = {name: jnp.mean(values) for name, values in metrics.items()}
        if "generator" in averages:  # a generator that diverges must stop the run too
            averages["loss"] = averages["loss"] + 0 * averages["generator"]
        return new, {**averages, "validation": accuracy}

    def several(state: Population, batch: PyTree, key: jax.Array) -> tuple:
        def each(parts: tuple[Population, PyTree, PyTree]) -> tuple:
            return one(parts[0], parts[1], parts[2], key, batch["shared"])

        parts = (state, batch["trial"], batch["frozen"])
        return jax.lax.map(each, parts) if mode == "map" else jax.vmap(each)(parts)

    if mesh is None or mesh.size == 1:
        return several
    split, whole = PartitionSpec(AXES), PartitionSpec()
    return jax.shard_map(
        several, mesh=mesh, out_specs=split, check_vma=False,
        in_specs=(split, {"trial": split, "frozen": split, "shared": whole}, whole))


def trial_key(key: jax.Array, seed: jax.Array, per_class: jax.Array) -> jax.Array:
    """A trial's own key: it does not depend on which other trials there are."""
    return jax.random.fold_in(jax.random.fold_in(key, seed), per_class)


def draw(
    key: jax.Array, trial: PyTree, shared: PyTree, frozen: PyTree, generator: nn.Module,
    method: Method, recipe: train.Recipe, schedule: Schedule,
) -> dict[str, jax.Array]:
    """A batch of one trial: real images of its table, and generated ones where the method asks."""
    keys = jax.random.split(key, 3)
    places = jax.random.randint(keys[0], (schedule.batch_size,), 0, trial["count"])
    rows = trial["rows"][places]
    images, labels = to_unit(shared["images"][rows]), shared["labels"][rows]
    if method.augmented:
        images = augment.shift_and_flip(keys[1], images, schedule.shift, schedule.flip)
    if method.samples_of:
        z = losses.codes(keys[2], (schedule.batch_size, recipe.latent),
                         METHODS[method.samples_of].truncation)
        made: Any = generator.apply(frozen, z, labels)
        images, labels = jnp.concatenate([images, made]), jnp.concatenate([labels, labels])
    return {"image": images, "label": labels}


def predict(discriminator: nn.Module, held: PyTree, images: jax.Array) -> jax.Array:
    """Class logits ``[count, classes]`` of images in the form of the data, in parts."""

    def one(image: jax.Array) -> jax.Array:
        outputs: Any = discriminator.apply(held, to_unit(image[None]))
        return outputs[1][0]

    return jax.lax.map(one, images, batch_size=min(SCORED, len(images)))


def mesh_for(trials: int) -> Mesh:
    """The most local devices that divide the trials."""
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if trials % n == 0)
    return make_mesh(devices=devices[:count])


def placed(tree: PyTree, mesh: Mesh, split: bool) -> PyTree:
    """A tree on the mesh: its leading axis over the devices, or whole on each."""
    if mesh.size == 1:
        return jax.tree.map(jnp.asarray, tree)
    spec = PartitionSpec(AXES) if split else PartitionSpec()
    return place(tree, jax.tree.map(lambda _: NamedSharding(mesh, spec), tree))


def take(tree: PyTree, index: int | Sequence[int]) -> PyTree:
    """One trial of a tree with a leading axis of trials."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
