"""What the stages of a run share: the networks, the plan on disk, and the sums."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax

from common import storage
from rosetta import stream
from rosetta.state import MiningState, Plan
from rosetta.units import Layout
from rosetta.zoo import shipped
from rosetta.zoo.randomised import randomised
from rosetta.zoo.tapped import Generator, Tapped

__all__ = ["Zoo", "anchor_pairs", "load_mined", "plan_of", "save_plan", "zoo"]

_CALIBRATION = 1 << 20  # number of the batch that calibrates; no run has as many


class Zoo(NamedTuple):
    """The generator, trained networks, and their untrained twins (model -> twins)."""

    generator: Generator
    models: tuple[Tapped, ...]
    twins: dict[str, tuple[Tapped, ...]]

    @property
    def all(self) -> tuple[Tapped, ...]:
        """Trained networks, then twins."""
        return (*self.models, *(twin for group in self.twins.values() for twin in group))


def zoo(config: Any) -> Zoo:
    """The networks of a configuration (`models`, `sizes`, `twins`, `seed`).

    Raises:
      ValueError: an unknown network.
      registry.RegistryError: weights that cannot be obtained.
    """
    generator = shipped.dcgan_faces()
    models = tuple(
        shipped.load(name, size) for name, size in zip(config.models, config.sizes, strict=True)
    )
    z = stream.latents(generator, config.seed, _CALIBRATION, config.batch)
    images = jax.jit(generator.apply)(generator.params, z)[0]
    twins = {
        model.name: tuple(randomised(model, seed, images) for seed in range(config.twins))
        for model in models
    }
    return Zoo(generator, models, twins)


def plan_of(networks: Zoo, permutations: int, seed: int) -> Plan:
    """The generator against every network and against itself; nulls for the trained ones."""
    generator = networks.generator
    layouts = (generator.layout(), *(m.layout(generator.size) for m in networks.all))
    trained = tuple((generator.name, model.name) for model in networks.models)
    others = [(generator.name, twin.name) for twin in networks.all[len(networks.models) :]]
    pairs = (*trained, *others, (generator.name, generator.name))
    return Plan(layouts, pairs, permutations, seed, trained)


def anchor_pairs(plan: Plan) -> dict[str, list[str]]:
    """Trained model -> its untrained twins, from the names of a plan."""
    found: dict[str, list[str]] = {name: [] for _, name in plan.exchanged or ()}
    for _, name in plan.pairs:
        if "~" in name:
            found[name.partition("~")[0]].append(name)
    return found


def save_plan(path: pathlib.Path, plan: Plan) -> None:
    """Writes a plan as JSON."""
    storage.save_json(path, dataclasses.asdict(plan))


def load_mined(folder: pathlib.Path) -> tuple[Plan, MiningState]:
    """The plan and the sums that the stage `mine` left."""
    plain = storage.load_json(folder / "plan.json")
    layouts = tuple(
        Layout(
            entry["name"],
            tuple(entry["taps"]),
            tuple(entry["sizes"]),
            tuple(entry["channels"]),
            entry["start"],
            entry["stop"],
        )
        for entry in plain["layouts"]
    )
    pairs, exchanged = (
        tuple((a, b) for a, b in plain[field]) for field in ("pairs", "exchanged")
    )
    plan = Plan(layouts, pairs, plain["permutations"], plain["seed"], exchanged)
    return plan, stream.load_state(folder / "sums.safetensors")
