"""The training step of medXGAN: discriminator, then generator, beside a frozen classifier."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from common.train_state import TrainState
from medical.medxgan import losses
from medical.medxgan.losses import Objective

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Nets:
    """The four flax modules (static); `encoder` is None in the published method."""

    # Any: the type that flax gives `apply` is too wide to use.
    generator: Any
    discriminator: Any
    classifier: Any
    encoder: Any = None
    latent: tuple[int, int] = (64, 8)


class GanState(struct.PyTreeNode):
    """What training changes, and the frozen classifier that rides along.

    Attributes:
      generator: of the parameters ``{"generator": ..., "encoder": ...}``, with moving average.
      discriminator: of the discriminator's parameters.
      stats: averages of batch normalisation of both, ``{}`` without it.
      frozen: variables of the classifier.
      temperature: divisor of its logits in the bounded class feedback; it differs from classifier
        to classifier, and so is no part of the program.
    """

    generator: TrainState
    discriminator: TrainState
    stats: PyTree
    frozen: PyTree
    temperature: jax.Array

    @property
    def params(self) -> PyTree:
        """What the fit loop checks for finite values."""
        return {"generator": self.generator.params, "discriminator": self.discriminator.params}

    def generator_variables(self) -> PyTree:
        """Variables of the generator for use, of the moving average where one is kept."""
        return {"params": self.generator.eval_params["generator"], **self.stats["generator"]}

    def encoder_variables(self) -> PyTree:
        return {"params": self.generator.eval_params["encoder"]}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Adam (0.5, 0.999) for both; `ema_decay` 0 keeps no average of the generator."""

    learning_rate: float = 2e-4
    discriminator_rate: float = 2e-4
    ema_decay: float = 0.0


def init(
    nets: Nets, recipe: Recipe, frozen: PyTree, images: jax.Array, key: jax.Array,
    temperature: float = 1.0,
) -> GanState:
    """State before the first step; `images` ``[batch, ...]`` give the shapes."""
    keys = jax.random.split(key, 3)
    z1, z2 = (jnp.zeros((len(images), d)) for d in nets.latent)
    made = nets.generator.init(keys[0], z1, z2)
    judged = nets.discriminator.init(keys[1], images)
    params = {"generator": made.pop("params")}
    if nets.encoder is not None:
        params["encoder"] = nets.encoder.init(keys[2], images)["params"]
    return GanState(
        TrainState.create(params, _adam(recipe.learning_rate), recipe.ema_decay or None),
        TrainState.create(judged.pop("params"), _adam(recipe.discriminator_rate)),
        {"generator": made, "discriminator": judged},
        frozen,
        jnp.float32(temperature),
    )


@functools.cache
def _adam(rate: float) -> optax.GradientTransformation:
    """One and the same for all seeds and controls, so that their states have one program."""
    return optax.adam(rate, 0.5, 0.999)


