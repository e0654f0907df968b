"""The stages of DeepCOVID-Fuse: patients, trunk, networks, baselines, maps, tables, report."""

import functools
from pathlib import Path

from ml_collections import ConfigDict

from common import distributed
from common.config import ConfigError
from common.report import publish
from common.stages import Pipeline
from medical.fusion import cohort, measure, methods, missing, networks, report, stages


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the stages of ``configs/deepcovid_fuse.py``; finished ones are skipped."""
    _check(config)
    pipeline = Pipeline(workdir)
    alone = functools.partial(pipeline.stage, everywhere=False)
    alone("cohort", cohort.draw, _settings(
        config, "seed", "data", "counts", "opacities", "absent", "net", "pretrain"))
    alone("trunk", stages.pretrain_trunk, _settings(config, "seed", "net", "pretrain", "trunk"),
          ("cohort",))
    shared = ("seed", "seeds", "net", "train", "fill", "population")
    names = []
    for name in config.methods:
        chosen = _settings(config, *shared)
        chosen.method = name
        alone(f"train-{name}", stages.train_method, chosen, ("cohort", "trunk"))
        names.append(f"train-{name}")
    alone("baselines", stages.fit_baselines, _settings(config, "seeds", "baselines"), ("cohort",))
    shown = [name for name in config.methods if methods.METHODS[name].kind != "clinical"]
    explain = _settings(config, "net", "explain")
    explain.explain.methods = tuple(shown)
    alone("explain", stages.explain, explain, ("cohort", *(f"train-{name}" for name in shown)))
    alone("measure", measure.measure, _settings(config, "seed", "seeds", "fill", "resamples"),
          ("cohort", "trunk", *names, "baselines", "explain"))
    source = "own" if config.data.table else config.data.source
    final = ConfigDict({"source": source, "methods": tuple(shown)})
    alone("report", report.report, final, ("measure", "explain"))
    if distributed.is_main():
        page = publish(workdir, "measure/results.json")
        print(f"report: {page}")


def _check(config: ConfigDict) -> None:
    """Raises ConfigError for settings that no stage could use."""
    for what, chosen, known in (("methods", config.methods, methods.METHODS),
                                ("baselines", config.baselines, methods.BASELINES)):
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise ConfigError(f"config.{what}: {unknown[0]!r} is unknown; known: "
                              f"{', '.join(known)}")
    if config.data.source not in cohort.SOURCES:
        raise ConfigError(f"config.data.source: {config.data.source!r} is unknown; known: "
                          f"{', '.join(cohort.SOURCES)}")
    if not {"image", "fusion", "fusion_dropout", "fusion_learned"} & set(config.methods):
        raise ConfigError("config.methods: at least one network with an image is needed")
    networks.make_trunk(config.net)  # its errors before the first stage
    if not config.seeds or len(set(config.seeds)) != len(config.seeds):
        raise ConfigError(f"config.seeds: {tuple(config.seeds)}: none, or one twice")
    if config.fill not in ("mean", "zeros"):
        raise ConfigError(f"config.fill: {config.fill!r}; known: mean, zeros; the method "
                          f"fusion_learned is the third of {missing.POLICIES}")


def _settings(config: ConfigDict, *names: str) -> ConfigDict:
    """A copy of these entries."""
    return ConfigDict({name: config[name] for name in names}).copy_and_resolve_references()
