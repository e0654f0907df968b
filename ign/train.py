"""The training step of an idempotent network: state, recipe, and the pure function between them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from common.train_state import TrainState
from ign import augment, gradients, matching, noise, transport
from ign.losses import Apply, Batch, Objective, Weights

PyTree = Any
TARGETS = ("nearest", "transport")


class IgnState(struct.PyTreeNode):
    """What training changes, or the experiment's numbers that ride along with it.

    Attributes:
        train: parameters, optimiser and moving average.
        batch_stats: averages of batch normalisation, `{}` without it.
        weights: of the loss; one set for each model of a population.
        spectrum: statistics of the noise, or None for standard normal noise.
        bank: samples that wait for an image, or None without matching to the nearest.
        memory: images and samples of the last batches, or None where `transport` has no part.
    """

    train: TrainState
    batch_stats: PyTree
    weights: Weights
    spectrum: noise.Spectrum | None
    bank: matching.Bank | None = None
    memory: transport.Memory | None = None

    @property
    def params(self) -> PyTree:
        """The trained parameters (the fit loop checks that they are finite)."""
        return self.train.params

    def variables(self, average: bool = True) -> dict[str, PyTree]:
        """Variables to apply the network with; of the moving average where one is kept."""
        params = self.train.eval_params if average else self.train.params
        return {"params": params, **({"batch_stats": self.batch_stats} if self.batch_stats else {})}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Optimiser, schedule and perturbations.

    Attributes:
        learning_rate: of Adam; `betas` and `clip_norm` with it (`clip_norm` 0: none).
        warmup: steps over which the learning rate rises from 0.
        tightness_start: step until which the tightness weighs nothing.
        tightness_warmup: steps over which it then rises to its weight, linearly.
        tightness_decay_from: share of `num_steps` after which it falls linearly to 0; 1 keeps it.
        augment: strength of the random distortions of the images that are reconstructed, see
            `augment.affine`; 0 leaves them as they are.
        augment_matching: whether samples are drawn towards distorted images, too.
        input_noise: deviation of noise added to the images before reconstruction, clipped to
            [-1, 1]; 0 reconstructs the images themselves.
        random_noise: each image's deviation is uniform between 0 and `input_noise`.
        input_blur: greatest deviation, in pixels, of a Gaussian blur of those images before the
            noise, uniform for each; half of them are not blurred. Without it the tightness, which
            sees blurred samples first, teaches the network to destroy what is blurred.
        target: where `objective.use_matching`, what is drawn to what: "nearest", to each image the
            nearest of many samples (`matching`), or "transport", each sample to images and from
            other samples (`transport`).
        pool: samples drawn for each real image of a batch, for "nearest".
        bank: places of the bank in which they wait, and of the memory of `transport`: a multiple
            of a step's samples.
        once: whether a sample is drawn towards an image once only, for "nearest".
        balance: rounds of normalisation, for "transport".
        slices: random directions along which `weights.spread` times `transport.spread` is added to
            the targets; 0 adds nothing.
        ema_decay: decay of the moving average of the parameters, 0 keeps none.
        decay_from: share of `num_steps` after which the learning rate falls linearly to 0; 1 keeps
            it constant, as published.
        num_steps: length of the run, for that schedule.
        shared: the three-evaluation gradients instead of the four-pass ones.
    """

    num_steps: int
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.999)
    clip_norm: float = 0.0
    warmup: int = 0
    tightness_start: int = 0
    tightness_warmup: int = 0
    tightness_decay_from: float = 1.0
    augment: float = 0.0
    augment_matching: bool = False
    input_noise: float = 0.0
    random_noise: bool = False
    input_blur: float = 0.0
    target: str = "nearest"
    pool: int = 1
    bank: int = 1024
    once: bool = False
    balance: int = 0
    slices: int = 0
    ema_decay: float = 0.0
    decay_from: float = 1.0
    shared: bool = True

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"target is {self.target!r}, expected one of {TARGETS}")

    def empty_banks(
        self, shape: tuple[int, ...], conditional: bool = False
    ) -> tuple[matching.Bank | None, transport.Memory | None]:
        """Bank and memory of a state before the first step, for images of `shape`."""
        bank = memory = None
        if self.target == "nearest":
            bank = matching.empty_bank(self.bank, shape, conditional)
        if self.target == "transport" or self.slices:
            memory = transport.empty_memory(self.bank, shape, conditional)
        return bank, memory

    def schedule(self) -> optax.Schedule:
        """Learning rate of each step."""
        first = int(self.decay_from * self.num_steps)
        rise = optax.linear_schedule(0.0, self.learning_rate, self.warmup)
        hold = optax.constant_schedule(self.learning_rate)
        fall = optax.linear_schedule(
            self.learning_rate, 0.0 if first < self.num_steps else self.learning_rate,
            max(self.num_steps - first, 1),
        )
        start = rise if self.warmup else hold
        return optax.join_schedules([start, hold, fall], [self.warmup, max(first, self.warmup)])

    def weights_at(self, step: jax.Array, weights: Weights) -> Weights:
        """The weights of a step: the tightness follows its schedule."""
        done = jnp.asarray(step, jnp.float32)
        share = jnp.float32(1.0)
        if self.tightness_start or self.tightness_warmup:
            share = (done - self.tightness_start) / max(self.tightness_warmup, 1)
        first = self.tightness_decay_from * self.num_steps
        share = jnp.minimum(share, 1.0 - (done - first) / max(self.num_steps - first, 1.0))
        return weights.replace(tightness=weights.tightness * jnp.clip(share, 0.0, 1.0))

    def optimiser(self) -> optax.GradientTransformation:
        """Adam with the schedule, after clipping of the gradient's norm."""
        adam = optax.adam(self.schedule(), *self.betas)
        if not self.clip_norm:
            return adam
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), adam)


