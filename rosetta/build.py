"""Stages that compute: mine all networks in one pass, make the dictionaries, test them."""

import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from common import distributed, sharding, storage
from rosetta import context, matching, mined, significance, stream
from rosetta.matching import Dictionary, Pairs
from rosetta.mined import Mined
from rosetta.neighbours import Neighbours

__all__ = ["RULES", "assess", "dictionary", "match", "mine"]

RULES = ("best_buddies", "asymmetric", "symmetric")

Inputs = dict[str, pathlib.Path]


def mine(config: Any, inputs: Inputs, out: pathlib.Path) -> None:
    """Stage: passes over the images, one for each block of the generator's units.

    Leaves ``mined.safetensors`` (see `rosetta.mined`) and, of a single pass, all sums as
    ``sums.safetensors``. An interrupted stage continues within a pass, and keeps finished blocks.
    """
    networks = context.zoo(config, inputs.get("train"))
    plan = context.plan_of(networks, config.permutations, config.seed)
    mesh = mesh_for(config.batch, config.permutations)
    blocks = mined.row_blocks(plan, config.rows)
    alone = len(blocks) == 1
    run = stream.maps_of(networks.generator, networks.all)
    for index, block in enumerate(blocks):
        result = out / (context.MINED if alone else f"block{index}.safetensors")
        sums = out / ("sums.safetensors" if alone else f"sums{index}.safetensors")
        if not result.is_file():
            if not alone:
                print(f"mine: block {index + 1} of {len(blocks)}")
            state = stream.mine(
                block,
                networks.generator,
                networks.all,
                config.images // config.batch,
                config.batch,
                config.seed,
                sums,
                mesh,
                run=run,
            )
            state = stream.whole(state)
            if distributed.is_main():
                mined.save(result, mined.reduced(block, state, config.keep))
            del state
        distributed.barrier(f"mined:{index}")
        if not alone and distributed.is_main():
            sums.unlink(missing_ok=True)
    if not alone and distributed.is_main():
        parts = [mined.load(out / f"block{index}.safetensors") for index in range(len(blocks))]
        mined.save(out / context.MINED, mined.joined(plan, parts))


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
    raise ValueError(f"rule {rule!r}; there are {', '.join(RULES)}")


def assess(config: Any, inputs: Inputs, out: pathlib.Path) -> None:
    """Stage: matches of every network under every rule, and their nulls.

    Leaves ``tests.safetensors`` (for each network the units' p, q and excess over exchanged images)
    and ``scores.safetensors`` ("network/rule" -> scores of its matches, also for untrained twins
    and "network!permutation").
    """
    found = context.load_mined(inputs["mine"])
    anchor, permutations = found.anchor, found.plan.permutations
    units: dict[str, np.ndarray] = {}
    scores: dict[str, np.ndarray] = {}

    def record(name: str, near: Neighbours) -> None:
        for rule in RULES:
            scores[f"{name}/{rule}"] = match(near, rule, config.k).scores

    for name, twins in context.anchor_pairs(found.plan).items():
        pair = (anchor, name)
        near = found.nearest(pair, config.k)
        record(name, near)
        maxima = []
        for index in range(permutations):
            null = found.nearest(pair, config.k, index)
            record(f"{name}!{index}", null)
            maxima.append(null.row_scores[:, 0])
        result = significance.permutation_test(near.row_scores[:, 0], np.stack(maxima))
        units |= {f"{name}/{k}": getattr(result, k) for k in ("p", "q", "excess")}
        units[f"{name}/best"] = near.row_scores[:, 0]
        for twin in twins:
            record(twin, found.nearest((anchor, twin), config.k))
    storage.save_arrays(out / "tests.safetensors", units)
    storage.save_arrays(out / "scores.safetensors", scores)


