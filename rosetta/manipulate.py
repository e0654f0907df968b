"""Stages that use the dictionary on the generator: inversion of images, edits of maps and units."""

import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from common import storage
from common.nets.lpips import load_params
from rosetta import context, data, edits, guidance, inversion, metrics, sheets, stream
from rosetta.guidance import Guides
from rosetta.inversion import Settings, Weights
from rosetta.zoo.tapped import Generator

__all__ = ["alter", "invert", "moved_by"]

Inputs = dict[str, pathlib.Path]

_INVERTED = 1 << 22  # numbers of batches of latents that are mined nowhere
_EDITED = 1 << 23


def invert(config: Any, inputs: Inputs, out: pathlib.Path) -> None:
    """Stage: finds latents of generated images, photographs and the user's images, in several ways.

    All methods have the same candidates to start from, steps, rate and prior. Leaves
    ``inversion.json`` (metrics of each method), ``inversion.safetensors`` and ``inversion.png``.
    """
    networks, given = _guides(config, inputs)
    generator, names = networks.generator, [model.name for model in networks.models]
    settings = config.invert
    z = stream.latents(generator, config.networks.seed, _INVERTED, settings.images)
    made = np.clip(np.asarray(jax.jit(generator.apply)(generator.params, z)[0]), 0, 1)
    photos = data.photographs(settings.photographs, generator.size)
    own = data.own(settings.folder, generator.size)
    images = np.concatenate([made, photos, own])
    ends = np.cumsum([0, len(made), len(photos), len(own)])
    groups = {
        name: slice(low, high)
        for name, low, high in zip(
            ("generated", "photographs", "yours"), ends[:-1], ends[1:], strict=True
        )
        if high > low
    }

    other = guidance.random_guides(given, generator.name, config.networks.seed)
    found_targets = guidance.network_targets(generator, networks.models, [given, other], images)
    sets = dict(zip(("rosetta", "random"), found_targets, strict=True))
    perceptual = load_params("alex")
    optimiser = Settings(settings.steps, settings.rate, tuple(settings.betas), settings.schedule)
    key = jax.random.fold_in(jax.random.key(config.networks.seed), _INVERTED + 1)
    results: dict[str, inversion.Inversion] = {}
    # Methods that share their pairs, and whether LPIPS is part of them, are one batch.
    for kind, net in itertools.product(sets, (None, perceptual)):
        methods = {
            name: terms
            for name, (pairs, terms) in _methods(settings).items()
            if pairs == kind and ("lpips" in terms) == (net is not None)
        }
        if not methods:
            continue
        targets = inversion.repeat(sets[kind], len(methods))
        weights = _stacked(
            [Weights.of(len(images), prior=settings.prior, **terms) for terms in methods.values()]
        )
        wanted = np.tile(images, (len(methods), 1, 1, 1))
        start = inversion.starts(generator, key, settings.tries, targets, wanted, weights, net)
        found = inversion.invert(
            generator, start, targets, wanted, weights, optimiser, perceptual=net,
            most=config.most,
        )  # fmt: skip
        for index, name in enumerate(methods):
            rows = slice(index * len(images), (index + 1) * len(images))
            results[name] = _part(found, rows)
    results = {name: results[name] for name in _methods(settings)}

    @jax.jit
    def reached(params: Any, latents: jax.Array, targets: Any) -> jax.Array:
        return inversion.agreement(targets, generator.apply(params, latents)[1])

    table = {}
    for name, result in results.items():
        values = metrics.image_metrics(perceptual, images, result.images)
        latents = jnp.asarray(result.latents)
        agreed = np.asarray(reached(generator.params, latents, sets["rosetta"]))
        values |= {"agreement": agreed, "own_before": result.before, "own_after": result.after}
        table[name] = {
            group: {key: float(value[rows].mean()) for key, value in values.items()}
            for group, rows in groups.items()
        }
    storage.save_json(
        out / "inversion.json",
        {
            "pairs": {name: len(given.pairs[name]) for name in names},
            "mean_r": float(np.mean(np.concatenate([p.scores for p in given.pairs.values()]))),
            "images": {group: len(images[rows]) for group, rows in groups.items()},
            "steps": settings.steps,
            "methods": table,
        },
    )
    arrays = {f"{name}/latents": result.latents for name, result in results.items()}
    storage.save_arrays(out / "inversion.safetensors", arrays)
    sheets.inversion_sheet(
        out / "inversion.png", images, {name: r.images for name, r in results.items()}
    )


