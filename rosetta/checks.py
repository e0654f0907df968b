"""Checks of a configuration before anything runs: a mistake costs a second, not a mining run."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from common.archives import sha256_of
from common.config import ConfigError, one_line
from rosetta import build, context
from rosetta.inversion import SCHEDULES
from rosetta.zoo import checkpoints, files, generators, own, shipped, small

__all__ = ["check", "fingerprints", "pictures"]

_GIVEN = (*shipped.MODELS, *checkpoints.NETWORKS)
_KNOWN = {"given": _GIVEN, "fashion": tuple(small.NETWORKS)}
_POSITIVE = (
    "mine.batch", "mine.images", "mine.keep", "match.k", "match.links", "show.pool", "guide.pairs",
    "invert.tries", "invert.steps", "edit.steps", "edit.zoom", "edit.units",
)  # fmt: skip
_NOT_NEGATIVE = (
    "mine.twins", "mine.rows", "invert.images", "invert.photographs", "invert.pixel",
    "invert.lpips", "invert.prior", "edit.pixel", "edit.prior", "guide.most",
)  # fmt: skip


def check(config: ConfigDict) -> None:
    """Checks a configuration.

    Raises:
      ConfigError: unknown networks or rules, numbers that do not fit, own networks or checkpoints
        that are not there.
    """
    _numbers(config)
    mine, match = config.mine, config.match
    if mine.zoo not in _KNOWN:
        raise ConfigError(f"config.mine.zoo: {mine.zoo!r}; known: {', '.join(_KNOWN)}")
    known = _KNOWN[mine.zoo]
    unknown = [name for name in mine.models if name not in known and not own.is_own(name)]
    if unknown or len(set(mine.models)) != len(mine.models) or not mine.models:
        raise ConfigError(f"config.mine.models: {mine.models}; known: {', '.join(known)}")
    if len(mine.sizes) != len(mine.models):
        raise ConfigError(f"config.mine.sizes: {len(mine.sizes)} for {len(mine.models)} models")
    for name, size in zip(mine.models, mine.sizes, strict=True):
        fixed = small.SIZE if mine.zoo == "fashion" else _size(name)
        if size < 1 or size != (fixed or size):
            sees = fixed or "1 or more"
            raise ConfigError(f"config.mine.sizes: {size} for {name}, which sees {sees} pixels")
    if mine.images % mine.batch:
        raise ConfigError(f"config.mine.images: {mine.images} is no multiple of {mine.batch}")
    if not 1 <= mine.permutations < mine.batch:
        raise ConfigError(f"config.mine.permutations must be 1 to {mine.batch - 1}")
    if match.rule not in build.RULES:
        raise ConfigError(f"config.match.rule: {match.rule!r}; known: {', '.join(build.RULES)}")
    for name in ("k", "links"):
        if match[name] > mine.keep:
            raise ConfigError(
                f"config.match.{name}: {match[name]} partners of the {mine.keep} that "
                "config.mine.keep keeps"
            )
    if not 0 < match.rate < 1:
        raise ConfigError(f"config.match.rate: {match.rate} is not between 0 and 1")
    schedule = config.invert.schedule
    if schedule not in SCHEDULES:
        raise ConfigError(f"config.invert.schedule: {schedule!r}; known: {', '.join(SCHEDULES)}")
    folder = config.invert.folder
    if folder and not Path(folder).is_dir():
        raise ConfigError(f"config.invert.folder: {folder!r} is no folder")
    if config.invert.images + config.invert.photographs < 1 and not folder:
        raise ConfigError("config.invert: no images, no photographs and no folder")
    if config.edit.images < 2:
        raise ConfigError("config.edit.images: at least 2, their maps are exchanged")
    if config.reference and mine.rows:
        raise ConfigError("config.reference: the published score's tables have no blocks of rows")
    if mine.zoo == "given":
        _networks(config)
    elif mine.generator.network != "dcgan":
        raise ConfigError(f"config.mine.generator is of the zoo given, not of {mine.zoo}")


def fingerprints(config: ConfigDict) -> dict[str, str]:
    """SHA-256 of every file that a checked configuration names."""
    if config.mine.zoo != "given":
        return {}
    found = {name: own.fingerprint(name) for name in _own(config)}
    return found | {key: sha256_of(path) for key, path in _located(config).items()}


def pictures(config: ConfigDict) -> list[str]:
    """Names and SHA-256 of the files in the user's folder of images."""
    folder = config.invert.folder
    files_ = [path for path in Path(folder).rglob("*") if path.is_file()] if folder else []
    return sorted(f"{path.relative_to(folder)}: {sha256_of(path)}" for path in files_)


def _numbers(config: ConfigDict) -> None:
    for keys, low, words in ((_POSITIVE, 0, "more than 0"), (_NOT_NEGATIVE, -1, "0 or more")):
        for key in keys:
            group, _, name = key.partition(".")
            value = config[group][name]
            if value < 0 or value == low:
                raise ConfigError(f"config.{key}: {value}, expected {words}")


def _size(name: str) -> int:
    """Pixels of a network whose input has one size only; 0 for others."""
    return checkpoints.NETWORKS[name].size if name in checkpoints.NETWORKS else 0


def _networks(config: ConfigDict) -> None:
    """Checks that generator and networks are there."""
    kind = config.mine.generator.network
    if kind != "dcgan" and kind not in context.GENERATORS and not own.is_own(kind):
        raise ConfigError(
            f"config.mine.generator.network: {kind!r}; known: dcgan, "
            f"{', '.join(context.GENERATORS)}, or your own as MODULE:FUNCTION"
        )
    space, spaces = config.mine.generator.space, generators.SPACES
    if space not in (spaces if kind.startswith("stylegan") else spaces[:1]):
        raise ConfigError(f"config.mine.generator.space: {space!r} of {kind}; StyleGANs have "
                          f"{', '.join(spaces)}, others z")  # fmt: skip
    if config.mine.generator.crop and kind[:9] not in ("stylegan3", "stylegan_"):
        raise ConfigError(f"config.mine.generator.crop: the maps of {kind} have no margins")
    for name in _own(config):
        try:
            own.find(name)
        except ValueError as error:
            raise ConfigError(f"config.mine: {one_line(error)}") from error
    _located(config)


def _own(config: ConfigDict) -> list[str]:
    names = (config.mine.generator.network, *config.mine.models)
    return [name for name in names if own.is_own(name)]


def _located(config: ConfigDict) -> dict[str, Path]:
    """The checkpoints' files by key."""
    mine: Any = config.mine
    wanted: dict[str, str] = {}
    if mine.generator.network in context.GENERATORS:
        wanted["generator.path"] = mine.generator.path
    wanted |= {
        f"paths.{name}": mine.paths[name] for name in mine.models if name in checkpoints.NETWORKS
    }
    found: dict[str, Path] = {}
    for key, path in wanted.items():
        try:
            found[key] = files.locate(path)
        except (OSError, ImportError) as error:
            raise ConfigError(f"config.mine.{key}: {one_line(error)}") from error
    return found
