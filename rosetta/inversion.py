"""Latents whose generator maps agree with given maps: inversion guided by matched units.

For matched pairs p of a generator unit g and a unit m of another network that sees the image x,

    L(z) = - a sum_p w_p cos(g_p(z), m_p(x)) / sum_p w_p  +  b mean (G(z) - x)^2
           + c LPIPS(G(z), x)  +  d mean (z - z_0)^2,        cos(g, m) = <g, m> / (|g| |m|).

Both maps are standardised by their statistics over the mined images and the smaller is enlarged to
the size of the larger (the published notebooks: a is the number of pairs, b 0 or 100, Adam with
rate 0.01 and betas 0.5, 0.999). No map of the generator is enlarged here: a larger target is
brought down by the adjoint, and |U g|^2 = <g, U^T U g> (`rosetta.resize`).

Images of a batch are independent: targets, weights and latents have one entry for each, so a batch
may hold several images, starts and weightings at once, each as if it were alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from common.nets.lpips import lpips
from rosetta.resize import matrix
from rosetta.units import Layout, MapError
from rosetta.zoo.tapped import Generator, Maps

__all__ = [
    "Inversion", "Settings", "Statistics", "Target", "Weights", "agreement", "invert",
    "make_targets", "objective", "repeat", "starts",
]

EPSILON = 1e-5  # added to deviations, as in the published code
_HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each unit of a model over the mined images, `[units]`."""

    mean: np.ndarray
    deviation: np.ndarray

    def standardise(self, maps: np.ndarray, unit: int) -> np.ndarray:
        """Maps `[images, s, s]` of one unit, less its mean, over its deviation."""
        return (maps - self.mean[unit]) / (self.deviation[unit] + EPSILON)


class Target(struct.PyTreeNode):
    """What the maps of one tap of the generator shall be like, for P pairs.

    Attributes:
      maps: `[images, s, s, P]`, the wanted maps, standardised, on the generator's grid.
      norms: `[images, P]` of the wanted maps on the common grid.
      grams: `[P, s, s]`, `M^T M` of the enlargement of the generator's map to the common grid.
      weights: `[images, P]` of the pairs.
      channels: `[P]` of the tap.
      means, deviations: `[P]` of the generator's units.
      tap: name.
    """

    maps: jax.Array
    norms: jax.Array
    grams: jax.Array
    weights: jax.Array
    channels: jax.Array
    means: jax.Array
    deviations: jax.Array
    tap: str = struct.field(pytree_node=False)


class Weights(struct.PyTreeNode):
    """Weights of the terms of the loss (a, b, c, d above), `[images]` each."""

    activation: jax.Array
    pixel: jax.Array
    lpips: jax.Array
    prior: jax.Array

    @classmethod
    def of(
        cls, images: int, activation: float = 1.0, pixel: float = 0.0, lpips: float = 0.0,
        prior: float = 0.0,
    ) -> "Weights":
        """The same weights for each of a number of images."""
        return cls(*(jnp.full(images, x, jnp.float32) for x in (activation, pixel, lpips, prior)))


@dataclasses.dataclass(frozen=True)
class Settings:
    """How latents are optimised, by Adam.

    Attributes:
      steps: number of updates.
      rate: learning rate.
      betas: of Adam.
      schedule: "constant" (published inversion) or "ramp": linear over the first 5 % of the steps,
        cosine down to 0 over the last 25 % (published edits).
    """

    steps: int = 1000
    rate: float = 0.01
    betas: tuple[float, float] = (0.5, 0.999)
    schedule: str = "constant"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.schedule not in ("constant", "ramp"):
            raise ValueError(f"{self.steps} steps with schedule {self.schedule!r}")


@dataclasses.dataclass(frozen=True)
class Inversion:
    """Result of `invert`.

    Attributes:
      latents: `[images, ...]`.
      images: `[images, height, width, 3]` in [0, 1], clipped.
      losses: `[steps, images]`, before each update.
      before, after: `[images]`, mean agreement of the pairs at the start and at the end.
    """

    latents: np.ndarray
    images: np.ndarray
    losses: np.ndarray
    before: np.ndarray
    after: np.ndarray