def sample_codes(
    key: jax.Array, labels: jax.Array, latent: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Codes ``[batch, d1]`` and ``[batch, d2]``: z1 is normal, z2 normal for class 1 and 0 else."""
    first, second = jax.random.split(key)
    z1 = jax.random.normal(first, (len(labels), latent[0]))
    z2 = jax.random.normal(second, (len(labels), latent[1]))
    return z1, z2 * labels.astype(z2.dtype)[:, None]


@functools.cache
def make_train_step(
    nets: Nets, objective: Objective
) -> Callable[[GanState, dict[str, jax.Array], jax.Array], tuple[GanState, dict]]:
    """Returns the pure step of a batch of ``image`` in [-1, 1] and ``label``, int ``[batch]``."""
    if objective.encodes and nets.encoder is None:
        raise ValueError("the objective has terms of an encoder, but there is no encoder")

    def train_step(
        state: GanState, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[GanState, dict[str, jax.Array]]:
        images, labels = batch["image"], batch["label"]
        keys = jax.random.split(key, 4)
        if objective.labels == "classifier":
            labels = jnp.argmax(nets.classifier.apply(state.frozen, images), axis=-1)

        def produce(params: PyTree) -> tuple[dict[str, jax.Array], PyTree]:
            return _produce(nets, params, state.stats["generator"], images, labels, keys)

        made, pull_back, stats = jax.vjp(produce, state.generator.params, has_aux=True)
        fakes = jnp.concatenate([made[name] for name in ("fake", "negative") if name in made])

        def judge_loss(params: PyTree) -> tuple[jax.Array, tuple]:
            real, new = _judge(nets, params, state.stats["discriminator"], images, keys[2])
            fake, new = _judge(nets, params, new, jax.lax.stop_gradient(fakes), keys[3])
            loss = losses.real_loss(real) + losses.fake_loss(fake)
            penalty = _penalty(nets, objective, params, state, images)
            return loss + penalty, (new, loss, jnp.mean(real > 0), jnp.mean(fake <= 0))

        grads, (judge_stats, judge_value, real_right, fake_right) = jax.grad(
            judge_loss, has_aux=True)(state.discriminator.params)
        judge = state.discriminator.apply_gradients(grads)

        def make_loss(made: dict[str, jax.Array]) -> tuple[jax.Array, dict]:
            return _generator_loss(
                nets, objective, state, judge.params, judge_stats, made, images, labels, keys[3])

        (loss, parts), slope = jax.value_and_grad(make_loss, has_aux=True)(made)
        (generator_grads,) = pull_back(slope)
        new = state.replace(
            generator=state.generator.apply_gradients(generator_grads),
            discriminator=judge,
            stats={"generator": stats, "discriminator": judge_stats},
        )
        metrics = {"loss": loss, "discriminator": judge_value, "real_right": real_right,
                   "fake_right": fake_right, **parts}
        return new, metrics

    return train_step


def _produce(
    nets: Nets, params: PyTree, stats: PyTree, images: jax.Array, labels: jax.Array,
    keys: jax.Array,
) -> tuple[dict[str, jax.Array], PyTree]:
    """Generated images, reconstructions and negatives (with an encoder), and new statistics."""
    z1, z2 = sample_codes(keys[0], labels, nets.latent)
    codes, extra = [(z1, z2)], dict[str, jax.Array]()
    if nets.encoder is not None:
        mean, log_variance = nets.encoder.apply({"params": params["encoder"]}, images)
        sick = jnp.broadcast_to(labels.astype(mean.dtype)[:, None], (len(images), nets.latent[1]))
        used = jnp.concatenate([jnp.ones((len(images), nets.latent[0]), mean.dtype), sick], -1)
        noise = jax.random.normal(keys[1], mean.shape)
        code = used * (mean + jnp.exp(0.5 * log_variance) * noise)
        one, two = code[:, : nets.latent[0]], code[:, nets.latent[0] :]
        codes += [(one, two), (one, jnp.zeros_like(two))]
        extra = {"divergence": losses.divergence(mean, log_variance, used)}
    variables = {"params": params["generator"], **stats}
    first = jnp.concatenate([c[0] for c in codes])
    second = jnp.concatenate([c[1] for c in codes])
    drawn, new = nets.generator.apply(variables, first, second, train=True, mutable=list(stats))
    names = ("fake", "reconstruction", "negative")
    parts = dict(zip(names, jnp.split(drawn, len(codes)), strict=False))
    return {**parts, **extra}, dict(new)


def _judge(
    nets: Nets, params: PyTree, stats: PyTree, images: jax.Array, key: jax.Array
) -> tuple[jax.Array, PyTree]:
    """The discriminator's logits in training mode, and its new statistics."""
    logits, new = nets.discriminator.apply(
        {"params": params, **stats}, images, train=True, mutable=list(stats),
        rngs={"dropout": key})
    return logits, dict(new)


def _penalty(
    nets: Nets, objective: Objective, params: PyTree, state: GanState, images: jax.Array
) -> jax.Array:
    """Half the mean squared gradient of the discriminator at real images (Mescheder et al., 2018),
    on every `r1_every`-th step."""
    if not objective.r1:
        return jnp.float32(0)

    def compute() -> jax.Array:
        variables = {"params": params, **state.stats["discriminator"]}
        slope = jax.grad(lambda x: jnp.sum(nets.discriminator.apply(variables, x)))(images)
        return 0.5 * objective.r1 * objective.r1_every * jnp.mean(
            jnp.sum(slope * slope, axis=(1, 2, 3)))

    due = state.discriminator.step % objective.r1_every == 0
    return jax.lax.cond(due, compute, lambda: jnp.float32(0))


def _generator_loss(
    nets: Nets, objective: Objective, state: GanState, judge: PyTree, stats: PyTree,
    made: dict[str, jax.Array], images: jax.Array, labels: jax.Array, key: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The generator's loss of what it made, with the discriminator `judge` of this step."""
    names = [name for name in ("fake", "reconstruction", "negative") if name in made]
    wanted = {"fake": labels, "reconstruction": labels, "negative": jnp.zeros_like(labels)}
    logits = nets.classifier.apply(state.frozen, jnp.concatenate([made[n] for n in names]))
    each = losses.class_loss(logits, jnp.concatenate([wanted[n] for n in names]),
                             objective.class_form, state.temperature)
    feedback = dict(zip(names, jnp.split(each, len(names)), strict=True))
    judged = jnp.concatenate([made[n] for n in names if n != "reconstruction"])
    believed, _ = _judge(nets, judge, stats, judged, key)
    parts = {"adversarial": losses.real_loss(believed), "class": jnp.mean(feedback["fake"])}
    loss = objective.adversarial * parts["adversarial"] + objective.class_weight * parts["class"]
    if "negative" in made:
        parts["reconstruction"] = jnp.mean(jnp.square(made["reconstruction"] - images))
        parts["divergence"] = made["divergence"]
        parts["counterfactual"] = jnp.mean(feedback["negative"] + feedback["reconstruction"])
        loss = loss + objective.reconstruction * parts["reconstruction"]
        loss = loss + objective.kl * parts["divergence"]
        loss = loss + objective.counterfactual * parts["counterfactual"]
    return loss, parts
