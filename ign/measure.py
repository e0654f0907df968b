"""The stage that measures every member beside the baselines: `results.json` and what is drawn."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from common import rng, storage
from common.metrics import distribution
from common.nets import inception
from ign import acceptance, baseline, corruptions, data, evaluate, principal, project, settings
from ign.evaluate import Judge
from ign.project import Model

_SHOWN = 64  # images of each kind kept for figures
_apply = jax.jit(lambda model, *arrays: model(*arrays))
AddFid = Callable[[np.ndarray], dict[str, float]]


def measure(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: writes `results.json`, and `drawn.safetensors` of the first member for the figures."""
    images = settings.load_images(inputs["data"])
    judge = settings.load_judge(inputs["judge"])
    probes = storage.load_json(inputs["train"] / "probe.json")
    count = min(config.evaluate.count, len(images.test), len(images.train))
    test = settings.signed(images.test[:count])
    labels = None if images.test_labels is None else images.test_labels[:count]
    key = rng.stream(jax.random.key(config.seed), "evaluate")
    restorers = {
        name: project.load(inputs["baselines"] / f"{name.replace(' ', '_')}.safetensors")
        for name in baseline.NAMES
    }
    results: dict[str, Any] = {
        "count": count,
        "judge": storage.load_json(inputs["judge"] / "judge.json"),
        "probe": probes,
        "members": [],
    }
    strangers = other_images(config, test, key)
    add_fid = fid(config.evaluate.inception, test)
    components = linear(images.train, restorers[baseline.NAMES[0]].config.latent)
    others: dict[str, evaluate.Restorer] = {
        "principal components": lambda x, _: jnp.asarray(components.reconstruct(np.asarray(x))),
        **{name: restorer(other) for name, other in restorers.items()},
    }
    compared = evaluate.restoration(others, test, labels, judge)
    for index, name in enumerate(probes["members"]):
        model = project.load(inputs["train"] / f"member{index}.safetensors")
        z = np.asarray(model.noise(key, count))
        asked = settings.drawn_labels(labels, model.config.classes, count)
        found, drawn = member(model, judge, test, labels, z, asked, strangers, add_fid)
        for what, rows in found["restoration"].items():
            rows |= {name: compared[what][name] for name in others}
        results["members"].append({"name": name, "final": probes["final"][index], **found})
        if index == 0:
            results["baselines"] = baseline_rows(
                restorers, components, judge, images, test, labels, z, key, add_fid
            )
            shown = pictures(model, test, labels, z, asked, drawn, strangers, key)
            storage.save_arrays(out / "drawn.safetensors", shown)
    for row in results["members"]:
        row["bounds"] = [b._asdict() for b in acceptance.bounds(row, results["baselines"])]
        row["accepted"] = acceptance.kept(row, results["baselines"])
        print(_line(row), flush=True)
    storage.save_json(out / "results.json", results)


def fid(path: str, test: np.ndarray) -> AddFid:
    """Function of images in [-1, 1] that gives `{"fid": ...}` to `test`; `{}` without weights.

    The true Frechet inception distance, of as many images as the function is given: it is biased
    upwards for sets smaller than the usual 10,000 to 50,000.

    Args:
      path: weights, see `common.nets.inception.load_params`, or "".
      test: the reference images, `[n, h, w, 1 or 3]` in [-1, 1].
    """
    if not path:
        return lambda images: {}
    params = inception.load_params(path)

    def moments(images: np.ndarray) -> distribution.Moments:
        run = functools.partial(inception.features, params)
        return distribution.moments(project.in_blocks(run, (images + 1) / 2, block=16))

    reference = moments(test)
    return lambda images: {"fid": distribution.frechet_distance(reference, moments(images))}


def _line(row: dict[str, Any]) -> str:
    """One line on a member: accepted, or which bounds it misses."""
    missed = [f"{b['name']} {b['value']:.3g}, not {b['bound']}" for b in row["bounds"]
              if not b["kept"]]
    missed += [f"collapse: {row['final']}"] if row["final"] else []
    return f"{row['name']}: {'; '.join(missed) if missed else 'meets all bounds'}"


def member(
    model: Model,
    judge: Judge,
    test: np.ndarray,
    labels: np.ndarray | None,
    z: np.ndarray,
    asked: np.ndarray | None,
    strangers: dict[str, np.ndarray],
    add_fid: AddFid,
) -> tuple[dict[str, Any], np.ndarray]:
    """All numbers of one model, and its images `f(z)`; see `evaluate` for the definitions."""
    own = None if not model.config.classes else labels

    def f(images: np.ndarray, given: np.ndarray | None) -> np.ndarray:
        arrays = (images,) if given is None else (images, given)
        return project.in_blocks(lambda *parts: _apply(model, *parts), *arrays)

    def drift(images: np.ndarray) -> np.ndarray:
        return np.abs(f(images, own) - images).mean(axis=(1, 2, 3))

    real = judge(test)
    once = f(z, asked)
    twice = f(once, asked)
    found: dict[str, Any] = {}
    for name, images in (("f", once), ("ff", twice)):
        judged = judge(images)
        found[name] = evaluate.distances(real, judged, labels) | add_fid(images)
        if asked is not None:
            found[name]["agreement"] = float(np.mean(judged.labels == asked))
    found["idempotence"] = evaluate.idempotence(model, z, asked)
    found["restoration"] = evaluate.restoration({"f": restorer(model)}, test, labels, judge)
    found["detection"] = evaluate.detection(drift, test, {"f(z)": once, "noise z": z, **strangers})
    if not model.config.independent:
        found["mode_gap"] = evaluate.mode_gap(model, test, z)
    return found, once


