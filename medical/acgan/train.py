"""One step of one trial: an auxiliary-classifier GAN, or the CNN of the same trunk."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from common.train_state import TrainState
from medical.acgan import losses

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is trained.

    Attributes:
      source: weight of the source terms in the discriminator, 1 as published; 0 leaves the CNN with
        class terms only. The generator's two terms have equal weights.
      fake_class: weight of the class loss on generated images in the discriminator, 1 as published;
        0 as in Gulrajani et al.'s conditional networks: it learns classes from real images alone.
      wasserstein: Wasserstein source loss with gradient penalty instead of the standard one.
      penalty: weight of the gradient penalty.
      truncation: limit of the codes, 0 for none; 1 as published for WAC-GAN-GPT.
      latent: size of the codes.
      double_softmax: as the released code.
      real_statistics: the running averages of the discriminator's batch norms, with which its class
        head is used afterwards, are of real images alone; False: of generated ones too, as any loop
        does that sends both through the network.
      learning_rate: of Adam (0.5, 0.999).
    """

    source: float = 1.0
    fake_class: float = 1.0
    wasserstein: bool = False
    penalty: float = 10.0
    truncation: float = 0.0
    latent: int = 100
    double_softmax: bool = False
    real_statistics: bool = True
    learning_rate: float = 2e-4


class TrialState(struct.PyTreeNode):
    """State of one trial; a leading axis makes it a population."""

    generator: TrainState
    discriminator: TrainState
    stats: PyTree

    @property
    def params(self) -> PyTree:
        return {"generator": self.generator.params, "discriminator": self.discriminator.params}


def init(
    generator: nn.Module, discriminator: nn.Module, recipe: Recipe, images: jax.Array,
    key: jax.Array,
) -> TrialState:
    """State before the first step; `images` give the shapes."""
    first, second = jax.random.split(key)
    z = jnp.zeros((len(images), recipe.latent))
    made = generator.init(first, z, jnp.zeros(len(images), jnp.int32))
    judged = discriminator.init(second, images)
    adam = optax.adam(recipe.learning_rate, 0.5, 0.999)
    return TrialState(
        TrainState.create(made.pop("params"), adam), TrainState.create(judged.pop("params"), adam),
        {"generator": made, "discriminator": judged})


def make_train_step(
    generator: nn.Module, discriminator: nn.Module, recipe: Recipe
) -> Callable[[TrialState, dict[str, jax.Array], jax.Array], tuple[TrialState, dict]]:
    """Returns the pure step of a batch of ``image`` in [-1, 1] and ``label``, int ``[batch]``."""
    adversarial = bool(recipe.source or recipe.fake_class)

    def draw(params: PyTree, stats: PyTree, key: jax.Array, labels: jax.Array) -> tuple:
        z = losses.codes(key, (len(labels), recipe.latent), recipe.truncation)
        return generator.apply({"params": params, **stats}, z, labels, train=True,
                               mutable=list(stats))

    def judge(params: PyTree, stats: PyTree, images: jax.Array, key: jax.Array) -> tuple:
        return discriminator.apply({"params": params, **stats}, images, train=True,
                                   mutable=list(stats), rngs={"dropout": key})

    def train_step(
        state: TrialState, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[TrialState, dict[str, jax.Array]]:
        keys = jax.random.split(key, 4)
        drops = jax.random.split(jax.random.fold_in(key, 4), 4)  # dropout, where there is some
        images, labels = batch["image"], batch["label"]
        wanted = jax.random.permutation(keys[0], labels)  # the classes of the data
        fakes, made_stats = draw(
            state.generator.params, state.stats["generator"], keys[1], wanted)
        fakes = jax.lax.stop_gradient(fakes)

        def judge_loss(params: PyTree) -> tuple[jax.Array, tuple]:
            (source, logits), stats = judge(
                params, state.stats["discriminator"], images, drops[0])
            loss = losses.class_loss(logits, labels, recipe.double_softmax)
            right = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
            if adversarial:
                (fake_source, fake_logits), after = judge(params, dict(stats), fakes, drops[1])
                stats = stats if recipe.real_statistics else after
                loss = loss + recipe.fake_class * losses.class_loss(
                    fake_logits, wanted, recipe.double_softmax)
                loss = loss + recipe.source * losses.critic_loss(
                    source, fake_source, recipe.wasserstein)
            if recipe.wasserstein and recipe.source:
                share = jax.random.uniform(keys[2], (len(images),))
                frozen = jax.lax.stop_gradient(dict(stats))
                each = losses.gradient_penalty(
                    lambda x: judge(params, frozen, x, drops[2])[0][0], images, fakes, share)
                loss = loss + recipe.source * recipe.penalty * jnp.mean(each)
            return loss, (dict(stats), right)

        (loss, (stats, right)), grads = jax.value_and_grad(judge_loss, has_aux=True)(
            state.discriminator.params)
        judged = state.discriminator.apply_gradients(grads)
        metrics = {"loss": loss, "accuracy": right}
        if not adversarial:
            return state.replace(
                discriminator=judged, stats={**state.stats, "discriminator": stats}), metrics

        def make_loss(params: PyTree) -> tuple[jax.Array, PyTree]:
            drawn, new = draw(params, dict(made_stats), keys[3], wanted)
            (source, logits), _ = judge(judged.params, stats, drawn, drops[3])
            loss = losses.generator_loss(source, recipe.wasserstein) if recipe.source else 0.0
            return loss + losses.class_loss(logits, wanted, recipe.double_softmax), dict(new)

        (made_loss, new_stats), grads = jax.value_and_grad(make_loss, has_aux=True)(
            state.generator.params)
        metrics["generator"] = made_loss
        return TrialState(state.generator.apply_gradients(grads), judged,
                          {"generator": new_stats, "discriminator": stats}), metrics

    return train_step
