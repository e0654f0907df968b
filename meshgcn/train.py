"""Training of one cross-validation trial as one pure function, and of all trials as one program."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh as DeviceMesh
from jax.sharding import PartitionSpec

from common import rng, sharding
from common.loop import NonFiniteLoss
from meshgcn.hierarchy import Hierarchy
from meshgcn.models import MeshNet

__all__ = ["Fitted", "Recipe", "fit_trial", "fit_trials", "standardiser"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
      epochs: passes over the training scans.
      batch: scans in a step; an incomplete last batch of an epoch is left out.
      learning_rate: of AdamW, at the start; it falls along a cosine to a hundredth.
      weight_decay: of AdamW.
      ema: decay of the moving average of weights that is evaluated.
      noise: SD of independent noise added to the standardised features in training.
      eval_batch: scans evaluated at once.
    """

    epochs: int = 20
    batch: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    ema: float = 0.98
    noise: float = 0.0
    eval_batch: int = 64


class Fitted(struct.PyTreeNode):
    """Result of a trial; leaves of several trials have a leading axis.

    Attributes:
      variables: "params" and, with batch normalisation, "batch_stats", of the best epoch.
      mean, scale: standardisation of the features `[vertices, features]`, from training scans.
      logits: of all scans `[scans, classes]`.
      validation_loss, train_loss: `[epochs]`.
      epoch: the epoch kept, the one with the lowest validation loss.
    """

    variables: Any
    mean: jax.Array
    scale: jax.Array
    logits: jax.Array
    validation_loss: jax.Array
    train_loss: jax.Array
    epoch: jax.Array


