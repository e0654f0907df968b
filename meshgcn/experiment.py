"""The stages of the mesh classifier: train, compare with baselines, explain, score, report."""

import functools
import shutil
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from common import distributed
from common.config import ConfigError
from common.report import publish
from common.stages import Pipeline
from meshgcn import build, cohort, context, picture


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the stages of ``configs/meshgcn.py`` in ``workdir``; finished ones are skipped."""
    _check(config)
    stages = Pipeline(workdir)
    shared = ("seed", "mesh", "operators", "network", "train", "cohort", "data", "trials")

    # Changed scans are other work, though their folder has the same name.
    scans = {"scans": context.fingerprint(config)} if config.data.folder else {}

    def settings(*names: str) -> ConfigDict:
        return ConfigDict({**{name: config[name] for name in (*shared, *names)}, **scans})

    # One process's work, on all of its devices.
    alone: Any = functools.partial(stages.stage, everywhere=False)
    alone("classify", build.classify, settings("networks"))
    alone("compare", build.compare, settings("perceptron"), ("classify",))
    alone("explain", build.explain, settings("networks", "maps"))
    needs = ("classify", "compare", "explain")
    alone("score", build.score, settings(), needs)
    alone("report", picture.report, settings("maps", "networks"), (*needs, "score"))
    if distributed.is_main():
        overlays = workdir / "stages" / "explain" / "overlays"
        shutil.copytree(overlays, workdir / "overlays", dirs_exist_ok=True)
        page = publish(workdir, "score/results.json", "explain/regions.csv")
        print(f"report: {page}")


def _check(config: ConfigDict) -> None:
    """Raises ConfigError for settings that no stage could use."""
    unknown = [name for name in config.networks if name not in context.NETWORKS]
    if unknown or not config.networks:
        known = ", ".join(context.NETWORKS)
        raise ConfigError(f"config.networks: {tuple(config.networks)}; known: {known}")
    bad = [name for name in config.cohort.plants if name not in cohort.PLANTS]
    if bad or not config.cohort.plants:
        known = ", ".join(cohort.PLANTS)
        raise ConfigError(f"config.cohort.plants: {tuple(config.cohort.plants)}; known: {known}")
    depth = len(config.network.widths) + (1 if config.network.stem else 0)
    if any(not 0 <= level < depth for level in config.maps.levels) or not config.maps.levels:
        raise ConfigError(f"config.maps.levels: {tuple(config.maps.levels)} of {depth} levels")
    if config.trials.count < 1 or config.trials.at_once < 1:
        raise ConfigError("config.trials.count and config.trials.at_once must be positive")
    if bool(config.data.folder) != bool(config.data.table):
        raise ConfigError("config.data.folder and config.data.table go together")
    if len(config.data.classes) != 2:
        raise ConfigError(f"config.data.classes: {tuple(config.data.classes)}, expected two")
    places = {"patterns": ("scan", "hemi"), "bodies": ("scan", "structure")}
    for key, names in places.items():
        for pattern in config.data[key]:
            try:
                pattern.format(**dict.fromkeys(names, ""))
            except (KeyError, IndexError, ValueError) as error:
                known = " and ".join(f"{{{name}}}" for name in names)
                raise ConfigError(f"config.data.{key}: {pattern!r} may hold {known}") from error
    if not config.data.patterns:
        raise ConfigError("config.data.patterns names no measure")
