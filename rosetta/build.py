"""Stages that compute: mine all networks in one pass, make the dictionaries, test them."""

import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from common import sharding, storage
from rosetta import context, matching, significance, stream, tables
from rosetta.matching import Dictionary, Pairs
from rosetta.neighbours import Neighbours, nearest
from rosetta.state import MiningState, Plan

__all__ = ["assess", "dictionary", "match", "mine"]

Inputs = dict[str, pathlib.Path]


def mine(config: Any, inputs: Inputs, out: pathlib.Path) -> None:
    """Stage: one pass over the images; leaves ``plan.json`` and ``sums.safetensors``."""
    networks = context.zoo(config, inputs.get("train"))
    plan = context.plan_of(networks, config.permutations, config.seed)
    mesh = mesh_for(config.batch, config.permutations)
    context.save_plan(out / "plan.json", plan)
    stream.mine(
        plan,
        networks.generator,
        networks.all,
        config.images // config.batch,
        config.batch,
        config.seed,
        out / "sums.safetensors",
        mesh,
    )


def mesh_for(batch: int, permutations: int) -> Mesh | None:
    """The most devices that can share a batch; None for one.

    Each needs more images than there are permutations. Several processes use all their devices.
    """
    count = jax.device_count()
    if jax.process_count() == 1:
        fits = [n for n in range(1, count + 1) if batch % n == 0 and batch // n > permutations]
        count = max(fits, default=1)
    return sharding.make_mesh(devices=jax.devices()[:count]) if count > 1 else None


def match(near: Neighbours, rule: str, k: int) -> Pairs:
    """Matches by a rule: "best_buddies", "asymmetric" or "symmetric".

    Raises:
      ValueError: another rule.
    """
    if rule == "best_buddies":
        return matching.best_buddies(near)
    if rule in ("asymmetric", "symmetric"):
        return getattr(matching, rule)(near, k)
    raise ValueError(f"rule {rule!r}; there are best_buddies, asymmetric and symmetric")


def assess(config: Any, inputs: Inputs, out: pathlib.Path) -> None:
    """Stage: matches of every network under every rule, and their nulls.

    Leaves ``tests.safetensors`` (for each network the units' p, q and excess over exchanged images)
    and ``scores.safetensors`` ("network/rule" -> scores of its matches, also for untrained twins
    and "network!permutation").
    """
    plan, state = context.load_mined(inputs["mine"])
    anchor = plan.pairs[0][0]
    units: dict[str, np.ndarray] = {}
    scores: dict[str, np.ndarray] = {}

    def record(name: str, near: Neighbours) -> None:
        for rule in ("best_buddies", "asymmetric", "symmetric"):
            scores[f"{name}/{rule}"] = match(near, rule, config.k).scores

    for name, twins in context.anchor_pairs(plan).items():
        pair = (anchor, name)
        near = nearest(plan, state, pair, config.k)
        record(name, near)
        maxima = []
        for index in range(plan.permutations):
            null = nearest(plan, state, pair, config.k, index)
            record(f"{name}!{index}", null)
            maxima.append(null.row_scores[:, 0])
        result = significance.permutation_test(near.row_scores[:, 0], np.stack(maxima))
        units |= {f"{name}/{k}": getattr(result, k) for k in ("p", "q", "excess")}
        units[f"{name}/best"] = near.row_scores[:, 0]
        for twin in twins:
            record(twin, nearest(plan, state, (anchor, twin), config.k))
    storage.save_arrays(out / "tests.safetensors", units)
    storage.save_arrays(out / "scores.safetensors", scores)


def dictionary(config: Any, inputs: Inputs, out: pathlib.Path) -> None:
    """Stage: the significant matches, those common to all networks, concepts, and the counts.

    Leaves ``matches.safetensors`` ("network/{rows,columns,scores}"), ``dictionary.safetensors``
    (anchors, partners, scores, concepts) and ``results.json``.
    """
    plan, state = context.load_mined(inputs["mine"])
    units, _ = storage.load_arrays(inputs["significance"] / "tests.safetensors")
    scores, _ = storage.load_arrays(inputs["significance"] / "scores.safetensors")
    anchor, groups = plan.pairs[0][0], context.anchor_pairs(plan)
    matches = {name: _matched(plan, state, name, config) for name in groups}
    accepted = {name: units[f"{name}/q"] <= config.rate for name in groups}
    significant = {
        name: pairs.keep(accepted[name][pairs.rows]) for name, pairs in matches.items()
    }
    found = matching.intersect(significant)
    own = nearest(plan, state, (anchor, anchor), config.k)
    labels = matching.concepts(found.anchors, own, config.links)
    storage.save_arrays(
        out / "matches.safetensors",
        {
            f"{name}/{part}": getattr(pairs, part)
            for name, pairs in significant.items()
            for part in ("rows", "columns", "scores")
        },
    )
    storage.save_arrays(
        out / "dictionary.safetensors",
        {
            "anchors": found.anchors,
            "partners": found.partners,
            "scores": found.scores,
            "concepts": labels,
        },
        {"models": found.models},
    )
    results = {
        "images": int(state.images),
        "permutations": plan.permutations,
        "rate": config.rate,
        "rule": config.rule,
        "k": config.k,
        "units": {layout.name: len(layout) for layout in plan.layouts},
        "constant_units": {
            layout.name: len(tables.constant_units(plan, state, layout.name))
            for layout in plan.layouts
        },
        "networks": {
            name: _counts(name, groups[name], plan.permutations, scores, accepted[name])
            | {"significant_matches": len(significant[name])}
            for name in groups
        },
        "dictionary": _summary(found, labels)
        | {
            "before_test": len(matching.intersect(matches)),
            "exchanged_images": _null_sizes(plan, state, config, list(groups)),
            "untrained": _twin_sizes(plan, state, config, groups),
        },
    }
    storage.save_json(out / "results.json", results)


def _counts(
    name: str,
    twins: list[str],
    permutations: int,
    scores: dict[str, np.ndarray],
    accepted: np.ndarray,
) -> dict[str, Any]:
    """Numbers of matches of a network under each rule, beside those of its nulls."""
    result: dict[str, Any] = {"significant_units": int(accepted.sum())}
    for rule in ("best_buddies", "asymmetric", "symmetric"):
        own = scores[f"{name}/{rule}"]
        exchanged = [scores[f"{name}!{index}/{rule}"] for index in range(permutations)]
        untrained = [scores[f"{twin}/{rule}"] for twin in twins]
        result[rule] = {
            "matches": len(own),
            "mean_r": float(own.mean()) if len(own) else None,
            "max_r": float(own.max()) if len(own) else None,
            "above_half": int((own > 0.5).sum()),
            "exchanged_images": float(np.mean([len(x) for x in exchanged])),
            "untrained": float(np.mean([len(x) for x in untrained])) if untrained else None,
            "untrained_mean_r": _mean(untrained),
        }
    return result


def _mean(parts: list[np.ndarray]) -> float | None:
    values = np.concatenate(parts) if parts else np.zeros(0)
    return float(values.mean()) if len(values) else None


def _summary(found: Dictionary, labels: np.ndarray) -> dict[str, Any]:
    return {
        "units": len(found),
        "concepts": int(labels.max()) + 1 if len(labels) else 0,
        "mean_r": float(found.scores.mean()) if len(found) else None,
    }


def _null_sizes(plan: Plan, state: MiningState, config: Any, names: list[str]) -> list[int]:
    """Sizes of the dictionaries, untested, that each permutation gives."""
    return [
        len(matching.intersect({name: _matched(plan, state, name, config, i) for name in names}))
        for i in range(plan.permutations)
    ]


def _twin_sizes(
    plan: Plan, state: MiningState, config: Any, groups: dict[str, list[str]]
) -> list[int]:
    """Sizes of the dictionaries, untested, of the first, second, ... untrained twins."""
    return [
        len(matching.intersect({twin: _matched(plan, state, twin, config) for twin in twins}))
        for twins in zip(*groups.values(), strict=True)
    ]


def _matched(
    plan: Plan, state: MiningState, name: str, config: Any, permutation: int | None = None
) -> Pairs:
    """Matches of the anchor with a network, by the run's rule."""
    pair = (plan.pairs[0][0], name)
    return match(nearest(plan, state, pair, config.k, permutation), config.rule, config.k)