def init_state(
    variables: dict[str, PyTree],
    recipe: Recipe,
    weights: Weights,
    spectrum: noise.Spectrum | None = None,
    bank: matching.Bank | None = None,
    memory: transport.Memory | None = None,
) -> IgnState:
    """The state before the first step, from the variables of `models.init`.

    `bank` and `memory` are for matching, see `Recipe.empty_banks`.
    """
    weights = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), weights)
    state = TrainState.create(variables["params"], recipe.optimiser(), recipe.ema_decay or None)
    return IgnState(state, variables.get("batch_stats", {}), weights, spectrum, bank, memory)


def make_train_step(
    net: nn.Module, objective: Objective, recipe: Recipe, independent: bool = True
) -> Callable[[IgnState, dict[str, jax.Array], jax.Array], tuple[IgnState, dict]]:
    """Returns the pure step `(state, batch, key) -> (state, metrics)`.

    `batch` holds `image` `[batch, ...]`, uint8 or float in [-1, 1], and for a conditional network
    `label` int32 `[batch]`. `independent` says whether the network treats examples independently
    (`NetConfig.independent`).
    """

    def train_step(
        state: IgnState, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[IgnState, dict[str, jax.Array]]:
        made = make_batch(state, batch, key, recipe)
        dropout = jax.random.fold_in(key, 3)

        def observed(params: PyTree, images: jax.Array, condition: PyTree, stats: PyTree) -> Any:
            result, new = net.apply(
                {"params": params, "batch_stats": stats}, images, condition, train=True,
                mutable=["batch_stats"], rngs={"dropout": dropout},
            )
            return result, new.get("batch_stats", {})

        def apply(params: PyTree, images: jax.Array, condition: PyTree) -> jax.Array:
            return observed(params, images, condition, state.batch_stats)[0]

        bank, memory = state.bank, state.memory
        if objective.use_matching:
            images = made.images if recipe.augment_matching else to_signed(batch["image"])
            chosen, target, bank, memory = _match(state, made, images, key, recipe, apply)
            name = "noise" if objective.joint else "matched"
            made = made._replace(**{name: chosen}, target=target)
        weights = recipe.weights_at(state.train.step, state.weights)
        stats = state.batch_stats
        if recipe.shared:
            grads, metrics, stats = gradients.shared_forward_statistics(
                observed, state.params, stats, made, weights, objective, independent
            )
        else:
            grads, metrics = gradients.four_pass(apply, state.params, made, weights, objective)
            _, stats = observed(state.params, made.inputs, made.condition, stats)
            y, stats = observed(state.params, made.noise, made.condition, stats)
            _, stats = observed(state.params, y, made.condition, stats)
        metrics["grad_norm"] = optax.tree.norm(grads)
        new = state.replace(
            train=state.train.apply_gradients(grads), batch_stats=stats, bank=bank, memory=memory
        )
        return new, metrics

    return train_step


def make_batch(
    state: IgnState, batch: dict[str, jax.Array], key: jax.Array, recipe: Recipe
) -> Batch:
    """Images in [-1, 1] with their noise, drawn from `key`; nothing is matched yet."""
    images = to_signed(batch["image"])
    if recipe.augment:
        images = augment.affine(images, jax.random.fold_in(key, 7), recipe.augment)
    inputs = images
    if recipe.input_blur:
        inputs = _blurred(images, recipe.input_blur, jax.random.fold_in(key, 6))
    if recipe.input_noise:
        added = recipe.input_noise * jax.random.normal(jax.random.fold_in(key, 0), images.shape)
        if recipe.random_noise:
            shape = (len(images), *(1,) * (images.ndim - 1))
            added *= jax.random.uniform(jax.random.fold_in(key, 4), shape)
        inputs = jnp.clip(inputs + added, -1.0, 1.0)
    z = noise.sample(state.spectrum, jax.random.fold_in(key, 1), images.shape)
    return Batch(images, inputs, z, batch.get("label"))


def _blurred(images: jax.Array, largest: float, key: jax.Array) -> jax.Array:
    """Half of the images `[batch, h, w, c]` blurred by a deviation uniform up to `largest`.

    Each axis is a product with the matrix of that blur, whose rows have the sum 1: what lies
    outside of the image does not count.
    """
    which, how = jax.random.split(key)
    used = jax.random.bernoulli(which, 0.5, (len(images),))
    deviations = largest * jax.random.uniform(how, (len(images),), minval=0.05)
    for axis in (1, 2):
        places = jnp.arange(images.shape[axis], dtype=jnp.float32)
        squares = jnp.square(places[:, None] - places[None, :])[None]
        matrices = jax.nn.softmax(-0.5 * squares / jnp.square(deviations)[:, None, None], axis=2)
        matrices = jnp.where(used[:, None, None], matrices, jnp.eye(len(places))[None])
        moved = jnp.moveaxis(images, axis, 1)
        images = jnp.moveaxis(jnp.einsum("nij,nj...->ni...", matrices, moved), 1, axis)
    return images


def _match(
    state: IgnState,
    made: Batch,
    images: jax.Array,
    key: jax.Array,
    recipe: Recipe,
    apply: Apply,
) -> tuple[jax.Array, jax.Array, matching.Bank | None, transport.Memory | None]:
    """Noise matched to `images`, its targets, bank and memory after it: draws, then chooses.

    Sample j of a conditional network is drawn for the label of image `j % batch`.

    Raises:
        ValueError: the state has no bank.
    """
    bank, memory = state.bank, state.memory
    if (bank is None) == (recipe.target == "nearest"):
        raise ValueError("the matching term needs a state with a bank")
    pool = recipe.pool if recipe.target == "nearest" else 1
    shape = (pool * images.shape[0], *images.shape[1:])
    z = noise.sample(state.spectrum, jax.random.fold_in(key, 2), shape)
    labels = None
    if made.condition is not None:
        labels = jnp.concatenate([made.condition] * pool)
    drawn = jax.lax.stop_gradient(apply(state.params, z, labels))
    step = state.train.step
    if bank is not None:
        bank = matching.refill(bank, matching.make_bank(z, drawn, labels), step)
        chosen, moved, bank = matching.choose(bank, images, made.condition, recipe.once)
        target = images
        if memory is not None:
            # As many samples as images, so that both sides of the memory have one pace.
            few = drawn[: len(images)]
            memory = transport.remember(memory, images, few, step, made.condition)
    else:
        assert memory is not None
        chosen, moved = z, drawn
        target, memory = transport.targets(
            memory, images, drawn, state.weights.temperature, step, made.condition, recipe.balance
        )
    if memory is not None and recipe.slices:
        directions = jax.random.fold_in(key, 5)
        target += state.weights.spread * transport.spread(memory, moved, directions, recipe.slices)
    return chosen, target, bank, memory


def to_signed(images: jax.Array) -> jax.Array:
    """uint8 pixels as float32 in [-1, 1]; floats are returned as they are."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 127.5 - 1.0
    return images
