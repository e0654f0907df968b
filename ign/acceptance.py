"""Whether a trained network is one that is worth using: bounds that it must meet all together.

Each bound alone is met by some failure: the identity map and a constant map have no drift, an
autoencoder restores but draws nothing, a collapsed network draws sharp images. So the verdict is on
all of them at once, and stands in `results.json` and in the report. The bounds are proposals of
this project, set before anything was trained; the paper has none.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

Numbers = Mapping[str, Any]


class Bound(NamedTuple):
    """One demand: its name, the value found, the bound, and whether it is kept."""

    name: str
    value: float
    bound: str
    kept: bool


def bounds(member: Numbers, baselines: Mapping[str, Numbers]) -> list[Bound]:
    """All demands on one member of `results.json`, beside the results' baselines.

    Those on classes are left out for a set without. Distances are relative to the same distance of
    the mean image and of a plain autoencoder's answer to the noise, the duplicates to those of real
    images.
    """
    drawn, drift = member["f"], member["detection"]
    restored = member["restoration"]

    def gain(what: str) -> float:
        return restored[what]["f"]["psnr"] - restored[what]["corrupted"]["psnr"]

    def relative(key: str, to: str) -> float:
        return drawn[key] / max(baselines[to][key], 1e-12)

    own, generated, noise = (drift[name]["drift"] for name in ("real", "f(z)", "noise z"))
    found = []
    if "coverage" in drawn:
        found.append(_least("classes drawn", drawn["coverage"], drawn["classes"]))
        # The natural logarithm of 10 classes is 2.303; the share is the same for other numbers.
        found.append(_least("entropy of the classes", drawn["entropy"], _entropy(drawn["classes"])))
    found += [
        _most("FD / FD of the mean image", relative("frechet", "mean image"), 0.25),
        _most("FD / FD of the autoencoder on noise",
              relative("frechet", "autoencoder of noise"), 0.5),
        _most("duplicates / real duplicates", relative("duplicates", "real training images"), 2.0),
        _most("idempotence ratio, median", member["idempotence"]["median"], 0.1),
        _most("drift of test images / of f(z)", own / max(generated, 1e-12), 2.0),
        _most("drift of test images / of z", own / max(noise, 1e-12), 0.25),
        _least("PSNR gain at noise 0.5, dB", gain("noise 0.5"), 2.0),
        _least("PSNR gain at noise 0.15, dB", gain("noise 0.15"), -1.0),
    ]
    return found


def kept(member: Numbers, baselines: Mapping[str, Numbers]) -> bool:
    """Whether a member meets all bounds and the probe called no collapse."""
    return not member["final"] and all(b.kept for b in bounds(member, baselines))


def _entropy(classes: int) -> float:
    """2.0 nats of 10 classes, and as near to the logarithm of another number."""
    return math.log(classes) * 2.0 / math.log(10)


def _least(name: str, value: float, bound: float) -> Bound:
    return Bound(name, float(value), f"at least {bound:g}", bool(value >= bound))


def _most(name: str, value: float, bound: float) -> Bound:
    return Bound(name, float(value), f"at most {bound:g}", bool(value <= bound))
