"""From the tensors of one adapter file to its flat vector: strength, rank and gauge.

Alpha is never guessed and never lost: the scale a file states is divided by the wanted one and the
quotient multiplied into ``lora_B``, in float64 with one rounding, and said in the result's notes.
"""

import dataclasses
import functools
import math
import os
import pathlib

import jax
import numpy as np

from w2w import lora
from w2w.adapters import files as adapter_files
from w2w.adapters.files import AdapterFile
from w2w.adapters.formats import AdapterError
from w2w.lora_layout import Layout

_SHOWN = 12  # digits of a layout's digest in messages
_PRECISION = 1e-7  # kohya files hold alpha in float32


@dataclasses.dataclass(frozen=True)
class Reading:
    """What to make of a file that is not exactly of the wanted kind.

    Attributes:
      alpha: alpha that the vectors shall refer to; None for the file's own.
      missing_alpha: for files that do not state alpha: None refuses them; ``"fold"`` takes their
        update as ``lora_B lora_A`` (alpha = rank), which is what diffusers makes of them; a number
        is their alpha.
      reduce: None refuses files of another rank than the layout's; ``"svd"`` keeps the leading
        singular components of each update.
      canonical: bring every adapter into the gauge of :func:`w2w.lora.canonicalise`, without which
        adapters trained from different initial values are not comparable entry by entry.
      text_encoder: ``"refuse"`` files that also adapt a text encoder, or ``"drop"`` that part.
    """

    alpha: float | None = None
    missing_alpha: float | str | None = None
    reduce: str | None = None
    canonical: bool = False
    text_encoder: str = "refuse"

    def __post_init__(self):
        if isinstance(self.missing_alpha, str) and self.missing_alpha != "fold":
            raise ValueError(f"missing_alpha must be None, 'fold' or a number, got {self}")
        for name in ("alpha", "missing_alpha"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.reduce not in (None, "svd"):
            raise ValueError(f"reduce must be None or 'svd', got {self.reduce!r}")
        if self.text_encoder not in ("refuse", "drop"):
            raise ValueError(f"text_encoder must be 'refuse' or 'drop', got {self.text_encoder!r}")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """One adapter.

    Attributes:
      vector: float32 ``[D]`` in the order of the layout.
      alpha: what the vector refers to: the update is ``alpha / layout.rank * lora_B lora_A``.
      format: one of ``FORMATS``.
      notes: what was changed on the way, in words; empty if every value is the file's, bit for bit.
    """

    vector: np.ndarray
    alpha: float
    format: str
    notes: tuple[str, ...]


def layout_from(found: AdapterFile, rank: int) -> Layout:
    """Layout of a file's modules at a rank."""
    modules = ((name, a.shape[1], b.shape[0]) for name, (a, b) in found.factors.items())
    return Layout(tuple(modules), rank)


def read(path: str | os.PathLike[str], layout: Layout, reading: Reading) -> Loaded:
    """As :func:`w2w.adapters.load`, without warnings: they are in the result's ``notes``."""
    found = adapter_files.read(pathlib.Path(path), layout, reading.text_encoder)
    notes = list(found.notes)
    _compare(found, layout)
    scales, stated = _scales(found, reading), found.scales is not None
    factors = dict(found.factors)
    other = [module for module in factors if found.rank(module) != layout.rank]
    if other and reading.reduce is None:
        raise AdapterError(
            f"{found.path}: key {found.keys[other[0]]}: rank {found.rank(other[0])}, the layout "
            f'has rank {layout.rank}; reduce="svd" keeps the leading components'
        )
    if other:
        kept = {}
        for module in other:
            factors[module], kept[module] = _reduce(*factors[module], layout.rank)
        worst = min(kept, key=lambda module: kept[module])
        notes.append(
            f"{len(other)} modules reduced to rank {layout.rank}, keeping a share of at least "
            f"{kept[worst]:.4f} of the squared update ({worst})"
        )

    alpha = _own_alpha(found, scales, layout.rank) if reading.alpha is None else reading.alpha
    ratios = {module: scale * layout.rank / alpha for module, scale in scales.items()}
    changed = {ratio for ratio in ratios.values() if not _is_one(ratio)}
    if changed or not stated:
        numbers = ", ".join(f"{ratio:.8g}" for ratio in sorted(changed or {1.0})[:3])
        why = f"alpha {alpha:g} at rank {layout.rank}"
        if not stated:
            why += f"; the file states none, taken by missing_alpha = {reading.missing_alpha!r}"
        notes.append(f"lora_B multiplied by {numbers} ({why})")

    tensors = []
    for module, _, _ in layout.modules:
        a, b = factors[module]
        if not _is_one(ratios[module]):
            b = (b.astype(np.float64) * ratios[module]).astype(np.float32)
        tensors += [a.ravel(), b.ravel()]
    vector = np.concatenate(tensors)
    if reading.canonical:
        vector = np.asarray(_canonical(vector, layout))
    if not np.isfinite(vector).all():
        raise AdapterError(f"{found.path}: values overflow float32 after {notes[-1]}")
    return Loaded(vector, float(alpha), found.format, tuple(notes))


def _is_one(ratio: float) -> bool:
    return math.isclose(ratio, 1, rel_tol=_PRECISION)


def _own_alpha(found: AdapterFile, scales: dict[str, float], rank: int) -> float:
    """The alpha of all modules of a file, at the layout's rank."""
    alphas = [scale * rank for scale in scales.values()]
    if not all(_is_one(alpha / alphas[0]) for alpha in alphas):
        raise AdapterError(
            f"{found.path}: modules have alphas from {min(alphas):g} to {max(alphas):g} at rank "
            f"{rank}; give the alpha that they shall be folded to"
        )
    return alphas[0]


def _compare(found: AdapterFile, layout: Layout) -> None:
    """Refuses a file of other modules or other widths."""
    wanted = {name: (fan_in, fan_out) for name, fan_in, fan_out in layout.modules}
    shapes = {name: (a.shape[1], b.shape[0]) for name, (a, b) in found.factors.items()}
    if shapes == wanted:
        return
    theirs = layout_from(found, layout.rank)
    summary = (
        f"{len(shapes)} modules, {theirs.size} values at rank {layout.rank}, sha256 "
        f"{theirs.sha256[:_SHOWN]}; the layout has {len(wanted)} modules, {layout.size} values, "
        f"sha256 {layout.sha256[:_SHOWN]}"
    )
    missing, more = sorted(wanted.keys() - shapes), sorted(shapes.keys() - wanted)
    if more:
        key = found.keys[more[0]]
        raise AdapterError(f"{found.path}: key {key}: not a module of the layout ({summary})")
    if missing:
        raise AdapterError(f"{found.path}: module {missing[0]} is missing ({summary})")
    name = min(name for name in shapes if shapes[name] != wanted[name])
    raise AdapterError(
        f"{found.path}: key {found.keys[name]}: in and out are {shapes[name]}, in the layout "
        f"{wanted[name]}: an adapter of another base model ({summary})"
    )


def _scales(found: AdapterFile, reading: Reading) -> dict[str, float]:
    if found.scales is not None:
        return found.scales
    if reading.missing_alpha is None:
        key = found.keys[min(found.keys)]
        raise AdapterError(
            f"{found.path}: key {key}: the file of {len(found.factors)} modules does not state "
            'alpha; missing_alpha="fold" takes alpha = rank as diffusers does, or give its number'
        )
    if reading.missing_alpha == "fold":
        return dict.fromkeys(found.factors, 1.0)
    return {module: float(reading.missing_alpha) / found.rank(module) for module in found.factors}


Factors = tuple[np.ndarray, np.ndarray]


def _reduce(a: np.ndarray, b: np.ndarray, rank: int) -> tuple[Factors, float]:
    """Leading components of ``b a`` as balanced factors, and their share of its squared norm.

    A lower rank is filled with zeros, which is exact.
    """
    q_a, r_a = np.linalg.qr(a.T.astype(np.float64))
    q_b, r_b = np.linalg.qr(b.astype(np.float64))
    u, s, vt = np.linalg.svd(r_b @ r_a.T)
    n = min(rank, len(s))
    total = float(np.sum(s**2))
    root = np.sqrt(s[:n])
    left, right = (q_b @ u[:, :n]) * root, root[:, None] * (vt[:n] @ q_a.T)
    sign = np.sign(np.take_along_axis(right, np.abs(right).argmax(1)[:, None], 1))
    sign[sign == 0] = 1
    down = np.zeros((rank, a.shape[1]), np.float32)
    up = np.zeros((b.shape[0], rank), np.float32)
    down[:n], up[:, :n] = right * sign, left * sign.T
    return (down, up), float(np.sum(s[:n] ** 2)) / total if total else 1.0


@functools.partial(jax.jit, static_argnums=1)
def _canonical(vector: jax.Array, layout: Layout) -> jax.Array:
    return lora.flatten(lora.canonicalise(lora.unflatten(vector, layout)), layout)
