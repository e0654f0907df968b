"""The stages of weights2weights: build a space of models, then invert, sample and edit in it."""

import functools
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from common import distributed
from common.config import ConfigError
from common.report import publish
from common.stages import Pipeline
from w2w import apply, base_experiment, build, judge, models, picture


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the stages of ``configs/w2w.py`` in ``workdir``; finished ones are skipped."""
    # The weights' digest, so that other weights in the same place are other work.
    path = Path(config.base.path) if config.base.path else models.SHIPPED_WEIGHTS
    if not config.base.train and not path.is_file():
        raise ConfigError(f"config.base.path: there is no file {path}")
    if (last := max(apply.people(config.invert))) >= config.faces.olivetti:
        raise ConfigError(f"config.faces.olivetti: {config.faces.olivetti} people leave out person "
                          f"{last}, whom config.invert asks for")  # fmt: skip
    source = {} if config.base.train else {"path": str(path), "digest": models.digest(path)}
    stages = Pipeline(workdir)

    def settings(*names: str, **more: Any) -> ConfigDict:
        chosen = {name: config[name] for name in (*names, "seed")}
        return ConfigDict({**chosen, **more})

    drawing = settings("sample", "prompts", "lora")
    faces = {**config.faces, "seed": config.seed}
    stages.stage("faces", build.faces, ConfigDict(faces), everywhere=False)
    needs: tuple[str, ...] = ()
    if config.base.train:
        base_experiment.stages_of(stages, config.base.recipe)
        needs = ("train",)
    base = settings("prompts", "sample", class_images=config.base.class_images, **source)
    stages.stage("base", build.obtain_base, base, needs, everywhere=False)
    adapters = ConfigDict({**drawing, "adapter": config.adapter})
    # The population is shared out among the processes of a run; the rest is one process's work.
    stages.stage("populate", build.populate, adapters, ("faces", "base"))
    alone = functools.partial(stages.stage, everywhere=False)
    alone("space", build.space, settings(**config.space), ("populate",))
    use = ("faces", "base", "populate", "space")
    invert = ConfigDict(
        {
            **drawing,
            **config.invert,
            "adapter": config.unconstrained,
            "inversion": config.inversion,
            "components": config.space.components,
        }
    )
    alone("invert", apply.invert, invert, use)
    portraits = ConfigDict({**drawing, **config.portraits})
    alone("portraits", apply.portraits, portraits, (*use, "invert"))
    alone("sample", apply.sample, ConfigDict({**drawing, **config.new}), use)
    edit = ConfigDict({**drawing, "edit": config.edit})
    alone("edit", apply.edit, edit, (*use, "invert"))
    everything = (*use, "invert", "portraits", "sample", "edit")
    alone("judge", judge.judge, settings(), everything)
    alone("report", picture.report, settings(), (*everything, "judge"), version=2)
    if distributed.is_main():
        page = publish(workdir, "judge/results.json")
        print(f"report: {page}")
