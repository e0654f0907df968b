"""The stages of the low-data comparison: split, every method's trials, measures, report."""

import functools
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from common import distributed
from common.config import ConfigError
from common.report import publish
from common.stages import Pipeline
from medical.acgan import measure, methods, population, report, stages


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the stages of ``configs/acgan.py`` in ``workdir``; finished ones are skipped.

    A method is one stage, in which all its trials (subset sizes and seeds) are one program.
    """
    try:
        chosen = methods.chosen(tuple(config.methods))
        trials = stages.trials_of(config)
        population.Schedule(**dict(config.schedule))
    except ValueError as error:
        raise ConfigError(f"config.methods, per_class, seeds or schedule: {error}") from error
    if config.population not in population.MODES:
        raise ConfigError(
            f"config.population {config.population!r}; known: {', '.join(population.MODES)}")
    if config.samples < 2:
        raise ConfigError(f"config.samples is {config.samples}; diversity needs 2 or more")
    try:
        stages.make_nets(config.net, 2, config.data.size)
    except ValueError as error:
        raise ConfigError(f"config.net for config.data.size {config.data.size}: {error}") from error
    pipeline = Pipeline(workdir)
    alone = functools.partial(pipeline.stage, everywhere=False)

    def settings(*names: str, **more: Any) -> ConfigDict:
        shared = {name: config[name] for name in (*names, "per_class", "seeds", "seed")}
        return ConfigDict({**shared, **more}).copy_and_resolve_references()

    alone("data", stages.split, settings("data"))
    trained = []
    for name, method in chosen.items():
        needs = ["data", *([f"train-{method.samples_of}"] if method.samples_of else [])]
        own = settings("net", "recipe", "schedule", "population", "samples", method=name)
        print(f"train-{name}: {len(trials)} trials")
        alone(f"train-{name}", stages.train_method, own, needs, version=2)
        trained.append(f"train-{name}")
    every = ("data", *trained)
    alone("measure", measure.measure, settings("net", "methods"), every, version=2)
    alone("report", report.report, settings(source=config.data.source), (*every, "measure"))
    if distributed.is_main():
        page = publish(workdir, "measure/results.json")
        print(f"report: {page}")
