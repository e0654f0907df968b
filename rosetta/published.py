"""Stage that mines the published code's score on the run's images, beside the exact one."""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from common import storage
from rosetta import build, context, matching, reference, stream
from rosetta.neighbours import from_table
from rosetta.state import Plan
from rosetta.zoo.tapped import parameters

__all__ = ["compare"]

Inputs = dict[str, pathlib.Path]


def compare(config: Any, inputs: Inputs, out: pathlib.Path) -> None:
    """Stage: two passes over the mined images on one device, see `rosetta.reference`.

    Leaves ``reference.safetensors`` (network -> the whole table, `[generator units, units]`) and
    ``reference.json``: for each network and rule the number of matches by the published score, by
    the exact one, and by both.
    """
    exact = context.load_mined(inputs["mine"])
    networks = context.zoo(ConfigDict({**config.networks, "twins": 0}), inputs.get("train"))
    generator, models = networks.generator, networks.models
    layouts = (generator.layout(), *(model.layout(generator.size) for model in models))
    plan = Plan(layouts, tuple((generator.name, model.name) for model in models))
    params = jax.device_put(parameters(generator, models))
    run = stream.maps_of(generator, models)
    seed, batch = config.networks.seed, config.networks.batch

    def batches(what: str) -> Iterator[Any]:
        for index in tqdm(range(config.networks.images // batch), what, disable=None):
            yield run(params, stream.latents(generator, seed, index, batch))

    statistics = reference.init_stats(plan)
    for maps in batches("statistics"):
        statistics = reference.stats(plan, statistics, maps)
    state = reference.init_score(plan)
    for maps in batches("scores"):
        state = reference.score(plan, state, statistics, maps)
    tables = {model.name: reference.table(plan, state, (generator.name, model.name))
              for model in models}  # fmt: skip
    storage.save_arrays(out / "reference.safetensors", tables)
    results: dict[str, Any] = {}
    for name, table in tables.items():
        near = from_table(table, config.k)
        other = exact.nearest((generator.name, name), config.k)
        results[name] = {
            rule: _overlap(build.match(near, rule, config.k), build.match(other, rule, config.k))
            for rule in build.RULES
        }
    storage.save_json(out / "reference.json", results)


def _overlap(first: matching.Pairs, second: matching.Pairs) -> dict[str, int]:
    pairs = [set(zip(p.rows.tolist(), p.columns.tolist(), strict=True)) for p in (first, second)]
    return {"published": len(first), "exact": len(second), "both": len(pairs[0] & pairs[1])}
