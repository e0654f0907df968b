"""Figures of a run: samples, repeated application, projection, drift, interpolation, curves."""

from pathlib import Path
from typing import Any

import numpy as np

from common import figures, image_grids
from common.writer import read_jsonl

Array = np.ndarray
Arrays = dict[str, Array]


def pixels(images: Array) -> Array:
    """Images in [-1, 1] (or noise beyond) as floats in [0, 1]."""
    return np.clip((images + 1) / 2, 0.0, 1.0)


def draw_all(shown: Arrays, results: dict[str, Any], train: Path, out: Path) -> list[str]:
    """All figures into `out`; returns their file names in the order of the report."""
    draw_samples(shown, out)
    draw_trajectory(shown, out / "trajectory.png")
    draw_restorations(shown, out / "projection.png")
    draw_drift(shown, out / "drift.png")
    draw_paths(shown, out)
    draw_training(train, results, out)
    draw_scores(results, out)
    return sorted(path.name for path in out.glob("*.png"))


def draw_samples(shown: Arrays, out: Path) -> None:
    """Generated images, and test images beside them."""
    for name, title in (("samples", "f(z)"), ("real", "test images")):
        image_grids.contact_sheet(pixels(shown[name]), 16, out / f"{name}.png", title=title)


def draw_trajectory(shown: Arrays, path: Path) -> None:
    """Noise and its repeated projections: `[k + 1, n, ...]`, one row for each k."""
    rows = shown["trajectory"]
    names = ["z", "f(z)", "f(f(z))", *(f"f^{k}(z)" for k in range(3, len(rows)))]
    image_grids.grid(pixels(rows), path, names, title="Repeated application")


def draw_restorations(shown: Arrays, path: Path) -> None:
    """Corrupted images above their projections, by kind of corruption."""
    rows, names = [], []
    for key in shown:
        if key.startswith("spoilt."):
            what = key.split(".", 1)[1]
            rows += [shown[key], shown[f"restored.{what}"]]
            names += [what, "f of it"]
    table = [pixels(shown["real"][: len(rows[0])]), *(pixels(row) for row in rows)]
    image_grids.grid(table, path, ["test image", *names], title="Projection of corrupted images")


def draw_drift(shown: Arrays, path: Path) -> None:
    """Inputs above the map of what `f` changes in them; white is a change of 1 or more."""
    rows, names = [], []
    for key in shown:
        if key.startswith("drift."):
            what = key.split(".", 1)[1]
            few = len(shown[key])
            inputs = shown["real"][:few] if what == "real" else shown[f"stranger.{what}"]
            maps = np.clip(shown[key], 0.0, 1.0)[..., None]
            rows += [pixels(inputs), np.broadcast_to(maps, inputs.shape)]
            names += [what, "drift"]
    image_grids.grid(rows, path, names, title="Where f changes its input")


def draw_paths(shown: Arrays, out: Path) -> None:
    """Images along arcs between two noises, and sums of three."""
    image_grids.grid(pixels(shown["interpolation"]), out / "interpolation.png",
                     title="f of noise on the arc between two noises")
    image_grids.grid(
        pixels(shown["arithmetic"]), out / "arithmetic.png",
        column_labels=["a", "b", "c", "a - b + c"], title="Arithmetic on noise",
        separators=[3],
    )


def draw_training(train: Path, results: dict[str, Any], out: Path) -> None:
    """Losses, and what the probe saw of each member."""
    records = [r for r in read_jsonl(train / "metrics.jsonl") if r.get("phase") == "train"]
    steps = [r["step"] for r in records]
    names = ["reconstruction", "drift", "matching"]
    series = {n: (steps, [r[n] for r in records]) for n in names if n in records[0]}
    figures.curves(out / "losses.png", series, "step", "mean over members", "Training", logy=True)
    history = results["probe"]["history"]
    for what, label in (
        ("duplicates", "share of near-duplicates"),
        ("spread", "spread relative to real images"),
        ("coverage", "classes drawn"),
    ):
        if what not in history[0]:
            continue
        lines = {}
        for index, member in enumerate(results["probe"]["members"]):
            own = [r for r in history if r["member"] == index]
            lines[member] = ([r["step"] for r in own], [r[what] for r in own])
        figures.curves(out / f"probe_{what}.png", lines, "step", label, "Collapse probe")


def draw_scores(results: dict[str, Any], out: Path) -> None:
    """f^k curve of each member; gain in PSNR of the first member and the baselines."""
    lines = {}
    for row in results["members"]:
        curve = row["idempotence"]["curve"]
        lines[row["name"]] = (np.arange(1, len(curve) + 1), curve)
    figures.curves(
        out / "idempotence.png", lines, "k", "|f^(k+1)(z) - f^k(z)| / |f(z) - z|",
        "Repeated application", logy=True,
    )
    table = results["members"][0]["restoration"]
    kinds = [kind for kind in table if kind != "clean"]
    restorers = [name for name in table["clean"] if name != "corrupted"]
    gains = {
        name: [table[kind][name]["psnr"] - table[kind]["corrupted"]["psnr"] for kind in kinds]
        for name in restorers
    }
    figures.bars(out / "gains.png", kinds, gains, ylabel="gain in PSNR, dB", title="Projection")
