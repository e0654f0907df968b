"""The objective of an idempotent generative network, and its gradient in two equal ways.

Shocher et al., "Idempotent Generative Network", ICLR 2024. One network `f` maps images to images;
its drift `delta(y) = D(f(y), y)` is 0 on the manifold that it projects to. Three terms share the
network, and what makes the method is through which application of `f` each may send its gradient:

    reconstruction   D(f(x), x)
    idempotence      D(f'(f(z)), f(z))      through the first application only (f' is held fixed)
    tightness       -D(f(y), y), y = f(z)   through the second application only (y is held fixed)

Idempotence and (unclamped) tightness have one value and opposite roles. Everything here is a pure
function of `(apply, params, batch)`; the sums over a batch are means over examples.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

PyTree = Any
# (params, images [batch, ...], condition with leading batch axis or None) -> like images.
Apply = Callable[[PyTree, jax.Array, PyTree], jax.Array]
# Distance of each pair: two arrays [batch, ...] -> [batch].
Metric = Callable[[jax.Array, jax.Array], jax.Array]

IDEMPOTENCE = ("drift", "purified")
_SMALL = 1e-12  # clamp levels below this count as 0: reconstruction is perfect, nothing to exceed


class Weights(struct.PyTreeNode):
    """Weights of the terms: scalars, traced, so that a population can hold one set for each model.

    Attributes:
        reconstruction, idempotence, tightness: the paper's three.
        matching: weight of the distance of each matched image to its target.
        clamp: tightness is bounded by `clamp` times the example's reconstruction error; infinity
            turns the bound off.
        temperature, spread: of `transport`.
    """

    reconstruction: jax.Array | float = 20.0
    idempotence: jax.Array | float = 20.0
    tightness: jax.Array | float = 2.5
    matching: jax.Array | float = 0.0
    clamp: jax.Array | float = 1.5
    temperature: jax.Array | float = 0.1
    spread: jax.Array | float = 0.0


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is static in the loss.

    Attributes:
        metric: distance of idempotence and tightness.
        reconstruction_metric: distance of the reconstruction; `metric` if None.
        idempotence: "drift" is the paper's term. "purified" pulls `f(z)` to the fixed target
            `3 f(f(z)) - 2 f(f(f(z)))` instead: for a linear map this is the step
            `K <- 3 K^2 - 2 K^3` that squares the distance of K to the idempotent maps (Jensen and
            Vicary, ICML 2025; the use with a nonlinear map is our reading of their abstract).
        use_matching: whether the batch has `matched` and the matching term is computed.
        joint: idempotence and tightness use the matched noise too, which saves an evaluation. Then
            the batch's `noise` is the matched one, and `matched` None.
    """

    metric: Metric
    reconstruction_metric: Metric | None = None
    idempotence: str = "drift"
    use_matching: bool = False
    joint: bool = False

    def __post_init__(self) -> None:
        if self.idempotence not in IDEMPOTENCE:
            raise ValueError(f"idempotence is {self.idempotence!r}, expected one of {IDEMPOTENCE}")


class Batch(NamedTuple):
    """One batch of the objective.

    Attributes:
        images: `[batch, ...]` targets of the reconstruction, in [-1, 1].
        inputs: like images: what is reconstructed from (the images, or a noised copy).
        noise: like images.
        condition: labels or another pytree with leading axis `batch`; None for none. Image i and
            noise i share it.
        matched: like noise: what is drawn towards a target, see `matching`; None without it.
        target: like images: the targets; None is the images themselves.
    """

    images: jax.Array
    inputs: jax.Array
    noise: jax.Array
    condition: PyTree = None
    matched: jax.Array | None = None
    target: jax.Array | None = None

    @property
    def drawn_to(self) -> jax.Array:
        """The targets of the matched noise."""
        return self.images if self.target is None else self.target


