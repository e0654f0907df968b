"""What the stages of a run share: the template, its operators, the networks, and the cohorts."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from common.registry import cache_root
from meshgcn import cohort, data, splits, templates
from meshgcn import hierarchy as hierarchies
from meshgcn.cohort import CohortConfig
from meshgcn.hierarchy import Hierarchy
from meshgcn.models import MeshNet, Perceptron
from meshgcn.templates import Template
from meshgcn.train import Recipe

__all__ = [
    "NETWORKS",
    "Condition",
    "Scans",
    "conditions",
    "network",
    "operators",
    "recipe",
    "scans",
]

# name -> changes of the configured network
NETWORKS: dict[str, dict[str, Any]] = {
    "residual": {},
    "plain": {"residual": False},
    "postactivation": {"preact": False},
    "flattened head": {"head": "flatten"},
    "pooled head": {"head": "pooled"},
    "spiral": {},
}


@dataclasses.dataclass(frozen=True)
class Condition:
    """One cohort: a plant, its effect and the seed of its people; or the user's own.

    Attributes:
      plant: of `meshgcn.cohort.PLANTS`, or "real".
      effect: thinning, a share.
      seed: of people and noise.
      shuffled: labels are exchanged between people.
    """

    plant: str
    effect: float = 0.0
    seed: int = 0
    shuffled: bool = False

    @property
    def name(self) -> str:
        """Part of file names."""
        tail = "-shuffled" if self.shuffled else ""
        return f"{self.plant}-{round(100 * self.effect)}-s{self.seed}{tail}"


@dataclasses.dataclass(frozen=True)
class Scans:
    """Scans of a condition.

    Attributes:
      x: float32 `[scans, vertices, features]`.
      thickness: float32 `[scans, vertices]`, the first measure.
      label: int32 `[scans]`.
      subject: `[scans]`.
      truth: bool `[vertices]`, where the plant is; None for real data.
      roles: int8 `[scans]`, the user's own split; None for random ones.
    """

    x: np.ndarray
    thickness: np.ndarray
    label: np.ndarray
    subject: np.ndarray
    truth: np.ndarray | None
    roles: np.ndarray | None = None

    def parcels(self, template: Template) -> np.ndarray:
        """Means of every feature over every region, `[scans, regions * features]`."""
        matrix = template.parcels().astype(np.float32)
        means = [self.x[..., i] @ matrix.T for i in range(self.x.shape[-1])]
        return np.concatenate(means, axis=1)


@functools.cache
def template(name: str, atlas: str, subcortex: bool) -> Template:
    """The template, read once in a process."""
    return templates.load(name, atlas, subcortex)


def template_of(config: ConfigDict) -> Template:
    """The template of a run."""
    return template(config.mesh.template, config.mesh.atlas, config.mesh.subcortex)


@functools.cache
def _operators(template: Template, depth: int, settings: tuple, spiral: int) -> Hierarchy:
    folder = cache_root() / "meshgcn"
    return hierarchies.build(
        template.mesh,
        depth,
        cache=folder,
        spiral_length=spiral,
        labels=template.labels,
        **dict(settings),
    )


def operators(config: ConfigDict, name: str) -> Hierarchy:
    """Operators for the network `name` (spirals as long as a Chebyshev layer has neighbours)."""
    settings = dict(config.operators)
    length = settings.pop("spiral_length")
    depth = len(config.network.widths) - (0 if config.network.stem else 1)
    spiral = length if name == "spiral" else 0
    return _operators(template_of(config), depth, tuple(sorted(settings.items())), spiral)


def network(config: ConfigDict, name: str) -> nn.Module:
    """The network `name`: one of `NETWORKS`, or "perceptron".

    Raises:
      KeyError: another name.
    """
    if name == "perceptron":
        return Perceptron(tuple(config.perceptron.hidden), dropout=config.perceptron.dropout)
    settings = {**config.network, **NETWORKS[name], "widths": tuple(config.network.widths)}
    if name == "spiral":
        settings["terms"] = config.operators.spiral_length
    return MeshNet(**settings)


def recipe(config: ConfigDict, name: str) -> Recipe:
    """How the network `name` is trained."""
    return Recipe(**(config.perceptron.train if name == "perceptron" else config.train))


def conditions(config: ConfigDict) -> list[Condition]:
    """All cohorts that are classified: the plants' effects, no effect, and shuffled labels."""
    if config.data.folder:
        return [Condition("real"), Condition("real", shuffled=True)]
    grid = config.cohort
    found = [Condition(p, e, config.seed) for p in grid.plants for e in grid.effects if e > 0]
    found.append(Condition(grid.plants[0], 0.0, config.seed))
    found.append(Condition(grid.plants[0], max(grid.effects), config.seed, shuffled=True))
    return found