def make_targets(
    layout: Layout,
    statistics: Statistics,
    units: Sequence[int] | np.ndarray,
    maps: Sequence[np.ndarray],
    weights: Sequence[float] | np.ndarray | None = None,
) -> tuple[Target, ...]:
    """Wanted maps of units of a generator, grouped by its taps.

    Args:
      layout: of the generator.
      statistics: of the generator's units.
      units: `[P]` numbers of the generator's units; the same may occur more than once.
      maps: for each of them the wanted map `[images, t, t]` of any size, standardised.
      weights: `[P]` of the pairs; 1 by default.

    Raises:
      MapError: no pairs, maps that are not square or not finite, or different numbers of images.
    """
    if len(units) == 0 or len(units) != len(maps):
        raise MapError(f"{len(maps)} wanted maps for {len(units)} units of {layout.name!r}")
    for unit, wanted in zip(units, maps, strict=True):
        shape = np.shape(wanted)
        if len(shape) != 3 or shape[1] != shape[2] or shape[0] != len(maps[0]):
            raise MapError(
                f"unit {unit} of {layout.name!r}: wanted map of shape {shape}, expected "
                f"[{len(maps[0])}, size, size]"
            )
        if not np.isfinite(wanted).all():
            raise MapError(f"unit {unit} of {layout.name!r}: the wanted map is not finite")
    weights = np.ones(len(units)) if weights is None else np.asarray(weights, np.float64)
    groups: dict[int, list[int]] = {}
    for place, unit in enumerate(units):
        groups.setdefault(layout.find(int(unit))[0], []).append(place)
    result = []
    for tap, places in sorted(groups.items()):
        size = layout.sizes[tap]
        moved, norms, grams = zip(*(_on_grid(np.asarray(maps[p]), size) for p in places),
                                  strict=True)
        numbers = np.array([int(units[p]) for p in places])
        result.append(
            Target(
                maps=jnp.asarray(np.stack(moved, -1), jnp.float32),
                norms=jnp.asarray(np.stack(norms, -1), jnp.float32),
                grams=jnp.asarray(np.stack(grams), jnp.float32),
                weights=jnp.asarray(np.tile(weights[places], (len(maps[0]), 1)), jnp.float32),
                channels=jnp.asarray(numbers - layout.offsets[tap], jnp.int32),
                means=jnp.asarray(statistics.mean[numbers], jnp.float32),
                deviations=jnp.asarray(statistics.deviation[numbers], jnp.float32),
                tap=layout.taps[tap],
            )
        )
    return tuple(result)


def repeat(targets: tuple[Target, ...], times: int) -> tuple[Target, ...]:
    """The targets of a batch that holds every image `times` times, one copy after another."""

    def tiled(x: jax.Array) -> jax.Array:
        return jnp.tile(x, (times, *(1,) * (x.ndim - 1)))

    return tuple(
        t.replace(maps=tiled(t.maps), norms=tiled(t.norms), weights=tiled(t.weights))
        for t in targets
    )


def agreement(targets: Sequence[Target], maps: Maps) -> jax.Array:
    """Weighted mean over pairs of the cosine of standardised maps, `[images]`, in [-1, 1].

    A pair whose wanted map is zero, or whose generator map is at its mean everywhere, counts 0.
    """
    total: Any = 0.0
    weight: Any = 0.0
    for target in targets:
        cosine = _cosine(target, maps[target.tap])
        total = total + jnp.sum(cosine * target.weights, 1)
        weight = weight + jnp.sum(target.weights, 1)
    return total / jnp.where(weight > 0, weight, 1)