def l1(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean absolute difference of each pair `[batch, ...]` -> `[batch]`."""
    return jnp.mean(jnp.abs(x - y), axis=tuple(range(1, x.ndim)))


def l2(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squared difference of each pair `[batch, ...]` -> `[batch]`."""
    return jnp.mean(jnp.square(x - y), axis=tuple(range(1, x.ndim)))


def lpips_metric(params: PyTree, net: str = "alex", pixels: float = 0.0) -> Metric:
    """LPIPS of images in [-1, 1], plus `pixels` times their mean absolute difference.

    Args:
        params: from `common.nets.lpips.load_params(net)`.
        net: "alex" or "vgg".
        pixels: weight of the pixel distance, which LPIPS alone does not determine.
    """
    from common.nets import lpips

    def metric(x: jax.Array, y: jax.Array) -> jax.Array:
        return lpips.lpips(params, (x + 1) / 2, (y + 1) / 2, net) + pixels * l1(x, y)

    return metric


def reconstruction(apply: Apply, params: PyTree, batch: Batch, metric: Metric) -> jax.Array:
    """`D(f(inputs), images)` of each example, `[batch]`."""
    return metric(apply(params, batch.inputs, batch.condition), batch.images)


def idempotence(apply: Apply, params: PyTree, batch: Batch, metric: Metric) -> jax.Array:
    """`D(f'(f(z)), f(z))` of each example, `[batch]`; parameters get gradient through `f(z)`."""
    y = apply(params, batch.noise, batch.condition)
    return metric(apply(jax.lax.stop_gradient(params), y, batch.condition), y)


def purified(apply: Apply, params: PyTree, batch: Batch, metric: Metric) -> jax.Array:
    """`D(f(z), 3 f(f(z)) - 2 f(f(f(z))))` with fixed target of each example, `[batch]`."""
    y = apply(params, batch.noise, batch.condition)
    second = apply(params, y, batch.condition)
    third = apply(params, second, batch.condition)
    return metric(y, jax.lax.stop_gradient(3.0 * second - 2.0 * third))


def tightness(apply: Apply, params: PyTree, batch: Batch, metric: Metric) -> jax.Array:
    """`-D(f(y), y)` with `y = f(z)` fixed, of each example, `[batch]`."""
    y = jax.lax.stop_gradient(apply(params, batch.noise, batch.condition))
    return -metric(apply(params, y, batch.condition), y)


def smooth_clamp(value: jax.Array, error: jax.Array, ratio: jax.Array | float) -> jax.Array:
    """`c tanh(value / c)` with `c = ratio * error`: slope 1 at 0, never beyond +-c.

    Value and error receive gradient, as in the published objective, where the error is that of the
    example's reconstruction. A bound of 0 gives 0 with zero gradients, an infinite ratio gives
    `value`.

    Args:
        value: any shape.
        error: not negative, same shape.
        ratio: scalar.
    """
    unbounded = jnp.isinf(ratio)
    level = jnp.where(unbounded, 1.0, ratio) * error
    usable = level > _SMALL
    safe = jnp.where(usable, level, 1.0)
    bounded = jnp.where(usable, safe * jnp.tanh(value / safe), 0.0)
    return jnp.where(unbounded, value, bounded)


def total(
    apply: Apply, params: PyTree, batch: Batch, weights: Weights, objective: Objective
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss with its terms, written as the definitions read: `(scalar, terms)`.

    Differentiating it evaluates the network four times; see `gradients.shared_forward` for three.
    `terms` are means over the batch, without weights: reconstruction, idempotence, tightness (after
    the clamp), drift (of generated images), saturation (`|tightness|` relative to its bound before
    the clamp; 0 without one), and matching where it is used.
    """
    r = reconstruction(apply, params, batch, objective.reconstruction_metric or objective.metric)
    which = idempotence if objective.idempotence == "drift" else purified
    i = which(apply, params, batch, objective.metric)
    t = tightness(apply, params, batch, objective.metric)
    clamped = smooth_clamp(t, r, weights.clamp)
    loss = (
        weights.reconstruction * r.mean()
        + weights.idempotence * i.mean()
        + weights.tightness * clamped.mean()
    )
    terms = summary(r, i, t, clamped, weights)
    if objective.use_matching:
        matched = batch.noise if objective.joint else batch.matched
        assert matched is not None
        m = objective.metric(apply(params, matched, batch.condition), batch.drawn_to)
        loss = loss + weights.matching * m.mean()
        terms["matching"] = m.mean()
    return loss, {"loss": loss, **terms}


def summary(
    r: jax.Array, i: jax.Array, t: jax.Array, clamped: jax.Array, weights: Weights
) -> dict[str, jax.Array]:
    """Means of the terms over the batch, see `total`."""
    # An infinite clamp makes it 0.
    saturation = -t / jnp.maximum(weights.clamp * r, _SMALL)
    return {
        "reconstruction": r.mean(),
        "idempotence": i.mean(),
        "tightness": clamped.mean(),
        "drift": -t.mean(),
        "saturation": saturation.mean(),
    }
