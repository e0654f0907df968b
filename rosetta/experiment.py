"""The stages of Rosetta Neurons: mine the zoo, test the matches, show and use the dictionary."""

import functools
from collections.abc import Collection
from pathlib import Path

from ml_collections import ConfigDict

from common import distributed
from common.config import ConfigError
from common.stages import Pipeline
from rosetta import build, context, manipulate, picture, train
from rosetta.zoo import checkpoints, shipped, small

_KNOWN: dict[str, Collection[str]] = {
    "packages": shipped.MODELS, "fashion": small.NETWORKS, "files": checkpoints.NETWORKS
}  # fmt: skip


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the stages of ``configs/rosetta.py`` in ``workdir``; finished ones are skipped."""
    check(config)
    stages = Pipeline(workdir)
    networks = ConfigDict({**config.mine, "seed": config.seed})
    alone = functools.partial(stages.stage, everywhere=False)
    before: tuple[str, ...] = ()
    if config.mine.zoo == "fashion":
        alone("train", train.train, ConfigDict({**config.train, "seed": config.seed}))
        before = ("train",)
    # Mining is shared out among the devices and processes of a run; the rest is one process's.
    stages.stage("mine", build.mine, networks, before)
    alone("significance", build.assess, ConfigDict({"k": config.match.k}), ("mine",))
    alone("dictionary", build.dictionary, config.match, ("mine", "significance"))
    show = ConfigDict({"networks": networks, **config.show})
    alone("pictures", picture.pictures, show, ("mine", "dictionary", *before))
    guide = {"networks": networks, "pairs": config.guide.pairs}
    invert = ConfigDict({**guide, "invert": config.invert})
    alone("invert", manipulate.invert, invert, ("mine", *before))
    edit = ConfigDict({**guide, "edit": config.edit})
    alone("edit", manipulate.alter, edit, ("mine", *before))
    needs = ("mine", "significance", "dictionary", "pictures", "invert", "edit", *before)
    alone("report", picture.report, ConfigDict(), needs)
    if distributed.is_main():
        print(f"report: {picture.publish(workdir)}")


def check(config: ConfigDict) -> None:
    """Checks a configuration before anything runs.

    Raises:
      ConfigError: unknown networks, numbers that do not fit, or checkpoints that are not there.
    """
    mine = config.mine
    if mine.zoo not in _KNOWN:
        raise ConfigError(f"config.mine.zoo: {mine.zoo!r}; known: {', '.join(_KNOWN)}")
    known = _KNOWN[mine.zoo]
    unknown = [name for name in mine.models if name not in known]
    if unknown or len(set(mine.models)) != len(mine.models) or not mine.models:
        raise ConfigError(f"config.mine.models: {mine.models}; known: {', '.join(known)}")
    if len(mine.sizes) != len(mine.models):
        raise ConfigError(f"config.mine.sizes: {len(mine.sizes)} for {len(mine.models)} models")
    if mine.images % mine.batch or mine.images < 1:
        raise ConfigError(f"config.mine.images: {mine.images} is no multiple of {mine.batch}")
    if not 1 <= mine.permutations < mine.batch:
        raise ConfigError(f"config.mine.permutations must be 1 to {mine.batch - 1}")
    if mine.zoo == "files":
        if mine.generator.network not in context.GENERATORS:
            raise ConfigError(
                f"config.mine.generator.network: {mine.generator.network!r}; known: "
                f"{', '.join(context.GENERATORS)}"
            )
        files = {"generator.path": mine.generator.path}
        files |= {f"paths.{name}": mine.paths[name] for name in mine.models}
        for key, path in files.items():
            if not Path(path).is_file():
                raise ConfigError(f"config.mine.{key}: {path!r} is no file; give the checkpoint's")
    if config.edit.images < 2:
        raise ConfigError("config.edit.images: at least 2, their maps are exchanged")