def alter(config: Any, inputs: Inputs, out: pathlib.Path) -> None:
    """Stage: moves, enlarges, pastes and exchanges maps, and changes single units.

    Leaves ``edits.json``, ``edits.png`` and, of a generator that can be edited inside its pass,
    ``units.png``.
    """
    networks, given = _guides(config, inputs)
    generator, settings = networks.generator, config.edit
    z = stream.latents(generator, config.networks.seed, _EDITED, settings.images)
    run = jax.jit(generator.apply)
    made, maps = run(generator.params, z)
    images = np.clip(np.asarray(made), 0, 1)
    units = given.units
    random = np.random.default_rng(config.networks.seed)
    live = np.flatnonzero(given.statistics[generator.name].deviation > 0)
    other = random.choice(live, len(units), replace=False)
    optimiser = Settings(settings.steps, settings.rate, (0.9, 0.999), "ramp")

    def maps_of(chosen: np.ndarray, maps: Mapping[str, Any]) -> list[np.ndarray]:
        return guidance.unit_maps(
            given.layouts[generator.name], given.statistics[generator.name], maps, chosen.tolist()
        )

    def targets_of(chosen: np.ndarray, wanted: list[np.ndarray]) -> tuple[inversion.Target, ...]:
        return inversion.make_targets(
            given.layouts[generator.name], given.statistics[generator.name], chosen, wanted
        )

    transforms: dict[str, dict[str, float]] = {
        "left": {"right": -settings.shift},
        "right": {"right": settings.shift},
        "zoom": {"factor": settings.zoom},
    }
    count = len(images)
    moved_images = {name: edits.warped_image(images, **how) for name, how in transforms.items()}
    exchanged = np.roll(np.arange(count), 1)
    results: dict[tuple[str, str], inversion.Inversion] = {}
    # Edits of the same units are one batch; "pixels" has the moved image as target instead.
    for chosen, kinds in ((units, ("rosetta units", "pixels")), (other, ("random units",))):
        own = maps_of(chosen, maps)
        order, wanted, pixels, weights = [], [], [], []
        for kind in kinds:
            terms = {"activation": 0.0, "pixel": settings.pixel} if kind == "pixels" else {}
            for name, how in transforms.items():
                order.append((kind, name))
                wanted.append([edits.warp(x, **how) for x in own])
                pixels.append(moved_images[name][0])
                weights.append(Weights.of(count, prior=settings.prior, **terms))
        if "rosetta units" in kinds:
            order.append(("rosetta units", "align"))
            wanted.append([x[exchanged] for x in own])
            pixels.append(images)
            weights.append(Weights.of(count, prior=settings.prior))
        start = jnp.tile(z, (len(order), 1))
        found = inversion.invert(
            generator,
            start,
            targets_of(chosen, [np.concatenate(x) for x in zip(*wanted, strict=True)]),
            np.concatenate(pixels),
            _stacked(weights),
            optimiser,
            centre=start,
            most=config.most,
        )
        for index, key in enumerate(order):
            results[key] = _part(found, slice(index * count, (index + 1) * count))
    # Copy and paste: the left half of the faces moved left, the right half of those moved right.
    halves = []
    for name in ("left", "right"):
        _, moved = run(generator.params, jnp.asarray(results["rosetta units", name].latents))
        halves.append(maps_of(units, moved))
    pasted = [edits.paste(a, b) for a, b in zip(*halves, strict=True)]
    results["rosetta units", "paste"] = inversion.invert(
        generator, z, targets_of(units, pasted), images,
        Weights.of(count, prior=settings.prior), optimiser, z, most=config.most,
    )  # fmt: skip
    storage.save_json(out / "edits.json", {
        "units": len(units), "images": count, "steps": settings.steps,
        "shift": settings.shift, "zoom": settings.zoom,
        "edits": {
            f"{name}, {kind}": _edit_numbers(images, result, moved_images.get(name), name, config)
            for (kind, name), result in results.items()
        },
    })  # fmt: skip
    sheets.edit_sheet(
        out / "edits.png", images, {key: result.images for key, result in results.items()},
        exchanged,
    )
    if generator.apply_edited is not None:
        _unit_edits(generator, given, z, settings, out)


