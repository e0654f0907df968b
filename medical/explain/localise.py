"""How well a map finds a known region, and how much the score depends on the pixels it names.

All functions take non-negative maps ``[batch, h, w]`` (see `magnitude`) and, where a region is
known, boolean masks ``[batch, h, w]``; they return ``[batch]`` in NumPy, NaN where a mask is empty.
"""


import jax
import jax.numpy as jnp
import numpy as np

from medical.explain.gradients import Score
from medical.statistics.multiclass import auc


def magnitude(attributions: np.ndarray | jax.Array) -> np.ndarray:
    """Absolute attributions summed over the channels: ``[batch, h, w, c]`` to ``[batch, h, w]``."""
    return np.abs(np.asarray(attributions, np.float64)).sum(axis=-1)


def iou(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Intersection over union of the mask and as many of the map's highest pixels.

    Pixels of equal value at the edge of the selection count by their expected number, so a constant
    map scores what a random one does, and the order of pixels never matters.
    """
    maps, masks = _flat(maps, masks)
    count = masks.sum(axis=1)
    overlap = np.zeros(len(maps))
    for i in np.flatnonzero(count):
        values, mask, k = maps[i], masks[i], int(count[i])
        edge = np.partition(values, len(values) - k)[len(values) - k]
        above, equal = values > edge, values == edge
        share = (k - above.sum()) / equal.sum()
        overlap[i] = (above & mask).sum() + share * (equal & mask).sum()
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, overlap / (2 * count - overlap), np.nan)


def pointing(maps: np.ndarray, masks: np.ndarray, tolerance: int = 0) -> np.ndarray:
    """Whether the map's maximum lies in the mask (Zhang et al., ECCV 2016), a tie by its share.

    Args:
      maps: ``[batch, h, w]``.
      masks: ``[batch, h, w]``.
      tolerance: pixels (Chebyshev distance) by which the mask is enlarged.
    """
    masks = dilate(masks, tolerance)
    maps, masks = _flat(maps, masks)
    top = maps == maps.max(axis=1, keepdims=True)
    found = (top & masks).sum(axis=1) / top.sum(axis=1)
    return np.where(masks.any(axis=1), found, np.nan)


def relevance_mass(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share of the map's sum that lies in the mask (Arras, Osman and Samek, 2022).

    A map that is zero everywhere scores what a constant one does.
    """
    maps, masks = _flat(maps, masks)
    total = maps.sum(axis=1)
    inside = (maps * masks).sum(axis=1)
    constant = masks.mean(axis=1)
    share = np.where(total > 0, inside / np.where(total > 0, total, 1), constant)
    return np.where(masks.any(axis=1), share, np.nan)


def pixel_auc(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """P(value inside the mask > value outside), ties a half."""
    maps, masks = _flat(maps, masks)
    usable = masks.any(axis=1) & ~masks.all(axis=1)
    found = np.full(len(maps), np.nan)
    for i in np.flatnonzero(usable):
        found[i] = auc(masks[i], maps[i])
    return found


def sparsity(maps: np.ndarray, threshold: float = 0.1) -> np.ndarray:
    """Share of pixels at or above `threshold` times the map's maximum (medXGAN's noise measure)."""
    maps, _ = _flat(maps, np.ones(np.shape(maps), bool))
    peak = maps.max(axis=1, keepdims=True)
    return np.where(peak[:, 0] > 0, (maps >= threshold * peak).mean(axis=1), 0.0)


def deletion_insertion(
    score: Score, images: jax.Array, maps: np.ndarray, baseline: jax.Array, steps: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """Mean score while pixels are replaced by the baseline, or restored, highest first.

    Petsiuk, Das and Saenko, "RISE", BMVC 2018. A low deletion and a high insertion value mean that
    the map's first pixels carry the score.

    Args:
      score: see the package; best a probability, so that means are comparable. One and the same
        function (object) for several maps compiles once; a `jax.tree_util.Partial` of a function
        and parameters does for several networks, too.
      images: ``[batch, h, w, c]``.
      maps: ``[batch, h, w]``; equal values come in a random order, the same for all maps.
      baseline: what pixels are replaced by, of the images' shape.
      steps: equal steps from no pixel to all.

    Returns:
      Deletion and insertion, each ``[batch]``: areas under the curve by the trapezoid rule.
    """
    count = maps.shape[1] * maps.shape[2]
    values = np.asarray(maps).reshape(len(maps), -1)
    # Equal values (most of a Grad-CAM is 0) in one random order, not from the top of the image.
    chance = np.random.default_rng(0).permutation(count)
    order = np.lexsort((np.broadcast_to(chance, values.shape), -values), axis=1)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(count)[None].repeat(len(maps), 0), 1)
    first = jnp.asarray(rank.reshape(*maps.shape, 1))

    limits = jnp.asarray(np.linspace(0, count, steps + 1).round().astype(np.int32))
    if not isinstance(score, jax.tree_util.Partial):
        score = jax.tree_util.Partial(score)
    curves = _curves(score, images, baseline, first, limits)
    weight = np.full(steps + 1, 1 / steps)
    weight[[0, -1]] /= 2
    deletion, insertion = (weight @ np.asarray(curve, np.float64) for curve in curves)
    return deletion, insertion


@jax.jit
def _curves(
    score: jax.tree_util.Partial, images: jax.Array, baseline: jax.Array, rank: jax.Array,
    limits: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Scores ``[limits, batch]`` with the pixels of rank below each limit deleted, or inserted."""

    def one(_: None, limit: jax.Array) -> tuple[None, tuple[jax.Array, jax.Array]]:
        chosen = rank < limit
        deleted = score(jnp.where(chosen, baseline, images))
        return None, (deleted, score(jnp.where(chosen, images, baseline)))

    return jax.lax.scan(one, None, limits)[1]


def dilate(masks: np.ndarray, pixels: int) -> np.ndarray:
    """Masks ``[batch, h, w]`` enlarged by a square of `pixels` on each side."""
    masks = np.asarray(masks, bool)
    for axis in (1, 2):
        grown = masks.copy()
        for shift in range(1, pixels + 1):
            low = [slice(None)] * 3
            high = [slice(None)] * 3
            low[axis], high[axis] = slice(shift, None), slice(None, -shift)
            grown[tuple(low)] |= masks[tuple(high)]
            grown[tuple(high)] |= masks[tuple(low)]
        masks = grown
    return masks


def _flat(maps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Checked maps and masks as ``[batch, pixels]``."""
    maps, masks = np.asarray(maps, np.float64), np.asarray(masks)
    if maps.shape != masks.shape or maps.ndim != 3 or masks.dtype != bool:
        raise ValueError(
            f"need maps and boolean masks [batch, h, w], got {maps.shape} and "
            f"{masks.shape} {masks.dtype}"
        )
    if not np.isfinite(maps).all() or maps.min() < 0:
        raise ValueError("maps must be finite and not negative; see localise.magnitude")
    return maps.reshape(len(maps), -1), masks.reshape(len(masks), -1)
