"""Stages that compute: all networks and baselines on all cohorts, then maps, then their scores."""

import os
import pathlib
import time
from concurrent import futures
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from common import distributed, storage
from meshgcn import baselines, context, evaluate, export, maps, models, splits, train
from meshgcn.context import Condition, Scans

__all__ = ["classify", "compare", "explain", "score"]

Inputs = dict[str, pathlib.Path]
_COPIES = 2**32  # bytes of features that linear classifiers standardise at a time


def classify(config: ConfigDict, inputs: Inputs, out: pathlib.Path) -> None:
    """Stage: trains every network on every cohort, all trials of one as one program.

    Leaves `<condition>/<network>.safetensors` with logits `[trials, scans]`, `<condition>/
    scans.safetensors` with labels and roles, and `<condition>/people.json`.
    """
    del inputs
    for condition in context.conditions(config):
        folder = out / condition.name
        folder.mkdir(exist_ok=True)
        found = context.scans(config, condition)
        roles = context.roles_of(config, found, config.trials.count)
        if distributed.is_main() and not (folder / "scans.safetensors").exists():
            storage.save_json(folder / "people.json", splits.people(found.subject, roles))
            table = {"label": found.label, "roles": roles}
            storage.save_arrays(folder / "scans.safetensors", table)
        for name in config.networks:
            _fit(config, found, roles, name, found.x, folder / f"{name}.safetensors", condition)
    if distributed.is_main() and config.data.folder:
        own = context.real(config)
        rows = [vars(item) for item in own.excluded]
        storage.save_json(out / "excluded.json", {"summary": own.summary(), "scans": rows})
        print(own.summary())


def compare(config: ConfigDict, inputs: Inputs, out: pathlib.Path) -> None:
    """Stage: the baselines on the same splits, on vertices and on means of regions."""
    for condition in context.conditions(config):
        folder = out / condition.name
        folder.mkdir(exist_ok=True)
        found = context.scans(config, condition)
        arrays, _ = storage.load_arrays(inputs["classify"] / condition.name / "scans.safetensors")
        roles = arrays["roles"]
        flat = found.x.reshape(len(found.x), -1)
        parcels = found.parcels(context.template_of(config))
        for where, x in (("vertices", flat), ("parcels", parcels)):
            path = folder / f"linear {where}.safetensors"
            if distributed.is_main() and not path.exists():
                size = {"parameters": x.shape[1] + 1}
                storage.save_arrays(path, _linear(x, found.label, roles), size)
            path = folder / f"perceptron {where}.safetensors"
            _fit(config, found, roles, "perceptron", x[..., None], path, condition)


def _linear(x: np.ndarray, label: np.ndarray, roles: np.ndarray) -> dict[str, np.ndarray]:
    """Scores `[trials, scans]` of each linear classifier; trials side by side."""
    copies = _COPIES // max(x.nbytes, 1)
    with futures.ThreadPoolExecutor(max(1, min(len(roles), os.cpu_count() or 1, copies))) as pool:
        fitted = list(pool.map(lambda role: baselines.fit_all(x, label, role), roles))
    return {kind: np.stack([one[kind].score for one in fitted]) for kind in baselines.LINEAR}


def _fit(
    config: ConfigDict,
    found: Scans,
    roles: np.ndarray,
    name: str,
    x: np.ndarray,
    path: pathlib.Path,
    condition: Condition,
) -> None:
    """Trains the network `name` in all trials, unless an interrupted run left the result."""
    if path.exists():
        return
    start = time.perf_counter()
    seeds = config.seed + np.arange(len(roles))
    labels = np.tile(found.label, (len(roles), 1))
    fitted = train.fit_trials(
        context.network(config, name),
        context.recipe(config, name),
        seeds,
        roles,
        labels,
        context.on_device(x),
        context.operators(config, name),
        config.trials.at_once,
    )
    seconds = time.perf_counter() - start
    if not distributed.is_main():
        return
    arrays = {
        "score": fitted.logits[..., 1] - fitted.logits[..., 0],
        "epoch": fitted.epoch,
        "validation_loss": fitted.validation_loss,
        "train_loss": fitted.train_loss,
    }
    size = models.count_parameters(fitted.variables["params"]) // len(roles)
    storage.save_arrays(path, arrays, {"seconds": seconds, "parameters": size})
    area = np.mean(
        [_test(np.asarray(arrays["score"])[t], found.label, r)["auc"] for t, r in enumerate(roles)]
    )
    print(f"  {condition.name} {path.stem}: test AUC {area:.3f}, {seconds:.0f} s", flush=True)


def _test(score: np.ndarray, label: np.ndarray, role: np.ndarray) -> dict[str, float]:
    """Scores of one trial's test scans."""
    return evaluate.scores(score[role == 2], label[role == 2])