def _methods(settings: Any) -> dict[str, tuple[str, dict[str, float]]]:
    """Name -> (whose pairs, weights of the terms); a weight of 0 leaves its methods out."""
    found: dict[str, tuple[str, dict[str, float]]] = {
        "random units": ("random", {}),
        "rosetta units": ("rosetta", {}),
    }
    for name, term, weight in (
        ("pixels", "pixel", settings.pixel),
        ("perceptual", "lpips", settings.lpips),
    ):
        if weight:
            found[name] = ("rosetta", {"activation": 0.0, term: weight})
            found[f"{name}, random units"] = ("random", {term: weight})
            found[f"{name}, rosetta units"] = ("rosetta", {term: weight})
    return found


def _edit_numbers(
    images: np.ndarray, result: inversion.Inversion, wanted: Any, name: str, config: Any
) -> dict[str, float]:
    """Agreement of the maps, and where the picture went, of one edit."""
    numbers = {
        "agreement_before": float(result.before.mean()),
        "agreement_after": float(result.after.mean()),
    }
    if wanted is not None:
        target, inside = wanted
        for when, made in (("before", images), ("after", result.images)):
            numbers[f"correlation_{when}"] = float(
                np.mean([_correlation(a[inside], b[inside])
                         for a, b in zip(target, made, strict=True)])
            )
    if name in ("left", "right"):
        moved = [moved_by(a, b) for a, b in zip(images, result.images, strict=True)]
        numbers["pixels_moved"] = float(np.mean(moved))
        numbers["pixels_wanted"] = images.shape[2] * config.edit.shift * (
            -1 if name == "left" else 1
        )
    return numbers


def moved_by(first: np.ndarray, second: np.ndarray) -> int:
    """How many pixels to the right the content of `second` lies from that of `first`.

    The horizontal displacement, up to half the width, at which the two images `[h, w, 3]`
    correlate most where they overlap.
    """
    width = first.shape[1]
    scores = {}
    for d in range(-width // 2, width // 2 + 1):
        a = first[:, max(0, -d) : width - max(0, d)]
        b = second[:, max(0, d) : width - max(0, -d)]
        scores[d] = _correlation(a, b)
    return max(scores, key=lambda d: (scores[d], -abs(d)))


def _unit_edits(
    generator: Generator, given: Guides, z: jax.Array, settings: Any, out: pathlib.Path
) -> None:
    """Removes and strengthens single units inside the generator's pass."""
    layout = given.layouts[generator.name]
    run = generator.apply_edited
    assert run is not None  # the caller's part
    zeros = edits.unit_vectors(layout, {}, 0.0)

    @jax.jit
    def changed(params: Any, z: jax.Array, factors: Any) -> tuple[jax.Array, Any]:
        return run(params, z, edits.affine(factors, zeros))

    def images(unit: int, factor: float) -> tuple[np.ndarray, Any]:
        made, maps = changed(generator.params, z, edits.unit_vectors(layout, {unit: factor}, 1.0))
        return np.clip(np.asarray(made), 0, 1), maps

    rows = []
    for unit in given.units[: settings.units].tolist():
        original, maps = images(unit, 1.0)
        own = guidance.unit_maps(layout, given.statistics[generator.name], maps, [unit])[0]
        removed, stronger = (images(unit, factor)[0] for factor in (0.0, settings.strength))
        rows.append((unit, original, own, removed, stronger))
    sheets.unit_sheet(out / "units.png", layout, rows, settings.strength)


def _guides(config: Any, inputs: Inputs) -> tuple[context.Zoo, Guides]:
    """The trained networks of a run and the pairs that guide."""
    mined = context.load_mined(inputs["mine"])
    networks = context.zoo(ConfigDict({**config.networks, "twins": 0}), inputs.get("train"))
    names = [model.name for model in networks.models]
    return networks, guidance.guides(mined, names, config.pairs)


def _stacked(parts: list[Weights]) -> Weights:
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _part(found: inversion.Inversion, rows: slice) -> inversion.Inversion:
    return inversion.Inversion(
        found.latents[rows], found.images[rows], found.losses[:, rows], found.before[rows],
        found.after[rows],
    )  # fmt: skip


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation of two arrays of one shape; 0 where one is constant."""
    a, b = (np.asarray(x, np.float64).ravel() - np.mean(x) for x in (first, second))
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0
