"""Last stage for somebody's own adapters: numbers, one figure and a page."""

import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from common import figures
from common.report import Report
from common.storage import load_arrays, load_json, save_json
from w2w import subspace
from w2w.adapters import stages as own_adapters
from w2w.adapters.draw import FIGURES
from w2w.subspace import Subspace


def report(config: ConfigDict, inputs: dict[str, pathlib.Path], out: pathlib.Path) -> None:
    """Stage: ``results.json``, ``spectrum.png`` and ``report.html``."""
    del config
    imported = own_adapters.load_import(inputs)
    space, _ = own_adapters.open_space(inputs)
    cumulative = np.cumsum(np.asarray(subspace.explained_variance(space), np.float64))
    results: dict[str, Any] = {
        "found": imported["found"],
        "imported": imported["rows"],
        "refused": len(imported["refused"]),
        "changed": len(imported["changed"]),
        "components": space.k,
        "explained": {str(k): cumulative[k - 1] for k in _counts(space.k)},
        "export": load_json(inputs["export"] / "export.json"),
    }
    update = inputs["space"] / "update.json"
    if update.is_file():
        results["update"] = load_json(update)
    lines = {}
    if "adapters" in inputs:
        results["planted"] = compare(space, inputs)
        lines["planted"] = results["planted"]["explained"]
    samples, _ = load_arrays(inputs["sample"] / "models.safetensors")
    results["sample_cosine"] = float(np.mean(samples["cosine"])) if len(samples["cosine"]) else None
    if "train" in inputs:
        results["trained"] = load_json(inputs["train"] / "train.json")["people"]
    if "invert" in inputs:
        results["inverted"] = inversions(inputs)
    save_json(out / "results.json", results)
    number = np.arange(1, space.k + 1)
    figures.curves(
        out / "spectrum.png",
        {"components": (number, cumulative)},
        "number of components",
        "share of the standardised variance",
        "Explained variance of the adapters",
        hlines=lines,
    )
    write(results, imported, out, inputs.get("draw"))


def inversions(inputs: dict[str, pathlib.Path]) -> list[dict[str, Any]]:
    """Losses of each inverted person, of the mean model's on the same draws, and the neighbour."""
    arrays, header = load_arrays(inputs["invert"] / "models.safetensors")
    names = own_adapters.open_bank(inputs).names
    rows = zip(
        header["names"],
        arrays["loss_of_mean_model"],
        arrays["loss"],
        arrays["nearest"],
        arrays["cosine"],
        strict=True,
    )
    return [
        {
            "name": name,
            "loss_of_mean_model": float(before),
            "loss": float(after),
            "nearest": names[nearest],
            "cosine": float(cosine),
        }
        for name, before, after, nearest, cosine in rows
    ]


def _counts(k: int) -> list[int]:
    return [n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if n < k] + [k]


def compare(space: Subspace, inputs: dict[str, pathlib.Path]) -> dict[str, float]:
    """The found space against the planted one.

    Returns:
      ``explained``: planted share of variance; ``explained_found``: share of as many components;
      ``angle_degrees``: largest principal angle between the two subspaces, in standardised units;
      ``direction_cosine``: smallest cosine between a found attribute direction and its factor.
    """
    truth, header = load_arrays(inputs["adapters"] / "planted.safetensors")
    std = np.asarray(space.std, np.float64)
    factors = np.divide(truth["factors"], std, out=np.zeros_like(truth["factors"]), where=std != 0)
    r = len(factors)
    basis = np.linalg.qr(factors.T)[0]
    components = np.asarray(space.components, np.float64)
    cosines = np.linalg.svd(components[:r] @ basis, compute_uv=False)
    result = {
        "explained": header["explained"],
        "explained_found": float(np.sum(np.asarray(subspace.explained_variance(space))[:r])),
        "angle_degrees": float(np.degrees(np.arccos(np.clip(cosines.min(), -1, 1)))),
    }
    if "edit" in inputs:
        edits, _ = load_arrays(inputs["edit"] / "models.safetensors")
        found = [edits[key] for key in sorted(edits) if key.startswith("direction.")]
        pairs = zip(found, factors, strict=False)  # attributes belong to the first factors
        result["direction_cosine"] = min(
            float(unit @ components @ factor / np.linalg.norm(factor)) for unit, factor in pairs
        )
    return result


def write(
    results: dict[str, Any],
    imported: dict[str, Any],
    out: pathlib.Path,
    drawn: pathlib.Path | None = None,
) -> None:
    """The page; ``drawn`` is the folder of the sheets of images."""
    page = Report("Your own adapters", "A weight space of LoRA files, and new ones from it.")
    if "trained" in results:
        page.section(
            "Trained adapters",
            "Denoising error on the person's photographs, of the base model and with the adapter, "
            "with the same noise and times.",
        )
        rows = [list(row.values()) for row in results["trained"][:200]]
        page.table(["person", "photographs", "error of the base model", "error"], rows)
    page.section(
        "Import",
        f"{results['imported']} of {results['found']} adapters are in the bank, "
        f"{results['refused']} were refused, {results['changed']} changed to fit.",
    )
    if imported["refused"]:
        rows = [[item["file"], item["reason"]] for item in imported["refused"][:200]]
        page.table(["file", "why it was refused"], rows)
    if imported["changed"]:
        rows = [[item["name"], item["note"]] for item in imported["changed"][:200]]
        page.table(["adapter", "what was changed"], rows)
    page.section("Space")
    if "update" in results:
        page.text("Not fitted anew: `{from}` with its {known} adapters took in {new} more.".format(
            **results["update"]))  # fmt: skip
    page.figure(out / "spectrum.png", "Cumulative share of variance by number of components.")
    if "planted" in results:
        rows = [[name.replace("_", " "), value] for name, value in results["planted"].items()]
        page.table(["against the planted subspace", "value"], rows)
    if "inverted" in results:
        page.section(
            "Inverted photographs",
            "Denoising loss on the same noise and times, of the mean model and of the model that "
            "was found, and the most similar adapter of the bank (cosine of coefficients).",
        )
        rows = [[row["name"], *list(row.values())[1:]] for row in results["inverted"]]
        page.table(["model", "loss of the mean model", "loss", "nearest adapter", "cosine"], rows)
    if drawn is not None:
        page.section("Images", "Whole images are in `stages/draw/images`.")
        for name, caption in FIGURES.items():
            if (drawn / name).is_file():
                page.figure(drawn / name, caption)
    exported = results["export"]
    page.section(
        "Exported adapters",
        f"{len(exported['files'])} files in format `{exported['format']}` with alpha "
        f"{exported['alpha']:g} in `stages/export/adapters`; read back, they differ by "
        f"{exported['max_abs_error']:.3g} at most.",
    )
    page.table(["file"], [[name] for name in exported["files"][:200]])
    page.write(out / "report.html")