def standardiser(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean, 1 / SD) of each vertex and feature over the scans with weight 1.

    Args:
      x: `[scans, vertices, features]`.
      weight: `[scans]`, 1 for training scans, 0 for all others.

    Returns:
      Each `[vertices, features]`; the second is 0 where a value is constant.
    """
    share = (weight / weight.sum())[None]
    flat = x.reshape(x.shape[0], -1)
    average = functools.partial(jnp.matmul, share, precision="highest")  # else TF32 on accelerators
    mean = average(flat)[0]
    variance = average(jnp.square(flat - mean[None]))[0]
    scale = jnp.where(variance > 1e-10, 1 / jnp.sqrt(jnp.maximum(variance, 1e-10)), 0)
    return mean.reshape(x.shape[1:]), scale.reshape(x.shape[1:])


def fit_trial(
    model: nn.Module,
    recipe: Recipe,
    counts: tuple[int, int],
    seed: jax.Array,
    role: jax.Array,
    label: jax.Array,
    x: jax.Array,
    hierarchy: Hierarchy,
) -> Fitted:
    """Trains one network on one split; traceable, and mappable over seeds, roles and labels.

    Args:
      model: of `meshgcn.models`.
      recipe: optimiser and length.
      counts: training scans used in an epoch, of which no split has fewer, and rows for validation
        scans, of which no split has more; those left over do not count.
      seed: int32 scalar; everything random follows from it.
      role: `[scans]`, 0 train, 1 validation, 2 test (which is never looked at).
      label: `[scans]`, classes.
      x: `[scans, vertices, features]`.
      hierarchy: operators.
    """
    key = jax.random.key(seed)
    mean, scale = standardiser(x, (role == 0).astype(x.dtype))
    train_count, validation_count = counts
    steps = train_count // recipe.batch
    total = steps * recipe.epochs
    rate = optax.cosine_decay_schedule(recipe.learning_rate, total, 0.01)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=recipe.weight_decay)
    )
    variables = dict(model.init(rng.stream(key, "init"), x[:1], hierarchy))
    params, stats = variables.pop("params"), variables
    validation = jnp.argsort(role != 1, stable=True)[:validation_count]
    counted = role[validation] == 1
    validation = jnp.where(counted, validation, validation[0])

    # Fixed features and a linear first level: that level is done once, see `MeshNet.prepare`. It
    # takes K times the features of all scans on the second level, for each trial side by side.
    early = isinstance(model, MeshNet) and not recipe.noise and model.linear_start(hierarchy)
    apply: Callable[..., Any] = model.apply
    if early:
        apply = functools.partial(model.apply, prepared=True)

    def take(rows: jax.Array) -> jax.Array:
        return (x[rows] - mean[None]) * scale[None]

    if early:
        every = jnp.arange(x.shape[0])
        ready = _in_blocks(
            lambda rows: model.prepare(take(rows), hierarchy), every, recipe.eval_batch
        )

    def inputs_of(rows: jax.Array) -> jax.Array:
        return ready[rows] if early else take(rows)

    def loss_of(params, stats, rows, step):
        inputs = inputs_of(rows)
        if recipe.noise:
            noise = jax.random.normal(rng.at_step(key, "noise", step), inputs.shape, inputs.dtype)
            inputs = inputs + recipe.noise * noise * (scale > 0).astype(inputs.dtype)[None]
        rngs = {"dropout": rng.at_step(key, "dropout", step)}
        logits, new = apply(
            {"params": params, **stats},
            inputs,
            hierarchy,
            train=True,
            rngs=rngs,
            mutable=list(stats),
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label[rows])
        return losses.mean(), dict(new)

    def step(state, rows):
        params, stats, average, moments, number = state
        (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(
            params, stats, rows, number
        )
        updates, moments = optimiser.update(grads, moments, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(recipe.ema, (1 + number) / (10 + number)).astype(jnp.float32)
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
        return (params, stats, average, moments, number + 1), loss

    def evaluate(params, stats, rows):
        return _in_blocks(
            lambda block: apply({"params": params, **stats}, inputs_of(block), hierarchy),
            rows, recipe.eval_batch,
        )

    def epoch(carry, number):
        state, best = carry
        draw = jax.random.uniform(rng.at_step(key, "order", number), role.shape)
        order = jnp.argsort(jnp.where(role == 0, draw, 2.0))[: steps * recipe.batch]
        state, losses = jax.lax.scan(step, state, order.reshape(steps, recipe.batch))
        _, stats, average, _, _ = state
        logits = evaluate(average, stats, validation)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, label[validation])
        loss = each.mean(where=counted)
        better = loss < best[0]
        candidate = (loss, number, average, stats)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), candidate, best)
        return (state, best), (loss, losses.mean())

    start = (params, stats, params, optimiser.init(params), jnp.int32(0))
    best = (jnp.float32(jnp.inf), jnp.int32(0), params, stats)
    (_, best), (validation_loss, train_loss) = jax.lax.scan(
        epoch, (start, best), jnp.arange(recipe.epochs, dtype=jnp.int32)
    )
    _, kept, params, stats = best
    logits = evaluate(params, stats, jnp.arange(role.shape[0]))
    return Fitted(
        {"params": params, **stats}, mean, scale, logits, validation_loss, train_loss, kept
    )


def _in_blocks(
    function: Callable[[jax.Array], jax.Array], rows: jax.Array, size: int
) -> jax.Array:
    """`function` of `size` rows at a time; the first rows again fill the last block."""
    padded = -(-rows.shape[0] // size) * size
    found = jax.lax.map(function, jnp.resize(rows, (padded,)).reshape(-1, size))
    return found.reshape(padded, *found.shape[2:])[: rows.shape[0]]


@functools.cache
def _program(
    model: nn.Module,
    recipe: Recipe,
    counts: tuple[int, int],
    at_once: int,
    devices: DeviceMesh | None,
) -> Callable:
    """The jitted program over trials; one compilation for all calls of equal shapes."""

    def run(seeds, roles, labels, x, hierarchy):
        def one(arguments):
            seed, role, label = arguments
            return fit_trial(model, recipe, counts, seed, role, label, x, hierarchy)

        return jax.lax.map(one, (seeds, roles, labels), batch_size=at_once if at_once > 1 else None)

    if devices is None:
        return jax.jit(run)
    trials, whole = PartitionSpec(sharding.AXES), PartitionSpec()
    specs = (trials, trials, trials, whole, whole)
    return jax.jit(
        jax.shard_map(run, mesh=devices, in_specs=specs, out_specs=trials, check_vma=False)
    )


def fit_trials(
    model: nn.Module,
    recipe: Recipe,
    seeds: np.ndarray,
    roles: np.ndarray,
    labels: np.ndarray,
    x: jax.Array,
    hierarchy: Hierarchy,
    at_once: int = 1,
) -> Fitted:
    """All trials in one program, shared out among the devices of this process.

    Args:
      model, recipe: as `fit_trial`.
      seeds: `[trials]`.
      roles: int8 `[trials, scans]`.
      labels: int `[trials, scans]`.
      x, hierarchy: common to all trials.
      at_once: trials that a device trains side by side (`vmap`); with 1 it trains one after the
        other (`lax.map`).

    Returns:
      NumPy leaves with a leading axis of trials.

    Raises:
      ValueError: fewer training scans than one batch.
      common.loop.NonFiniteLoss: the loss of a trial is not finite after an epoch (its `step`).
    """
    trials = len(seeds)
    training = int((roles == 0).sum(axis=1).min())
    if training < recipe.batch:
        raise ValueError(f"{training} training scans do not fill a batch of {recipe.batch}")
    # Whole batches, so that splits of about the same size share a compiled program.
    blocks = -(-int((roles == 1).sum(axis=1).max()) // recipe.eval_batch)
    counts = (
        training - training % recipe.batch,
        min(blocks * recipe.eval_batch, roles.shape[1]),
    )
    number = min(jax.local_device_count(), trials)
    devices = sharding.make_mesh(devices=jax.local_devices()[:number]) if number > 1 else None
    padded = np.resize(np.arange(trials), -(-trials // number) * number)
    program = _program(model, recipe, counts, at_once, devices)
    arguments = (
        jnp.asarray(np.asarray(seeds)[padded], jnp.int32),
        jnp.asarray(roles[padded], jnp.int32),
        jnp.asarray(labels[padded], jnp.int32),
    )
    fitted = program(*arguments, x, hierarchy)
    fitted = jax.tree.map(lambda leaf: np.asarray(leaf)[:trials], fitted)
    # Such epochs are never the best one, so the weights would be earlier or untrained ones.
    losses = np.stack([fitted.train_loss, fitted.validation_loss])
    if not np.isfinite(losses).all():
        trial, epoch = np.argwhere(~np.isfinite(losses).all(axis=0))[0].tolist()
        value = losses[:, trial, epoch]
        raise NonFiniteLoss(
            epoch, float(value[~np.isfinite(value)][0]), f" (epochs counted), trial {trial}"
        )
    return fitted
