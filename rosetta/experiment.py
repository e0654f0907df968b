"""The stages of Rosetta Neurons: mine the zoo, test the matches, show and use the dictionary."""

import functools
from pathlib import Path

from ml_collections import ConfigDict

from common import distributed
from common.stages import Pipeline
from rosetta import build, manipulate, picture, published, train
from rosetta.checks import check, fingerprints, pictures

__all__ = ["check", "run"]


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the stages of ``configs/rosetta.py`` in ``workdir``; finished ones are skipped."""
    check(config)
    stages = Pipeline(workdir)
    # A checkpoint that was replaced is mined again.
    files = [f"{key}: {value}" for key, value in fingerprints(config).items()]
    networks = ConfigDict({**config.mine, "seed": config.seed, "files": files})
    alone = functools.partial(stages.stage, everywhere=False)
    before: tuple[str, ...] = ()
    if config.mine.zoo == "fashion":
        alone("train", train.train, ConfigDict({**config.train, "seed": config.seed}))
        before = ("train",)
    # Mining is shared out among the devices and processes of a run; the rest is one process's.
    stages.stage("mine", build.mine, networks, before)
    alone("significance", build.assess, ConfigDict({"k": config.match.k}), ("mine",))
    alone("dictionary", build.dictionary, config.match, ("mine", "significance"))
    more = before
    if config.reference:
        published_ = ConfigDict({"networks": networks, "k": config.match.k})
        alone("reference", published.compare, published_, ("mine", *before))
        more = (*before, "reference")
    show = ConfigDict({"networks": networks, **config.show})
    alone("pictures", picture.pictures, show, ("mine", "dictionary", *before))
    guide = {"networks": networks, **config.guide}
    invert = ConfigDict({**guide, "invert": config.invert, "pictures": pictures(config)})
    alone("invert", manipulate.invert, invert, ("mine", *before))
    edit = ConfigDict({**guide, "edit": config.edit})
    alone("edit", manipulate.alter, edit, ("mine", *before))
    needs = ("mine", "significance", "dictionary", "pictures", "invert", "edit", *more)
    alone("report", picture.report, ConfigDict(), needs)
    if distributed.is_main():
        print(f"report: {picture.publish(workdir, needs)}")
