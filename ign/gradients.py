"""Gradients of the objective: `four_pass` as the definitions read, `shared_forward` in three.

Idempotence and tightness evaluate the same second application `f(f(z))`, and only send their
gradients different ways. `shared_forward` evaluates it once and pulls back by hand:

    x, z -> f(x), f(z)            one evaluation of the joined batch
    y = f(z) -> d = D(f(y), y)    one evaluation; its gradient in y is the idempotence's,
                                  its gradient in the parameters, negated, the tightness's

so a step costs 9 units of one forward pass (3 forward, 3 with 2 backward each) where the
definitions cost 11. With the clamp the two gradients have different weights for each example. For
networks that treat examples independently one backward pass still gives both, because the gradient
in `y_i` is proportional to the weight of example i and can be rescaled afterwards; for networks
that mix the examples of a batch (`independent=False`: batch normalisation in training mode) two
backward passes share the one forward pass, and x and z are evaluated apart, as published.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ign.losses import Apply, Batch, Objective, Weights, smooth_clamp, summary, total

PyTree = Any
Result = tuple[PyTree, dict[str, jax.Array]]
# As `Apply`, with averages of batch normalisation -> images and the averages after them.
ApplyStatistics = Callable[[PyTree, jax.Array, PyTree, PyTree], tuple[jax.Array, PyTree]]

# An example whose tightness weighs nothing still needs some cotangent from which its idempotence
# gradient is rescaled: this share of the idempotence weight, below the rounding of the sum.
_FLOOR = 1e-8


def four_pass(
    apply: Apply, params: PyTree, batch: Batch, weights: Weights, objective: Objective
) -> Result:
    """`(gradients, terms)` by differentiating `losses.total`."""
    function = jax.grad(lambda p: total(apply, p, batch, weights, objective), has_aux=True)
    return function(params)


def shared_forward(
    apply: Apply,
    params: PyTree,
    batch: Batch,
    weights: Weights,
    objective: Objective,
    independent: bool = True,
) -> Result:
    """`(gradients, terms)` equal to `four_pass` up to rounding, with one second application.

    Args:
        apply: the network; random layers must draw the same for equal inputs' shapes.
        params: its parameters.
        batch: see `losses.Batch`.
        weights: of the terms.
        objective: metrics and the form of idempotence.
        independent: the network's output for an example does not depend on the others.
    """

    def plain(params: PyTree, images: jax.Array, condition: PyTree, stats: PyTree) -> Any:
        return apply(params, images, condition), stats

    found = shared_forward_statistics(
        plain, params, None, batch, weights, objective, independent
    )
    return found[:2]


def shared_forward_statistics(
    apply: ApplyStatistics,
    params: PyTree,
    stats: PyTree,
    batch: Batch,
    weights: Weights,
    objective: Objective,
    independent: bool,
) -> tuple[PyTree, dict[str, jax.Array], PyTree]:
    """`shared_forward` that brings averages along: `(gradients, terms, averages)`.

    The averages of batch normalisation are those after the passes over x, z and f(z), in this
    order, as published; these are the passes that the gradients need.

    Args:
        apply: the network in training mode, whose images do not depend on the averages.
        params: its parameters.
        stats: its averages before the step; those of an `independent` network are returned as
            they are.
        batch, weights, objective, independent: as of `shared_forward`.
    """
    size = batch.images.shape[0]
    condition = batch.condition
    inputs = [batch.inputs, batch.noise]
    if objective.use_matching and not objective.joint:
        assert batch.matched is not None
        inputs.append(batch.matched)
    if independent:
        joined = jax.tree.map(lambda c: jnp.concatenate([c] * len(inputs)), condition)
        whole, pull_joined = jax.vjp(
            lambda p: apply(p, jnp.concatenate(inputs), joined, stats)[0], params
        )
        outputs = jnp.split(whole, len(inputs))

        def pull_first(cotangents: list[jax.Array]) -> PyTree:
            return pull_joined(jnp.concatenate(cotangents))[0]
    else:
        outputs, pulls = [], []
        for index, u in enumerate(inputs):
            output, pull, after = jax.vjp(
                lambda p, u=u, s=stats: apply(p, u, condition, s), params, has_aux=True
            )
            outputs.append(output)
            pulls.append(pull)
            stats = after if index < 2 else stats  # matched noise does not count

        def pull_first(cotangents: list[jax.Array]) -> PyTree:
            parts = [pull(c)[0] for pull, c in zip(pulls, cotangents, strict=True)]
            return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *parts)

    fx, y = outputs[:2]
    rec_metric = objective.reconstruction_metric or objective.metric
    r, pull_r = jax.vjp(lambda u: rec_metric(u, batch.images), fx)
    fy, pull_second, stats = jax.vjp(
        lambda p, u: apply(p, u, condition, stats), params, y, has_aux=True
    )
    drift, pull_metric = jax.vjp(objective.metric, fy, y)

    # The clamped tightness as a function of its two arguments, both of which carry gradient.
    clamped, pull_clamp = jax.vjp(lambda t, r: smooth_clamp(t, r, weights.clamp), -drift, r)
    slope, r_slope = pull_clamp(jnp.full_like(r, 1.0 / size) * weights.tightness)
    (fx_bar,) = pull_r(weights.reconstruction / size + r_slope)
    i_weight = jnp.full_like(r, 1.0 / size) * weights.idempotence

    if objective.idempotence == "purified":
        fy_bar, _ = pull_metric(-slope)
        second, _ = pull_second(fy_bar)
        third, _ = apply(params, fy, condition, stats)
        target = jax.lax.stop_gradient(3.0 * fy - 2.0 * third)
        i, pull_i = jax.vjp(lambda u: objective.metric(u, target), y)
        (y_bar,) = pull_i(i_weight)
    elif independent:
        i = drift
        sent = jnp.maximum(slope, _FLOOR * jnp.maximum(i_weight, 1.0 / size))
        fy_bar, y_bar = pull_metric(sent)
        second, through = pull_second(fy_bar)
        second = jax.tree.map(jnp.negative, second)
        y_bar = (y_bar + through) * _per_example(i_weight / sent, y)
    else:
        i = drift
        fy_bar, _ = pull_metric(-slope)
        second, _ = pull_second(fy_bar)
        fy_bar, y_bar = pull_metric(i_weight)
        _, through = pull_second(fy_bar)
        y_bar = y_bar + through

    cotangents = [fx_bar, y_bar]
    terms = summary(r, i, -drift, clamped, weights)
    loss = (
        weights.reconstruction * r.mean()
        + weights.idempotence * i.mean()
        + weights.tightness * clamped.mean()
    )
    if objective.use_matching:
        m, pull_m = jax.vjp(lambda u: objective.metric(u, batch.drawn_to), outputs[-1])
        (m_bar,) = pull_m(jnp.full_like(m, 1.0 / size) * weights.matching)
        if objective.joint:
            cotangents[1] = y_bar + m_bar
        else:
            cotangents.append(m_bar)
        loss = loss + weights.matching * m.mean()
        terms["matching"] = m.mean()
    grads = jax.tree.map(jnp.add, pull_first(cotangents), second)
    return grads, {"loss": loss, **terms}, stats


def _per_example(scale: jax.Array, like: jax.Array) -> jax.Array:
    """`[batch]` -> `[batch, 1, ...]` with the rank of `like`."""
    return scale.reshape(-1, *(1,) * (like.ndim - 1))