def dictionary(config: Any, inputs: Inputs, out: pathlib.Path) -> None:
    """Stage: the significant matches, those common to all networks, concepts, and the counts.

    Leaves ``matches.safetensors`` ("network/{rows,columns,scores}"), ``dictionary.safetensors``
    (anchors, partners, scores, concepts) and ``results.json``.
    """
    run = context.load_mined(inputs["mine"])
    plan = run.plan
    units, _ = storage.load_arrays(inputs["significance"] / "tests.safetensors")
    scores, _ = storage.load_arrays(inputs["significance"] / "scores.safetensors")
    groups = context.anchor_pairs(plan)
    matches = {name: _matched(run, name, config) for name in groups}
    accepted = {name: units[f"{name}/q"] <= config.rate for name in groups}
    significant = {
        name: pairs.keep(accepted[name][pairs.rows]) for name, pairs in matches.items()
    }
    found = matching.intersect(significant)
    own = run.nearest((run.anchor, run.anchor), config.links)
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
        "images": run.images,
        "permutations": plan.permutations,
        "rate": config.rate,
        "rule": config.rule,
        "k": config.k,
        "units": {layout.name: len(layout) for layout in plan.layouts},
        "constant_units": {
            layout.name: len(run.constant_units(layout.name)) for layout in plan.layouts
        },
        "networks": {
            name: _counts(
                name, groups[name], plan.permutations, scores, accepted[name], config.rate
            )
            | {"significant_matches": len(significant[name])}
            for name in groups
        },
        "dictionary": _summary(found, labels)
        | {
            "before_test": len(matching.intersect(matches)),
            "exchanged_images": _null_sizes(run, config, list(groups)),
            "untrained": _twin_sizes(run, config, groups),
        },
    }
    storage.save_json(out / "results.json", results)


def _counts(
    name: str,
    twins: list[str],
    permutations: int,
    scores: dict[str, np.ndarray],
    accepted: np.ndarray,
    rate: float,
) -> dict[str, Any]:
    """Numbers of matches of a network under each rule, beside those of its nulls.

    "beyond_exchanged" and "beyond_untrained" are the matches whose score stands out from those of a
    null at a false-discovery rate (`significance.q_values`).
    """
    result: dict[str, Any] = {"significant_units": int(accepted.sum())}
    for rule in RULES:
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
            "beyond_exchanged": _beyond(own, exchanged, rate),
            "beyond_untrained": _beyond(own, untrained, rate) if untrained else None,
        }
    return result


def _beyond(own: np.ndarray, null: list[np.ndarray], rate: float) -> int:
    """Number of matches with a false-discovery rate of at most `rate` against null data sets."""
    return int((significance.q_values(own, np.concatenate(null), len(null)) <= rate).sum())


def _mean(parts: list[np.ndarray]) -> float | None:
    values = np.concatenate(parts) if parts else np.zeros(0)
    return float(values.mean()) if len(values) else None


def _summary(found: Dictionary, labels: np.ndarray) -> dict[str, Any]:
    return {
        "units": len(found),
        "concepts": int(labels.max()) + 1 if len(labels) else 0,
        "mean_r": float(found.scores.mean()) if len(found) else None,
    }


def _null_sizes(run: Mined, config: Any, names: list[str]) -> list[int]:
    """Sizes of the dictionaries, untested, that each permutation gives."""
    return [
        len(matching.intersect({name: _matched(run, name, config, index) for name in names}))
        for index in range(run.plan.permutations)
    ]


def _twin_sizes(run: Mined, config: Any, groups: dict[str, list[str]]) -> list[int]:
    """Sizes of the dictionaries, untested, of the first, second, ... untrained twins."""
    return [
        len(matching.intersect({twin: _matched(run, twin, config) for twin in twins}))
        for twins in zip(*groups.values(), strict=True)
    ]


def _matched(run: Mined, name: str, config: Any, permutation: int | None = None) -> Pairs:
    """Matches of the anchor with a network, by the run's rule."""
    near = run.nearest((run.anchor, name), config.k, permutation)
    return match(near, config.rule, config.k)
