"""What the stages of a run share: the networks, the plan, and what was mined."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from common.porting import PortingError
from rosetta import mined, stream, train
from rosetta.mined import Mined
from rosetta.state import Plan
from rosetta.zoo import checkpoints, files, generators, own, shipped
from rosetta.zoo.randomised import randomised
from rosetta.zoo.tapped import Generator, Tapped

__all__ = ["GENERATORS", "MINED", "Zoo", "anchor_pairs", "load_mined", "plan_of", "zoo"]

GENERATORS = ("biggan", "stylegan_xl", "stylegan2", "stylegan3t", "stylegan3r")
MINED = "mined.safetensors"
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
    """The networks of a configuration (`zoo`, `models`, `sizes`, `generator`, `twins`, `seed`).

    Args:
      config: `zoo` is "given" or "fashion" (small networks that were trained before). Of a given
        one, each of `models` is a network that packages carry (`shipped.MODELS`), one of the
        user's checkpoints (`checkpoints.NETWORKS`, with a file or hub id in `paths`), or the
        user's own (`zoo.own`).
      trained: folder of the stage that trained the small networks.

    Raises:
      ValueError: an unknown network or kind of zoo, or two networks of one name.
      registry.RegistryError: weights that cannot be obtained.
      FileNotFoundError, ConnectionError: a checkpoint that is not there.
      porting.PortingError: a checkpoint of another network; the message names the file.
    """
    names, sizes = config.models, config.sizes
    if config.zoo == "given":
        generator = _generator(config.generator)
        models = tuple(
            _network(name, size, config.paths) for name, size in zip(names, sizes, strict=True)
        )
    elif config.zoo == "fashion":
        if trained is None:
            raise ValueError("the zoo of small networks needs the stage that trains them")
        generator, models = train.networks(trained, names)
    else:
        raise ValueError(f"a zoo {config.zoo!r}; there are given and fashion")
    used = [generator.name, *(model.name for model in models)]
    if len(set(used)) != len(used):
        raise ValueError(f"networks of one name: {used}")
    images = None
    if config.twins:
        z = stream.latents(generator, config.seed, _CALIBRATION, config.batch)
        images = jax.jit(generator.apply)(generator.params, z)[0]
    twins = {
        model.name: tuple(randomised(model, seed, images) for seed in range(config.twins))
        for model in models
    }
    return Zoo(generator, models, twins)


def _network(name: str, size: int, paths: Any) -> Tapped:
    """A network of a name of the configuration."""
    if own.is_own(name):
        return own.network(name, size)
    if name in shipped.MODELS:
        return shipped.load(name, size)
    path = files.locate(paths[name])
    with _naming(path):
        return checkpoints.load(name, path)


def _generator(config: Any) -> Generator:
    """The generator of the configuration."""
    kind, size = config.network, config.size
    if own.is_own(kind):
        return own.generator(kind)
    if kind == "dcgan":
        return shipped.dcgan_faces()
    if kind not in GENERATORS:
        raise ValueError(f"a generator {kind!r}; there are dcgan, {', '.join(GENERATORS)}")
    path = files.locate(config.path)
    with _naming(path):
        if kind == "biggan":
            return generators.load_biggan_deep(path, size, config.label)
        if kind == "stylegan_xl":
            return generators.load_stylegan_xl(
                path, size, config.label, config.psi, config.space, config.crop
            )
        if kind == "stylegan2":
            return generators.load_stylegan2(path, size, config.psi, config.space)
        return generators.load_stylegan3(path, size, kind[-1], config.space, config.crop)


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    """Puts the file's name before what is wrong with its tensors."""
    try:
        yield
    except PortingError as error:
        raise PortingError(f"{path}: {error}") from error


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


def load_mined(folder: pathlib.Path) -> Mined:
    """What the stage `mine` left."""
    return mined.load(folder / MINED)
