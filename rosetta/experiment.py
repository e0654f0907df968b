"""The stages of Rosetta Neurons: mine the zoo, test the matches, make the dictionary, show it."""

import functools
from pathlib import Path

from ml_collections import ConfigDict

from common import distributed
from common.config import ConfigError
from common.stages import Pipeline
from rosetta import build, picture
from rosetta.zoo import shipped


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the stages of ``configs/rosetta.py`` in ``workdir``; finished ones are skipped."""
    mine = config.mine
    unknown = [name for name in mine.models if name not in shipped.MODELS]
    if unknown or len(set(mine.models)) != len(mine.models) or not mine.models:
        raise ConfigError(f"config.mine.models: {mine.models}; known: {', '.join(shipped.MODELS)}")
    if len(mine.sizes) != len(mine.models):
        raise ConfigError(f"config.mine.sizes: {len(mine.sizes)} for {len(mine.models)} models")
    if mine.images % mine.batch or mine.images < 1:
        raise ConfigError(f"config.mine.images: {mine.images} is no multiple of {mine.batch}")
    if not 1 <= mine.permutations < mine.batch:
        raise ConfigError(f"config.mine.permutations must be 1 to {mine.batch - 1}")
    stages = Pipeline(workdir)
    networks = ConfigDict({**mine, "seed": config.seed})
    # Mining is shared out among the devices and processes of a run; the rest is one process's.
    stages.stage("mine", build.mine, networks)
    alone = functools.partial(stages.stage, everywhere=False)
    alone("significance", build.assess, ConfigDict({"k": config.match.k}), ("mine",))
    alone("dictionary", build.dictionary, config.match, ("mine", "significance"))
    show = ConfigDict({"networks": networks, **config.show})
    alone("pictures", picture.pictures, show, ("mine", "dictionary"))
    needs = ("mine", "significance", "dictionary", "pictures")
    alone("report", picture.report, ConfigDict(), needs)
    if distributed.is_main():
        print(f"report: {picture.publish(workdir)}")
