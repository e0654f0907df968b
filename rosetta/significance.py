"""How many matches are due to chance: permutation and random-weight nulls, with error control.

An absolute threshold on r separates neither chance nor training: units that share a spatial layout
(a bright centre, say) correlate on any images, and a random network's few matches may have higher r
than a trained one's. So matches are compared with nulls that keep what is not of interest:

* **Exchanged images** (`permutation_test`): each image's maps of one model against another image's
  maps of the other (`Plan.permutations`). Statistics and layout of every unit stay, the common
  image goes. A unit is significant if its best correlation exceeds what it reaches there.
* **Random weights** (`false_discovery_curve`): the same pipeline with untrained networks of the
  same architecture, normalisation calibrated. What they reach is due to architecture and images.

Error control: Benjamini and Hochberg, J. R. Stat. Soc. B 57, 1995; competition of targets with
decoys after Elias and Gygi, Nature Methods 4, 2007, with the +1 of Barber and Candes, Ann. Stat.
43, 2015.
"""

import dataclasses

import numpy as np

__all__ = [
    "Significance", "benjamini_hochberg", "false_discovery_curve", "permutation_test", "q_values",
]


@dataclasses.dataclass(frozen=True)
class Significance:
    """Significance of each unit's best correlation.

    Attributes:
      p: `[units]` p-values.
      q: `[units]` adjusted p-values: the smallest false-discovery rate at which a unit is accepted.
      excess: `[units]` best correlation less its mean over permutations (difference of r).
    """

    p: np.ndarray
    q: np.ndarray
    excess: np.ndarray

    def accepted(self, rate: float) -> np.ndarray:
        """`[units]` bool: significant at this false-discovery rate."""
        return self.q <= rate


def permutation_test(observed: np.ndarray, permuted: np.ndarray) -> Significance:
    """Tests the best correlation of each unit against tables with exchanged images.

    The statistic is each unit's largest correlation over all units of the other model, on Fisher's
    scale arctanh(r), less the mean of the same unit's values in the other tables (so that units
    with a strong layout do not set the bar for all). Its null distribution is pooled over units and
    permutations, each centred in the same way:

        d[j, u] = z[j, u] - mean_{i != j} z[i, u],   p[u] = (1 + #{d[j > 0] >= d[0, u]}) / (1 + J U)

    where table 0 is the observed one. If no image is shared, all tables are exchangeable. The
    q-values then bound the expected share of false discoveries among accepted units (units of one
    model are dependent; Benjamini and Hochberg's procedure holds for positive dependence).

    Args:
      observed: `[units]` largest correlation of each unit.
      permuted: `[permutations, units]` the same in each table of exchanged images.

    Raises:
      ValueError: no permutations, other shapes, or values that are not correlations.
    """
    observed, permuted = np.asarray(observed, np.float64), np.asarray(permuted, np.float64)
    if permuted.ndim != 2 or not len(permuted) or permuted.shape[1:] != observed.shape:
        raise ValueError(
            f"expected [units] and [permutations, units], got {observed.shape}, {permuted.shape}"
        )
    tables = np.concatenate([observed.reshape(1, -1), permuted])
    if not (np.abs(tables) <= 1).all():  # also catches NaN
        raise ValueError("correlations must be between -1 and 1")
    z = np.arctanh(np.clip(tables, -1 + 1e-7, 1 - 1e-7))
    difference = z - (z.sum(0) - z) / len(permuted)
    null = np.sort(difference[1:].ravel())
    above = null.size - np.searchsorted(null, difference[0], side="left")
    p = (1 + above) / (1 + null.size)
    return Significance(p, benjamini_hochberg(p), observed - permuted.mean(0))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values `[n]`: accepting those up to alpha keeps the false-discovery rate below it.

    Raises:
      ValueError: p-values outside (0, 1].
    """
    p = np.asarray(p, np.float64)
    if p.ndim != 1 or not ((p > 0) & (p <= 1)).all():
        raise ValueError("p-values must be a vector of numbers in (0, 1]")
    order = np.argsort(p)[::-1]
    scaled = p[order] * len(p) / np.arange(len(p), 0, -1)
    q = np.empty_like(p)
    q[order] = np.minimum(np.minimum.accumulate(scaled), 1)
    return q


def q_values(observed: np.ndarray, null: np.ndarray, rounds: int = 1) -> np.ndarray:
    """Estimated false-discovery rate of accepting each match and all better ones.

        fdr(t) = ((1 + #{null >= t}) / rounds) / #{observed >= t},   q = min over t' <= t

    Args:
      observed: `[n]` scores of the matches.
      null: `[m]` scores of the matches that the same pipeline finds in null data, of all rounds
        together.
      rounds: number of null data sets.

    Returns:
      `[n]`, at most 1.
    """
    observed, null = np.asarray(observed, np.float64), np.sort(np.asarray(null, np.float64))
    order = np.argsort(-observed, kind="stable")
    # Of equal scores, all are accepted together.
    accepted = len(observed) - np.searchsorted(np.sort(observed), observed[order], side="left")
    false = 1 + len(null) - np.searchsorted(null, observed[order], side="left")
    rate = np.minimum(false / rounds / np.maximum(accepted, 1), 1)
    q = np.empty(len(observed))
    q[order] = np.minimum.accumulate(rate[::-1])[::-1]
    return q


def false_discovery_curve(
    observed: np.ndarray, null: np.ndarray, rounds: int, thresholds: np.ndarray
) -> dict[str, np.ndarray]:
    """Numbers of matches at rising thresholds on r, beside those of a null.

    Args:
      observed: `[n]` scores of the matches.
      null: `[m]` scores of the matches in null data, of all rounds together.
      rounds: number of null data sets (random networks, or permutations).
      thresholds: `[t]` correlations.

    Returns:
      `thresholds`, `observed` and `null` (matches at least as good, per data set; `[t]`).
    """
    thresholds = np.asarray(thresholds, np.float64)

    def count(scores: np.ndarray) -> np.ndarray:
        ordered = np.sort(np.asarray(scores, np.float64))
        return len(ordered) - np.searchsorted(ordered, thresholds, side="left")

    return {
        "thresholds": thresholds,
        "observed": count(observed).astype(np.float64),
        "null": count(null) / rounds,
    }
