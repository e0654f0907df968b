"""Training of image, clinical and fusion networks, one epoch a program, in two stages.

As in the paper: first the head on a frozen trunk, whose features are then computed once and for
all; then everything at a smaller rate. Each epoch ends with the validation set: the best state so
far is kept, the rate falls where validation no longer improves, and training stops in time. All of
it is part of the state, so that several seeds are one program and a resumed run equals an
uninterrupted one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from common import rng
from medical.fusion import missing
from medical.fusion.missing import Fill, Present

PyTree = Any
MODES = ("auto", "vmap", "map")
LOSSES = ("cross_entropy", "binary_of_softmax")
SCORED = 64  # images of the validation set at once


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One stage of training.

    Attributes:
      epochs: at most.
      learning_rate: of stochastic gradient descent with Nesterov momentum 0.9.
      batch_size: patients; the last, partial batch of an epoch is dropped.
      frozen: the images are features of a frozen trunk, which is not trained.
      loss: "cross_entropy", or "binary_of_softmax": the second stage as released, see `loss_of`.
      hide_image, hide_clinical: probabilities of modality dropout.
      lower_after: epochs without improvement after which the rate falls to a tenth.
      stop_after: epochs without improvement after which training stops.
    """

    epochs: int
    learning_rate: float
    batch_size: int = 16
    frozen: bool = False
    loss: str = "cross_entropy"
    hide_image: float = 0.0
    hide_clinical: float = 0.0
    lower_after: int = 3
    stop_after: int = 8

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"unknown loss {self.loss!r}; known: {', '.join(LOSSES)}")


class Patients(struct.PyTreeNode):
    """What a network is trained and judged on.

    Attributes:
      images: ``[n, h, w, c]`` images, or features of the frozen trunk; for a network without image
        ``[n, 1, 1, 1]`` of no meaning.
      clinical: ``[n, columns]``.
      present: which patient has what.
      labels: int ``[n]``.
    """

    images: jax.Array
    clinical: jax.Array
    present: Present
    labels: jax.Array

    def rows(self, index: jax.Array) -> "Patients":
        return jax.tree.map(lambda leaf: leaf[index], self)


class FusionState(struct.PyTreeNode):
    """A network in training, with the best that validation has seen.

    Attributes:
      variables: parameters and averages of batch normalisation.
      momentum: state of the optimiser.
      scale: factor of the learning rate.
      best: variables of the best epoch; `accuracy` on the validation set; `best_epoch`, from 1.
      since: epochs since the best; `since_lowered` since that or since the rate fell.
      epoch: epochs done.
      stopped: whether training has stopped: epochs then change nothing.
      loss: of the last epoch.
    """

    variables: PyTree
    momentum: PyTree
    scale: jax.Array
    best: PyTree
    accuracy: jax.Array
    best_epoch: jax.Array
    since: jax.Array
    since_lowered: jax.Array
    epoch: jax.Array
    stopped: jax.Array
    loss: jax.Array


def begin(variables: PyTree, recipe: Recipe, accuracy: jax.Array) -> FusionState:
    """The state before the first epoch.

    Args:
      variables: ``{"params": ..., "batch_stats": ...}``.
      recipe: of the stage.
      accuracy: of these variables on the validation set, to be surpassed; -1 if unknown.
    """
    zero = jnp.zeros((), jnp.int32)
    return FusionState(
        variables, _optimiser(recipe).init(variables["params"]), jnp.ones(()),
        jax.tree.map(jnp.copy, variables), accuracy, zero, zero, zero, zero,
        jnp.zeros((), bool), jnp.zeros(()))


def loss_of(logits: jax.Array, labels: jax.Array, form: str) -> jax.Array:
    """Loss of each patient, ``[n]``.

    "binary_of_softmax" is what the released code uses in its second stage: the binary cross-entropy
    of each softmax output, averaged over the classes. It is minimised by the same probabilities.
    """
    if form == "cross_entropy":
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    log_p = jax.nn.log_softmax(logits)
    # log(1 - p_c) is the log-sum of the other classes: exact where p_c is close to 1.
    classes = logits.shape[-1]
    others = jnp.where(jnp.eye(classes, dtype=bool), -jnp.inf, log_p[:, None, :])
    log_not = jax.nn.logsumexp(others, axis=-1)
    chosen = jax.nn.one_hot(labels, classes)
    return -jnp.mean(chosen * log_p + (1 - chosen) * log_not, axis=-1)


def logits_of(
    net: nn.Module, variables: PyTree, patients: Patients, stand_in: Fill, frozen: bool,
    train: bool = False, key: jax.Array | None = None,
) -> tuple[jax.Array, PyTree]:
    """Logits ``[n, classes]``, and new averages of batch normalisation where the trunk trains."""
    images, clinical = missing.fill(patients.images, patients.clinical, patients.present, stand_in)
    stats = {name: tree for name, tree in variables.items() if name != "params"}
    options: dict[str, Any] = {"rngs": {"dropout": key}} if train else {}
    if not frozen:
        options["method"] = lambda m, x, t, p: m.head(
            m.features(x, train) if hasattr(m, "features") else None, t, p, train)
        if train and stats:
            found: Any = net.apply(
                variables, images, clinical, patients.present, mutable=list(stats), **options)
            return found[0], dict(found[1])
        logits: Any = net.apply(variables, images, clinical, patients.present, **options)
        return logits, stats
    logits = net.apply(variables, images, clinical, patients.present, train, method="head",
                       **options)
    return logits, stats