def objective(
    generator: Generator, perceptual: Any = None
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The loss as a function.

    Args:
      generator: whose latents are wanted.
      perceptual: parameters of LPIPS (AlexNet), for images of 31 pixels or more; None: the term is
        left out.

    Returns:
      `(params, latents, centre, targets, images, weights) -> (losses [images], agreement
      [images])`; `centre` is z_0, of the latents' shape or with one entry for all.
    """

    def losses(
        params: Any, latents: jax.Array, centre: jax.Array, targets: Sequence[Target],
        images: jax.Array, weights: Weights,
    ) -> tuple[jax.Array, jax.Array]:
        made, maps = generator.apply(params, latents)
        agreed = agreement(targets, maps)
        axes = tuple(range(1, latents.ndim))
        total = -weights.activation * agreed
        total = total + weights.pixel * jnp.mean(jnp.square(made - images), (1, 2, 3))
        total = total + weights.prior * jnp.mean(jnp.square(latents - centre), axes)
        if perceptual is not None:
            made = jnp.broadcast_to(made, images.shape)  # one latent for all in `starts`
            total = total + weights.lpips * lpips(perceptual, made, images)
        return total, agreed

    return losses


def starts(
    generator: Generator,
    key: jax.Array,
    tries: int,
    targets: Sequence[Target],
    images: jax.Array | np.ndarray,
    weights: Weights,
    perceptual: Any = None,
) -> jax.Array:
    """The best of some random latents for each image by the loss without prior, `[images, ...]`.

    All images have the same candidates.
    """
    evaluate = objective(generator, perceptual)
    images = jnp.asarray(images, jnp.float32)
    candidates = generator.sample(key, tries)

    @jax.jit
    def every(params: Any, candidates: jax.Array, given: Any) -> jax.Array:
        def one(latent: jax.Array) -> jax.Array:
            latent = latent[None]
            return evaluate(params, latent, latent, *given)[0]

        return jax.lax.map(one, candidates)

    given = (tuple(targets), images, weights)
    return candidates[jnp.argmin(every(generator.params, candidates, given), 0)]


def invert(
    generator: Generator,
    start: jax.Array,
    targets: Sequence[Target],
    images: jax.Array | np.ndarray,
    weights: Weights,
    settings: Settings,
    centre: jax.Array | None = None,
    perceptual: Any = None,
) -> Inversion:
    """Optimises latents, all images at once.

    Args:
      generator: with `apply`, `params` and (if no centre is given) `mean`.
      start: latents `[images, ...]`.
      targets: wanted maps, see `make_targets`; may be empty.
      images: `[images, size, size, 3]` in [0, 1], for the pixel and LPIPS terms; any values where
        their weights are 0.
      weights: of the terms, for each image.
      settings: of the optimiser.
      centre: z_0 of the prior; the mean of the generator's latents by default.
      perceptual: see `objective`.

    Raises:
      ValueError: batches of different lengths.
      FloatingPointError: a loss that is not finite.
    """
    count = start.shape[0]
    sizes = {len(images), weights.pixel.shape[0], *(t.maps.shape[0] for t in targets)}
    if sizes != {count}:
        raise ValueError(f"{count} latents, but images, weights and targets of {sorted(sizes)}")
    centre = jnp.asarray(generator.mean)[None] if centre is None else centre
    losses_of = objective(generator, perceptual)
    optimiser = optax.adam(_rate(settings), *settings.betas)
    given = (centre, tuple(targets), jnp.asarray(images, jnp.float32), weights)

    def step(latents: jax.Array, state: Any, params: Any, given: Any) -> Any:
        def total(latents: jax.Array) -> tuple[jax.Array, Any]:
            losses, agreed = losses_of(params, latents, *given)
            return jnp.sum(losses), (losses, agreed)  # a sum: images do not share a gradient

        gradient, found = jax.grad(total, has_aux=True)(latents)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(latents, updates), state, found

    compiled = jax.jit(step, donate_argnums=(0, 1))
    latents = jnp.array(start, jnp.float32, copy=True)
    state, history, agreed = optimiser.init(latents), [], []
    for _ in range(settings.steps):
        latents, state, found = compiled(latents, state, generator.params, given)
        history.append(found[0])
        agreed.append(found[1])
    losses = np.stack([np.asarray(loss) for loss in history])
    if not np.isfinite(losses).all():
        step_, image = np.argwhere(~np.isfinite(losses))[0]
        raise FloatingPointError(f"the loss of image {image} is not finite at step {step_}")

    @jax.jit
    def final(params: Any, latents: jax.Array, targets: Any) -> tuple[jax.Array, jax.Array]:
        made, maps = generator.apply(params, latents)
        return made, agreement(targets, maps) + jnp.zeros(latents.shape[0])

    made, after = final(generator.params, latents, tuple(targets))
    before = np.broadcast_to(np.asarray(agreed[0]), (count,))
    return Inversion(
        np.asarray(latents), np.clip(np.asarray(made), 0, 1), losses, before, np.asarray(after)
    )


def _cosine(target: Target, maps: jax.Array) -> jax.Array:
    """Cosines `[images, P]`; `maps [images, s, s, channels]`, or of one image for all."""
    # A product with a 0-1 matrix: the gradient of a gather is a scatter, slow on CPUs.
    chosen = jax.nn.one_hot(target.channels, maps.shape[3], axis=0, dtype=jnp.float32)
    found = jnp.einsum("bijc,cp->bijp", maps, chosen, precision=_HIGHEST)
    found = found - target.means.reshape(1, 1, 1, -1)
    found = found / (target.deviations + EPSILON).reshape(1, 1, 1, -1)
    rows = jnp.einsum("pxi,bijp->bxjp", target.grams, found, precision=_HIGHEST)
    smoothed = jnp.einsum("pyj,bxjp->bxyp", target.grams, rows, precision=_HIGHEST)
    square = jnp.sum(found * smoothed, (1, 2))
    valid = (square > 1e-12) & (target.norms > 1e-6)
    scale = jnp.sqrt(jnp.where(valid, square, 1)) * jnp.where(valid, target.norms, 1)
    return jnp.where(valid, jnp.sum(found * target.maps, (1, 2)) / scale, 0)


def _on_grid(wanted: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A wanted map `[images, t, t]` on the generator's grid, its norm, and the Gram matrix."""
    other = wanted.shape[1]
    if other <= size:
        m = matrix(other, size)
        moved = np.einsum("oi,bij,pj->bop", m, wanted, m, optimize=True)
        return moved, np.sqrt(np.square(moved).sum((1, 2))), np.eye(size)
    m = matrix(size, other)
    moved = np.einsum("oi,boq,qj->bij", m, wanted, m, optimize=True)
    return moved, np.sqrt(np.square(np.float64(wanted)).sum((1, 2))), m.T @ m


def _rate(settings: Settings) -> Any:
    """The learning rate of each step."""
    if settings.schedule == "constant":
        return settings.rate

    def rate(step: jax.Array) -> jax.Array:
        share = (jnp.asarray(step, jnp.float32) + 1) / settings.steps
        down = 0.5 - 0.5 * jnp.cos(jnp.pi * jnp.minimum(1, (1 - share) / 0.25))
        return settings.rate * down * jnp.minimum(1, share / 0.05)

    return rate
