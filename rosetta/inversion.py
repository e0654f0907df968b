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
from rosetta.targets import Statistics, Target, agreement, make_targets, repeat, rows_of
from rosetta.zoo.tapped import Generator

__all__ = [
    "SCHEDULES", "Inversion", "Settings", "Statistics", "Target", "Weights", "agreement", "invert",
    "make_targets", "objective", "repeat", "starts",
]

SCHEDULES = ("constant", "ramp")


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

    def rows(self, places: np.ndarray) -> "Weights":
        """The weights of some of the images."""
        return jax.tree.map(lambda x: x[places], self)


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
        if self.steps < 1 or self.schedule not in SCHEDULES:
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
    most: int = 0,
) -> Inversion:
    """Optimises latents, all images at once or in parts.

    Args:
      generator: with `apply`, `params` and (if no centre is given) `mean`.
      start: latents `[images, ...]`.
      targets: wanted maps, see `make_targets`; may be empty.
      images: `[images, size, size, 3]` in [0, 1], for the pixel and LPIPS terms; any values where
        their weights are 0.
      weights: of the terms, for each image.
      settings: of the optimiser.
      centre: z_0 of the prior, of the latents' shape or with one entry for all; the mean of the
        generator's latents by default.
      perceptual: see `objective`.
      most: images that are optimised together, a bound of memory; 0 for all.

    Raises:
      ValueError: batches of different lengths.
      FloatingPointError: a loss that is not finite.
    """
    count = start.shape[0]
    sizes = {len(images), weights.pixel.shape[0], *(t.maps.shape[0] for t in targets)}
    if sizes != {count}:
        raise ValueError(f"{count} latents, but images, weights and targets of {sorted(sizes)}")
    if centre is None:
        centre = jnp.broadcast_to(jnp.asarray(generator.mean), start.shape[1:])[None]
    centre = jnp.asarray(centre)
    losses_of = objective(generator, perceptual)
    optimiser = optax.adam(_rate(settings), *settings.betas)

    def step(latents: jax.Array, state: Any, params: Any, given: Any) -> Any:
        def total(latents: jax.Array) -> tuple[jax.Array, Any]:
            losses, agreed = losses_of(params, latents, *given)
            return jnp.sum(losses), (losses, agreed)  # a sum: images do not share a gradient

        gradient, found = jax.grad(total, has_aux=True)(latents)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(latents, updates), state, found

    def final(params: Any, latents: jax.Array, targets: Any) -> tuple[jax.Array, jax.Array]:
        made, maps = generator.apply(params, latents)
        return made, agreement(targets, maps) + jnp.zeros(latents.shape[0])

    compiled, last = jax.jit(step, donate_argnums=(0, 1)), jax.jit(final)
    images = np.asarray(images, np.float32)
    start = jnp.asarray(start, jnp.float32)
    size = min(most, count) if most > 0 else count
    parts = []
    for low in range(0, count, size):
        # The last part is filled up with its last image: all parts are one program.
        rows = np.minimum(np.arange(low, low + size), count - 1)
        kept = min(size, count - low)
        wanted = rows_of(targets, rows)
        own = centre if len(centre) == 1 else centre[rows]
        given = (own, wanted, jnp.asarray(images[rows]), weights.rows(rows))
        latents = start[rows]
        state, history, agreed = optimiser.init(latents), [], []
        for _ in range(settings.steps):
            latents, state, found = compiled(latents, state, generator.params, given)
            history.append(found[0])
            agreed.append(found[1])
        losses = np.stack([np.asarray(loss)[:kept] for loss in history])
        if not np.isfinite(losses).all():
            step_, image = np.argwhere(~np.isfinite(losses))[0]
            raise FloatingPointError(
                f"the loss of image {low + image} is not finite at step {step_}"
            )
        made, after = last(generator.params, latents, wanted)
        before = np.broadcast_to(np.asarray(agreed[0]), (size,))
        ends = (np.asarray(latents), np.clip(np.asarray(made), 0, 1), before, np.asarray(after))
        parts.append((losses, *(x[:kept] for x in ends)))
    histories, *columns = zip(*parts, strict=True)
    reached, pictures, first, end = (np.concatenate(x) for x in columns)
    return Inversion(reached, pictures, np.concatenate(histories, 1), first, end)


def _rate(settings: Settings) -> Any:
    """The learning rate of each step."""
    if settings.schedule == "constant":
        return settings.rate

    def rate(step: jax.Array) -> jax.Array:
        share = (jnp.asarray(step, jnp.float32) + 1) / settings.steps
        down = 0.5 - 0.5 * jnp.cos(jnp.pi * jnp.minimum(1, (1 - share) / 0.25))
        return settings.rate * down * jnp.minimum(1, share / 0.05)

    return rate
