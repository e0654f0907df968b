"""Losses of medXGAN: adversarial, class feedback of the frozen classifier, reconstruction."""

import dataclasses

import jax
import jax.numpy as jnp

CLASS_FORMS = ("bounded", "double_softmax", "cross_entropy")


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weights and forms. The published method has ``reconstruction = kl = counterfactual = 0``.

    Attributes:
      adversarial: weight of the discriminator's judgement in the generator's loss.
      class_weight: weight of the class feedback; 2 (brain) or 1 (COVID-19) as published.
      class_form: one of `CLASS_FORMS`, see `class_loss`.
      reconstruction: weight of the mean squared error between images and ``G(E(image))``.
      kl: weight of the divergence of the codes from a standard normal law, nats of an image.
      counterfactual: weight of the class feedback that ``G(E(image).z1, 0)`` is negative.
      r1: weight of the discriminator's gradient penalty on real images, 0 for none.
      r1_every: steps between penalties (its weight grows by as much).
      labels: "data", or "classifier": what the classifier says of an image decides whether it has a
        pathology code. The generator explains the classifier, not the labels.
    """

    adversarial: float = 1.0
    class_weight: float = 2.0
    class_form: str = "bounded"
    reconstruction: float = 0.0
    kl: float = 0.0
    counterfactual: float = 0.0
    r1: float = 0.0
    r1_every: int = 4
    labels: str = "data"

    def __post_init__(self) -> None:
        if self.class_form not in CLASS_FORMS:
            raise ValueError(f"class_form {self.class_form!r}; known: {', '.join(CLASS_FORMS)}")
        if self.labels not in ("data", "classifier"):
            raise ValueError(f"labels {self.labels!r}; known: data, classifier")

    @property
    def encodes(self) -> bool:
        """Whether an encoder takes part."""
        return bool(self.reconstruction or self.kl or self.counterfactual)


def margin(logits: jax.Array) -> jax.Array:
    """Logit of the positive class less that of the negative, ``[batch]``."""
    return logits[:, 1] - logits[:, 0]


def class_loss(
    logits: jax.Array, labels: jax.Array, form: str, temperature: float | jax.Array = 1.0,
    cap: float = 4.0,
) -> jax.Array:
    """Loss of each image for not being of its class, ``[batch]``.

    Args:
      logits: of the frozen classifier, ``[batch, 2]``.
      labels: wanted classes, int ``[batch]``.
      form: "cross_entropy" (unbounded: hundreds for a confident classifier), "double_softmax" (the
        released code: cross-entropy of the softmax's output taken as logits; between 0.313 and
        1.313), or "bounded": ``cap (1 - exp(-loss / cap))`` of the cross-entropy at a temperature.
      temperature: divisor of the logits in the bounded form.
      cap: upper limit of the bounded form.
    """
    if form == "double_softmax":
        logits = jax.nn.softmax(logits, axis=-1)
    elif form == "bounded":
        logits = logits / temperature
    elif form != "cross_entropy":
        raise ValueError(f"unknown form {form!r}; known: {', '.join(CLASS_FORMS)}")
    sign = 1 - 2 * labels.astype(logits.dtype)
    loss = jax.nn.softplus(sign * margin(logits))
    return cap * -jnp.expm1(-loss / cap) if form == "bounded" else loss


def real_loss(logits: jax.Array) -> jax.Array:
    """Mean of ``-log sigmoid``: small where the discriminator says real."""
    return jnp.mean(jax.nn.softplus(-logits))


def fake_loss(logits: jax.Array) -> jax.Array:
    """Mean of ``-log(1 - sigmoid)``."""
    return jnp.mean(jax.nn.softplus(logits))


def divergence(mean: jax.Array, log_variance: jax.Array, used: jax.Array) -> jax.Array:
    """Divergence of normal codes from N(0, 1), mean over the batch of the sum of the used codes.

    Args:
      mean: ``[batch, d]``.
      log_variance: ``[batch, d]``.
      used: 0 or 1, ``[batch, d]``: codes that the image has.
    """
    each = 0.5 * (jnp.exp(log_variance) + mean * mean - 1 - log_variance)
    return jnp.mean(jnp.sum(used * each, axis=-1))