def make_epoch(
    net: nn.Module, recipe: Recipe, mode: str = "auto"
) -> Callable[[FusionState, PyTree, jax.Array], tuple[FusionState, dict[str, jax.Array]]]:
    """Returns the pure program of one epoch of several trials.

    The state has a leading axis of trials. Its batch never changes: ``train`` and ``valid``
    (`Patients`, the same for all trials), ``stand_in`` (`Fill`) and ``seed`` int ``[trials]``.

    Args:
      net: network.
      recipe: of the stage.
      mode: "vmap" for all trials at once, "map" one after another within the program (convolutions
        with a batch of kernels are slow on CPUs), "auto" by the device.
    """
    if mode not in MODES:
        raise ValueError(f"config.population {mode!r}; known: {', '.join(MODES)}")
    if mode == "auto":
        mode = "map" if jax.default_backend() == "cpu" else "vmap"
    optimiser = _optimiser(recipe)

    def step(
        state: FusionState, patients: Patients, stand_in: Fill, key: jax.Array
    ) -> tuple[FusionState, jax.Array]:
        hiding, dropping = jax.random.split(key)
        patients = patients.replace(present=missing.drop(
            hiding, patients.present, recipe.hide_image, recipe.hide_clinical))

        def loss(params: PyTree) -> tuple[jax.Array, PyTree]:
            logits, stats = logits_of(net, {**state.variables, "params": params}, patients,
                                      stand_in, recipe.frozen, True, dropping)
            return jnp.mean(loss_of(logits, patients.labels, recipe.loss)), stats

        params = state.variables["params"]
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, momentum = optimiser.update(grads, state.momentum, params)
        updates = jax.tree.map(lambda u: state.scale * u, updates)
        params = optax.apply_updates(params, updates)
        return state.replace(variables={**stats, "params": params}, momentum=momentum), value

    def epoch(
        state: FusionState, train: Patients, valid: Patients, stand_in: Fill, key: jax.Array
    ) -> FusionState:
        key = rng.at_step(key, "epoch", state.epoch)
        count = len(train.labels) // recipe.batch_size
        order = jax.random.permutation(rng.stream(key, "order"), len(train.labels))
        order = order[: count * recipe.batch_size].reshape(count, recipe.batch_size)

        def body(state: FusionState, parts: tuple) -> tuple[FusionState, jax.Array]:
            rows, index = parts
            return step(state, train.rows(rows), stand_in, jax.random.fold_in(key, index))

        state, losses = jax.lax.scan(body, state, (order, jnp.arange(count)))
        right = jax.lax.map(
            lambda one: jnp.argmax(logits_of(net, state.variables, jax.tree.map(
                lambda leaf: leaf[None], one), stand_in, recipe.frozen)[0][0]) == one.labels,
            valid, batch_size=min(SCORED, len(valid.labels)))
        accuracy = jnp.mean(right.astype(jnp.float32))
        better = accuracy > state.accuracy
        since = jnp.where(better, 0, state.since + 1)
        lowered = jnp.where(better, 0, state.since_lowered + 1)
        lower = lowered >= recipe.lower_after
        return state.replace(
            best=jax.tree.map(lambda a, b: jnp.where(better, a, b), state.variables, state.best),
            accuracy=jnp.maximum(accuracy, state.accuracy), epoch=state.epoch + 1,
            best_epoch=jnp.where(better, state.epoch + 1, state.best_epoch), since=since,
            since_lowered=jnp.where(lower, 0, lowered),
            scale=jnp.where(lower, state.scale / 10, state.scale),
            stopped=since >= recipe.stop_after, loss=jnp.mean(losses))

    def several(state: FusionState, batch: PyTree, key: jax.Array) -> tuple[FusionState, dict]:
        def each(state: FusionState, seed: jax.Array) -> FusionState:
            return jax.lax.cond(
                state.stopped, lambda: state,
                lambda: epoch(state, batch["train"], batch["valid"], batch["stand_in"],
                              jax.random.fold_in(key, seed)))

        if mode == "map":
            state = jax.lax.map(lambda parts: each(*parts), (state, batch["seed"]))
        else:
            state = jax.vmap(each)(state, batch["seed"])
        return state, {"loss": state.loss, "validation": state.accuracy,
                       "running": jnp.sum(~state.stopped)}

    return several


def _optimiser(recipe: Recipe) -> optax.GradientTransformation:
    """A frozen trunk needs no mask: the head does not use its parameters, their gradient is 0."""
    return optax.sgd(recipe.learning_rate, momentum=0.9, nesterov=True)
