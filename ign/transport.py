"""Transport: each sample is drawn towards the images around it and away from other samples.

Drawing samples towards images alone (`matching`) makes them too alike: a sample near several images
ends between them. Here the target of a sample `y` is

    y + P(y) - Q(y)

where `P` is the mean of real images and `Q` that of other samples, both weighted by how near they
are to `y`. Where images and samples are equally dense the two cancel, so samples rest only if they
are spread as the images are. With Gaussian weights, `P - Q` is the difference of the two smoothed
densities' scores, so samples follow the flow that lowers their Kullback-Leibler divergence from the
images. Deng et al., "Generative Modeling via Drifting" (arXiv 2602.04770, 2026), train generators
so in the features of a fixed encoder; Salimans et al., "Improving GANs using Optimal Transport"
(ICLR 2018), take the weights from a balanced transport (`balance`), in which every image draws
equally much. The form here, in pixels and with a memory of earlier batches, is this project's.

Among a thousand images of many pixels everything is far from everything, and such weights hardly
notice that samples are a little too alike. Projections on a line do: `spread` says how far a sample
must move for the samples to be spread as the images are along random directions (the flow of the
sliced Wasserstein distance: Bonneel et al., "Sliced and Radon Wasserstein Barycenters of Measures",
2015). It can be added to the targets of either form of matching.
"""

import jax
import jax.numpy as jnp
from flax import struct

from ign import matching
from ign.matching import Bank

_EMPTY = 1e30  # squared distance to an empty place, or to one of another label


class Memory(struct.PyTreeNode):
    """The last images and the last samples, as banks without noise."""

    images: Bank
    samples: Bank


def empty_memory(places: int, shape: tuple[int, ...], conditional: bool = False) -> Memory:
    """A memory for images of `shape` in which nothing has been put."""
    bank = matching.empty_bank(places, shape, conditional).replace(noise=None)
    return Memory(bank, jax.tree.map(jnp.copy, bank))


def remember(
    memory: Memory,
    images: jax.Array,
    samples: jax.Array,
    step: jax.Array,
    labels: jax.Array | None = None,
) -> Memory:
    """The memory with a batch in place of the oldest: number `step`; `labels` are of both sides."""
    return Memory(
        matching.refill(memory.images, matching.make_bank(None, images, labels), step),
        matching.refill(memory.samples, matching.make_bank(None, samples, labels), step),
    )


def spread(memory: Memory, samples: jax.Array, key: jax.Array, slices: int) -> jax.Array:
    """How far each sample should move, `[batch, ...]`, mean over `slices` random directions.

    Along each direction a sample is moved from its quantile among the samples of the memory to the
    same quantile of the images; the sum is scaled so that a cloud that is too narrow in all
    directions alike is brought to its width. 0 while the memory has an empty place. Labels do not
    count here.
    """
    flat = samples.reshape(len(samples), -1)
    seen = memory.images.images.reshape(len(memory.images.images), -1)
    others = memory.samples.images.reshape(len(memory.samples.images), -1)
    size = flat.shape[1]
    directions = jax.random.normal(key, (size, slices))
    directions /= jnp.linalg.norm(directions, axis=0, keepdims=True)
    # The barrier: XLA's product for CPUs that would give the transpose at once is slow.
    along = [jax.lax.optimization_barrier(x @ directions).T for x in (seen, others, flat)]
    real, drawn = jnp.sort(along[0]), jnp.sort(along[1])  # [slices, places]
    own = along[2]  # [slices, batch]
    # Quantiles between those of the memory's samples, so that samples do not all snap to them.
    moved = jax.vmap(lambda x, old, new: jnp.interp(x, old, new))(own, drawn, real)
    # Beyond the outermost sample the distance to it is kept.
    beyond = own - jnp.clip(own, drawn[:, :1], drawn[:, -1:])
    change = (moved + beyond - own).T @ directions.T * (size / slices)
    full = jnp.isfinite(memory.images.squares).all() & jnp.isfinite(memory.samples.squares).all()
    return jnp.where(full, change, 0.0).reshape(samples.shape)


def targets(
    memory: Memory,
    images: jax.Array,
    samples: jax.Array,
    temperature: jax.Array | float,
    step: jax.Array,
    labels: jax.Array | None = None,
    balance: int = 0,
) -> tuple[jax.Array, Memory]:
    """What each sample is drawn to, `[batch, ...]`, and the memory with this batch in it.

    The samples are compared with those of earlier batches only. Nothing here carries gradient.

    Args:
        memory: of earlier batches.
        images: `[batch, ...]` real images; they compete with those of the memory.
        samples: `[batch, ...]` new samples.
        temperature: squared distance over which a weight falls by e, relative to the mean squared
            distance of a sample to its nearest image.
        step: number of batches before this one.
        labels: int32 `[batch]` of a conditional network, of images and samples: only those of its
            own label act on a sample.
        balance: rounds of normalisation between images (so that each draws equally much) and
            samples; 0 weighs for each sample alone.
    """
    new = remember(memory, images, samples, step, labels)
    seen = new.images
    flat = samples.reshape(len(samples), -1)
    near = _squared_distances(flat, seen, labels)
    others = _squared_distances(flat, memory.samples, labels)
    scale = temperature * jnp.maximum(near.min(axis=1).mean(), 1e-12)
    attracting = _weights(near, scale, balance) @ seen.images.reshape(len(near[0]), -1)
    away = _weights(others, scale, balance) @ memory.samples.images.reshape(len(others[0]), -1)
    # Before the first samples are in the memory (or the first of a label) there is no repulsion.
    away = jnp.where(others.min(axis=1, keepdims=True) < _EMPTY, away, flat)
    return (flat + attracting - away).reshape(samples.shape), new


def _squared_distances(rows: jax.Array, bank: Bank, labels: jax.Array | None) -> jax.Array:
    """`[rows, places]`; `_EMPTY` to places that are empty or of another label."""
    flat = bank.images.reshape(len(bank.images), -1)
    product = jnp.matmul(rows, flat.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.square(rows).sum(axis=1)[:, None] + bank.squares[None] - 2.0 * product
    absent = jnp.isinf(bank.squares)[None]
    if labels is not None and bank.labels is not None:
        absent |= labels[:, None] != bank.labels[None]
    return jnp.where(absent, _EMPTY, jnp.maximum(squares, 0.0))


def _weights(squares: jax.Array, scale: jax.Array, balance: int) -> jax.Array:
    """Weights `[rows, places]`, each row of sum 1."""
    logits = jnp.where(squares < _EMPTY, -squares / scale, -jnp.inf)
    present = jnp.isfinite(logits)
    for _ in range(balance):
        logits = _normalised(logits, present, axis=1)
        logits = _normalised(logits, present, axis=0)
    return jnp.exp(_normalised(logits, present, axis=1))


def _normalised(logits: jax.Array, present: jax.Array, axis: int) -> jax.Array:
    """Log weights of sum 1 along an axis; lines in which nothing is present stay at 0 weight."""
    total = jax.nn.logsumexp(logits, axis=axis, keepdims=True)
    return jnp.where(present, logits - jnp.where(jnp.isfinite(total), total, 0.0), -jnp.inf)