@functools.lru_cache(maxsize=4)
def _variation(template: Template, config: CohortConfig, seed: int) -> np.ndarray:
    return cohort.variation(template, config, seed)


def _cohort_config(config: ConfigDict) -> CohortConfig:
    people: dict[str, Any] = dict(config.cohort.people)
    return CohortConfig(**people)


@functools.lru_cache(maxsize=1)
def _real(template: Template, settings: tuple) -> data.RealCohort:
    folder, table, patterns, bodies, classes, columns = settings
    files = (patterns, dict(classes), dict(columns), bodies)
    return data.load(data.Source(folder, table, template, *files))


def fingerprint(config: ConfigDict) -> str:
    """Digest of the user's table and files."""
    own = config.data
    files = (own.patterns, dict(zip(own.classes, (0, 1), strict=True)), own.columns, own.bodies)
    return data.fingerprint(data.Source(own.folder, own.table, template_of(config), *files))


def real(config: ConfigDict) -> data.RealCohort:
    """The user's scans."""
    own = config.data
    settings = (
        own.folder,
        own.table,
        tuple(own.patterns),
        tuple(own.bodies),
        tuple(zip(own.classes, (0, 1), strict=True)),
        tuple(own.columns.items()),
    )
    return _real(template_of(config), settings)


def scans(config: ConfigDict, condition: Condition) -> Scans:
    """The scans of a condition."""
    brain = template_of(config)
    if condition.plant == "real":
        found = real(config)
        label = found.label
        if condition.shuffled:
            label = shuffled(label, found.subject, config.seed, found.roles)
        return Scans(found.values, found.values[..., 0], label, found.subject, None, found.roles)
    people = _cohort_config(config)
    deviations = _variation(brain, people, condition.seed)
    made = cohort.make(brain, people, condition.plant, condition.effect, condition.seed, deviations)
    x = cohort.features(brain, made.thickness, config.cohort.features)
    label = made.label
    if condition.shuffled:
        label = shuffled(label, made.subject, condition.seed)
    return Scans(x, made.thickness, label, made.subject, made.truth)


def shuffled(
    label: np.ndarray, subject: np.ndarray, seed: int, roles: np.ndarray | None = None
) -> np.ndarray:
    """Labels exchanged between people; scans of one person keep one label.

    With a split `roles [scans]` they stay in its parts, none of which then loses a class.
    """
    _, first, who = np.unique(subject, return_index=True, return_inverse=True)
    random, kinds = np.random.default_rng([seed, 3]), label[first]
    if roles is None:
        return random.permutation(kinds)[who]
    for role in np.unique(roles):
        own = roles[first] == role
        kinds[own] = random.permutation(kinds[own])
    return kinds[who]


def roles_of(config: ConfigDict, found: Scans, trials: int) -> np.ndarray:
    """Splits of a cohort, int8 `[trials, scans]`; a user's own split is one trial.

    Raises:
      meshgcn.splits.OverlapError, meshgcn.splits.OneClassError: see `meshgcn.splits.check`.
    """
    if found.roles is not None:
        splits.check(found.subject, found.label, found.roles, "the table's split")
        return found.roles[None]
    fractions = tuple(config.trials.fractions)
    return splits.monte_carlo(found.subject, found.label, trials, fractions, config.seed)


def on_device(x: np.ndarray) -> jax.Array:
    """Features as one array, shared by all trials."""
    return jnp.asarray(x)


def cache_folder() -> pathlib.Path:
    """Where levels of meshes are kept between runs."""
    return cache_root() / "meshgcn"
