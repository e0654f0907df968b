"""Random but structured adapters of a small UNet: a known subspace to test the tools on.

Vectors are ``center + Z F + noise``: ``r`` factors of random directions, standard normal scores
``Z [N, r]``. Two attributes are the signs of the first two scores.
"""

import csv
import pathlib
import shutil
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from common.storage import save_arrays
from w2w import adapters
from w2w.lora_layout import Layout

ATTRIBUTES = ("first", "second")
_FORMATS = ("peft", "diffusers", "kohya", "model", "w2w")


class Planted(NamedTuple):
    """The truth: vectors ``[N, D]``, scores ``[N, r]``, factors ``[r, D]``, noise deviation."""

    vectors: np.ndarray
    scores: np.ndarray
    factors: np.ndarray
    noise: float


def layout(width: int = 24, text: int = 16, rank: int = 1) -> Layout:
    """Queries and values of two transformer blocks, named as in Stable Diffusion."""
    modules = []
    for block in ("down_blocks.0.attentions.0", "up_blocks.1.attentions.0"):
        for attention in (1, 2):
            stem = f"{block}.transformer_blocks.0.attn{attention}"
            modules.append((f"{stem}.to_q", width, width))
            modules.append((f"{stem}.to_v", text if attention == 2 else width, width))
    return Layout(tuple(modules), rank)


def draw(size: int, models: int, factors: int, noise: float, seed: int) -> Planted:
    """Vectors of a population; the factors' deviations fall by 0.85 from one to the next."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(factors, size)) * 0.85 ** np.arange(factors)[:, None]
    scores = rng.normal(size=(models, factors))
    clean = rng.normal(size=size) + scores @ directions
    vectors = (0.05 * (clean + noise * rng.normal(size=(models, size)))).astype(np.float32)
    return Planted(vectors, scores, 0.05 * directions, 0.05 * noise)


def explained(planted: Planted) -> float:
    """Share of the standardised variance that the factors make, in the limit of many models."""
    signal = np.sum(planted.factors**2, axis=0)
    return float(np.mean(signal / (signal + planted.noise**2)))


def make(config: ConfigDict, inputs: dict[str, pathlib.Path], out: pathlib.Path) -> None:
    """Stage: a folder of adapters in all formats, some of them unusable, and their labels."""
    del inputs
    kind = layout()
    planted = draw(kind.size, config.models, config.factors, config.noise, config.seed)
    folder = out / "adapters"
    shutil.rmtree(folder, ignore_errors=True)
    for i, vector in enumerate(planted.vectors):
        alpha, format = config.alpha, _FORMATS[i % len(_FORMATS)]
        if config.uneven and i + 1 == len(planted.vectors):
            # The same update, stated otherwise: half of alpha, twice lora_B.
            alpha, format, vector = alpha / 2, "kohya", vector * np.where(up_entries(kind), 2, 1)
        write(folder, f"person{i}", vector, kind, alpha, format)
    if config.uneven:
        spoil(folder, planted.vectors, kind, config.alpha)
    with open(out / "labels.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["name", *ATTRIBUTES])
        for i, score in enumerate(planted.scores):
            table.writerow([f"person{i}", *(1 if score[j] > 0 else -1 for j in range(2))])
    arrays = {"scores": planted.scores, "factors": planted.factors}
    save_arrays(out / "planted.safetensors", arrays, {"explained": explained(planted)})


def write(
    folder: pathlib.Path, name: str, vector: np.ndarray, kind: Layout, alpha: float, format: str
) -> pathlib.Path:
    """One adapter, where the format wants it: a folder or a file of this name."""
    path = folder / (name if format in ("peft", "w2w") else f"{name}.safetensors")
    return adapters.save(path, vector, kind, alpha=alpha, format=format)


def spoil(folder: pathlib.Path, vectors: np.ndarray, kind: Layout, alpha: float) -> None:
    """Adds four files that an import has to refuse."""
    good = write(folder, "truncated", vectors[0], kind, alpha, "kohya")
    data = good.read_bytes()
    good.write_bytes(data[: len(data) // 2])
    write(folder, "person0_copy", vectors[0], kind, alpha, "kohya")
    other = layout(width=32)
    write(folder, "other_base", np.ones(other.size, np.float32), other, alpha, "kohya")
    bad = write(folder, "not_finite", vectors[1], kind, alpha, "kohya")
    bad.write_bytes(bad.read_bytes()[:-4] + np.array([np.nan], np.float32).tobytes())


def up_entries(kind: Layout) -> np.ndarray:
    """Which entries ``[D]`` of a vector belong to lora_B."""
    sizes = [rows * columns for rows, columns in kind.shapes]
    return np.repeat(np.arange(len(sizes)) % 2 == 1, sizes)