def explain(config: ConfigDict, inputs: Inputs, out: pathlib.Path) -> None:
    """Stage: maps of correctly found patients of the test scans, one cohort for each seed.

    Leaves `maps.safetensors` (method -> `[seeds, vertices]`, and the truth), `localisation.json`,
    overlays and a table of regions.
    """
    del inputs
    own, brain = config.maps, context.template_of(config)
    name = config.networks[0]
    model, operators = context.network(config, name), context.operators(config, name)
    real = bool(config.data.folder)
    averages: dict[str, list[np.ndarray]] = {}
    rows: list[dict[str, Any]] = []
    truth = None
    for seed in range(config.seed, config.seed + (1 if real else own.seeds)):
        condition = Condition("real") if real else Condition(own.plant, own.effect, seed)
        found = context.scans(config, condition)
        truth = found.truth
        role = context.roles_of(config, found, 1)[0]
        x = context.on_device(found.x)
        settings = (model, context.recipe(config, name), np.array([seed]), role[None])
        fitted = train.fit_trials(*settings, found.label[None], x, operators)
        variables, mean, scale, logits = jax.tree.map(
            lambda leaf: leaf[0], (fitted.variables, fitted.mean, fitted.scale, fitted.logits)
        )
        score = logits[:, 1] - logits[:, 0]
        chosen = (role == 2) & (found.label == 1) & (score > 0)
        inputs_ = (found.x[chosen] - mean) * scale
        result = {}
        for level in own.levels:
            each = maps.explain(model, variables, inputs_, operators, level)
            for method, values in each.items():
                result[f"{method} {level}"] = values
        random = maps.randomised(
            model, variables, seed, operators, inputs_[:1] if chosen.any() else found.x[:1]
        )
        untrained = maps.explain(model, random, inputs_, operators, own.levels[0])
        result |= {f"{method} random": values for method, values in untrained.items()}
        means = {key: maps.average(values) for key, values in result.items()}
        training = role == 0
        linear = baselines.fit_all(found.x.reshape(len(found.x), -1), found.label, role)["ridge"]
        weights = linear.weights.reshape(found.x.shape[1:]).sum(axis=-1)
        means["ridge weights"] = np.maximum(-weights, 0)
        t = baselines.t_map(found.thickness[training], found.label[training])
        means["t map"] = np.maximum(t, 0)
        for key, values in means.items():
            averages.setdefault(key, []).append(values)
        row: dict[str, Any] = {
            "seed": seed,
            "patients": int(chosen.sum()),
            **_test(score, found.label, role),
        }
        if truth is not None:
            row["maps"] = {
                key: _localisation(value, truth, result.get(key)) for key, value in means.items()
            }
        rows.append(row)
        print(f"  seed {seed}: test AUC {row['auc']:.3f}, {row['patients']} patients explained")
    arrays = {key: np.stack(values) for key, values in averages.items()}
    if truth is not None:
        arrays["truth"] = truth
    storage.save_arrays(out / "maps.safetensors", arrays)
    best = f"hirescam {own.levels[0]}"
    found_map = arrays[best].mean(axis=0)
    table = export.region_table(found_map, brain)
    summary: dict[str, Any] = {"runs": rows, "regions": table[:10]}
    if truth is not None:
        summary |= {"means": _mean_localisation(rows), "chance": evaluate.overlap_by_chance(truth)}
    storage.save_json(out / "localisation.json", summary)
    export.write_region_table(out / "regions.csv", table)
    note = {
        "map": f"HiResCAM at level {own.levels[0]}, each scan divided by its largest value, mean "
        "over correctly found patients of the test scans, then over cohorts",
        "cohorts": len(rows),
        "patients": sum(row["patients"] for row in rows),
    }
    (out / "overlays").mkdir(exist_ok=True)
    export.overlays(out / "overlays", "hirescam", found_map, brain, note)


def _localisation(
    mean: np.ndarray, truth: np.ndarray, each: np.ndarray | None
) -> dict[str, float | None]:
    """Scores of an averaged map; `pointing` over the single scans where there are any."""
    pointing = None
    if each is not None and len(each):
        pointing = float(np.mean([evaluate.peak_inside(row, truth) for row in each]))
    return {
        "dice": evaluate.dice(mean, truth),
        "auc": evaluate.auc(mean, truth),
        "pointing": pointing,
        "peak_inside": float(evaluate.peak_inside(mean, truth)),
    }


def _mean_localisation(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Means over cohorts of each map's scores."""
    found: dict[str, dict[str, float | None]] = {}
    for key, first in rows[0]["maps"].items():
        found[key] = {}
        for score in first:
            values = [r["maps"][key][score] for r in rows if r["maps"][key][score] is not None]
            found[key][score] = float(np.mean(values)) if values else None
    return found


def score(config: ConfigDict, inputs: Inputs, out: pathlib.Path) -> None:
    """Stage: `results.json` with all metrics of all classifiers, mean and corrected half-width."""
    fractions = config.trials.fractions
    share, trials = fractions[2] / fractions[0], 0
    table: dict[str, Any] = {}
    for condition in context.conditions(config):
        scans, _ = storage.load_arrays(inputs["classify"] / condition.name / "scans.safetensors")
        found: dict[str, Any] = {}
        trials = len(scans["roles"])
        for stage in ("classify", "compare"):
            for path in sorted((inputs[stage] / condition.name).glob("*.safetensors")):
                if path.stem == "scans":
                    continue
                arrays, header = storage.load_arrays(path)
                if path.stem.startswith("linear "):
                    where = path.stem.partition(" ")[2]
                    for kind in baselines.LINEAR:
                        found[f"{kind} {where}"] = _summary(arrays[kind], scans, share) | header
                else:
                    found[path.stem] = _summary(arrays["score"], scans, share) | header
        table[condition.name] = {
            "plant": condition.plant,
            "effect": condition.effect,
            "shuffled": condition.shuffled,
            "scans": len(scans["label"]),
            "classifiers": found,
        }
    located = storage.load_json(inputs["explain"] / "localisation.json")
    record = {
        "template": config.mesh.template,
        "trials": trials,
        "test_share": share,
        "conditions": table,
        "localisation": located,
    }
    storage.save_json(out / "results.json", record)


def _summary(score: np.ndarray, scans: dict[str, np.ndarray], share: float) -> dict[str, Any]:
    rows = [_test(s, scans["label"], role) for s, role in zip(score, scans["roles"], strict=True)]
    found: dict[str, Any] = {"trials": [row["auc"] for row in rows]}
    for metric in evaluate.METRICS:
        mean, half = evaluate.interval(np.array([row[metric] for row in rows]), share)
        found[metric] = {"mean": mean, "half_width": half}
    return found