def restorer(model: Model) -> evaluate.Restorer:
    """One application, compiled once for all models of an architecture."""
    if model.config.classes:
        return functools.partial(_apply, model)
    return lambda images, _: _apply(model, images)


def linear(images: np.ndarray, latent: int) -> principal.Components:
    """Principal components of the images, as many as a network has codes, or as there can be."""
    return principal.fit(images, min(latent, len(images), images[0].size))


def baseline_rows(
    restorers: dict[str, Model],
    components: principal.Components,
    judge: Judge,
    images: data.ImageSet,
    test: np.ndarray,
    labels: np.ndarray | None,
    z: np.ndarray,
    key: jax.Array,
    add_fid: AddFid,
) -> dict[str, dict[str, float]]:
    """The generation numbers of what is not the method: the floor, and ways to fail."""
    train = settings.signed(images.train)
    mean = np.repeat(train.mean(axis=0, keepdims=True), len(test), axis=0)
    jitter = 1e-3 * np.asarray(jax.random.normal(key, mean.shape))  # a covariance needs a spread
    rows = {
        "real training images": train[: len(test)],
        "mean image": mean + jitter,
        "noise itself (identity)": np.clip(z, -1.0, 1.0),
        "Gaussian of principal components": components.sample(
            np.random.default_rng(0), len(test)
        ).reshape(test.shape),
    }
    for name, other in restorers.items():
        rows[f"{name} of noise"] = project.in_blocks(functools.partial(_apply, other), z)
    real = judge(test)
    return {
        name: evaluate.distances(real, judge(x), labels) | add_fid(x) for name, x in rows.items()
    }


def other_images(config: ConfigDict, test: np.ndarray, key: jax.Array) -> dict[str, np.ndarray]:
    """Inputs that are not of the data, for detection, each like `test`."""
    found = {"shuffled pixels": np.asarray(corruptions.shuffled_pixels(jnp.asarray(test), key))}
    for what in ("noise 0.5", "occlusion"):
        corrupt = corruptions.standard(test.shape[-1])[what]
        found[what] = np.asarray(corrupt(jnp.asarray(test), key))
    if config.evaluate.other:
        other = data.load(config.evaluate.other, test.shape[1], test.shape[-1])
        found[config.evaluate.other] = settings.signed(other.test[: len(test)])
    return found


def pictures(
    model: Model,
    test: np.ndarray,
    labels: np.ndarray | None,
    z: np.ndarray,
    asked: np.ndarray | None,
    drawn: np.ndarray,
    strangers: dict[str, np.ndarray],
    key: jax.Array,
) -> dict[str, np.ndarray]:
    """Images for the figures: samples, trajectories, restorations, drift maps, interpolations."""
    count = min(_SHOWN, len(test))
    few = min(10, count)
    given = asked[:few] if asked is not None else None
    own = labels[:few] if model.config.classes and labels is not None else None
    found = {
        "real": test[:count],
        "samples": drawn[:count],
        "trajectory": np.asarray(project.trajectory(model, z[:few], 4, given)),
        "drift.real": np.asarray(project.drift_map(model, test[:few], own)),
    }
    for name, corrupt in corruptions.standard(test.shape[-1]).items():
        spoilt = corrupt(jnp.asarray(test[:few]), key)
        found[f"spoilt.{name}"] = np.asarray(spoilt)
        found[f"restored.{name}"] = np.asarray(model(spoilt, own))
    for name, images in strangers.items():
        found[f"stranger.{name}"] = images[:few]
        found[f"drift.{name}"] = np.asarray(project.drift_map(model, images[:few], own))
    ends = min(4, count // 3)
    rows = []
    for i in range(ends):
        path = project.interpolate_noise(model, z[2 * i], z[2 * i + 1], 9)
        label = None if asked is None else np.repeat(asked[2 * i : 2 * i + 1], len(path))
        rows.append(np.asarray(model(path, label)))
    found["interpolation"] = np.stack(rows)
    terms = z[: 3 * ends].reshape(ends, 3, *z.shape[1:])
    sums = jax.vmap(lambda t: project.combine_noise(model, t, jnp.array([1.0, -1.0, 1.0])))(terms)
    labels3 = None if asked is None else np.repeat(asked[:ends], 4)
    four = np.concatenate([terms, np.asarray(sums)[:, None]], axis=1)
    flat = np.asarray(model(four.reshape(-1, *z.shape[1:]), labels3))
    found["arithmetic"] = flat.reshape(four.shape)
    return found
