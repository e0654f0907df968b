"""What the stages of a run share: the networks, the plan on disk, and the sums."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax

from common import storage
from rosetta import stream, train
from rosetta.state import MiningState, Plan
from rosetta.units import Layout
from rosetta.zoo import checkpoints, generators, shipped
from rosetta.zoo.randomised import randomised
from rosetta.zoo.tapped import Generator, Tapped

__all__ = ["GENERATORS", "Zoo", "anchor_pairs", "load_mined", "plan_of", "save_plan", "zoo"]

GENERATORS = ("biggan", "stylegan_xl", "stylegan2", "stylegan3t", "stylegan3r")
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


def zoo(config: Any, trained: pathlib.Path | None = None) -> Zoo:
    """The networks of a configuration (`zoo`, `models`, `sizes`, `twins`, `seed`).

    Args:
      config: `zoo` is "packages" (networks that packages carry), "fashion" (small ones trained
        before) or "files" (the user's checkpoints: `generator` with its path, and `paths`).
      trained: folder of the stage that trained the small networks.

    Raises:
      ValueError: an unknown network or kind of zoo.
      registry.RegistryError: weights that cannot be obtained.
    """
    names, sizes = config.models, config.sizes
    if config.zoo == "packages":
        generator = shipped.dcgan_faces()
        models = tuple(shipped.load(n, size) for n, size in zip(names, sizes, strict=True))
    elif config.zoo == "fashion":
        if trained is None:
            raise ValueError("the zoo of small networks needs the stage that trains them")
        generator, models = train.networks(trained, names)
    elif config.zoo == "files":
        generator = _generator(config.generator)
        models = tuple(checkpoints.load(name, config.paths[name]) for name in names)
    else:
        raise ValueError(f"a zoo {config.zoo!r}; there are packages, fashion and files")
    images = None
    if config.twins:
        z = stream.latents(generator, config.seed, _CALIBRATION, config.batch)
        images = jax.jit(generator.apply)(generator.params, z)[0]
    twins = {
        model.name: tuple(randomised(model, seed, images) for seed in range(config.twins))
        for model in models
    }
    return Zoo(generator, models, twins)


def _generator(config: Any) -> Generator:
    """The generator of the user's file."""
    kind, path, size = config.network, config.path, config.size
    if kind == "biggan":
        return generators.load_biggan_deep(path, size, config.label)
    if kind == "stylegan_xl":
        return generators.load_stylegan_xl(path, size, config.label, config.psi)
    if kind == "stylegan2":
        return generators.load_stylegan2(path, size, config.psi)
    if kind in ("stylegan3t", "stylegan3r"):
        return generators.load_stylegan3(path, size, kind[-1])
    raise ValueError(f"a generator {kind!r}; there are {', '.join(GENERATORS)}")


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
