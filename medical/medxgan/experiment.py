"""The stages of medXGAN: phantoms, classifier, generator, maps; for each seed and control."""

import functools
from pathlib import Path

from ml_collections import ConfigDict

from common import distributed
from common.config import ConfigError
from common.report import publish
from common.stages import Pipeline
from medical.medxgan import cohort, measure, networks, report, stages

KINDS = ("true", "shuffled", "shortcut")


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the stages of ``configs/medxgan.py`` and ``configs/latent_traversal.py`` in ``workdir``.

    Finished stages are skipped.

    A case is a kind of labels and a seed: the true labels for each of ``config.seeds``, and for the
    first of them the controls: labels shuffled, and a corner mark on the positives.
    """
    pipeline = Pipeline(workdir)
    alone = functools.partial(pipeline.stage, everywhere=False)
    unknown = set(config.controls) - set(KINDS[1:])
    if unknown:
        raise ConfigError(f"config.controls: {unknown.pop()!r} is unknown; known: {KINDS[1:]}")
    if config.net.kind != "small" and config.objective.reconstruction:
        raise ConfigError("config.objective.reconstruction: the published networks have no encoder")
    networks.make_nets(config.net)  # its errors before the first stage
    if config.data.table and "shortcut" in config.controls:
        raise ConfigError("config.controls: the mark of 'shortcut' is drawn into phantoms only")
    if config.data.table and config.net.channels != 1:
        raise ConfigError("config.net.channels: images of a table are grey, 1 channel")
    cases = [("true", seed) for seed in config.seeds]
    cases += [(kind, config.seeds[0]) for kind in config.controls]
    names = []
    for kind, seed in cases:
        settings = functools.partial(_settings, config, seed)
        case = f"{kind}-{seed}"
        drawn = settings("data", "phantom", "counts")
        drawn.net = ConfigDict({"size": config.net.size})
        drawn.labels = "shuffled" if kind == "shuffled" else "true"
        if kind == "shortcut":
            drawn.phantom.shortcut = 1.0
        data = f"data-{case}"
        alone(data, cohort.draw, drawn)
        judge, gan, maps = f"classifier-{case}", f"generator-{case}", f"explain-{case}"
        alone(judge, stages.train_classifier, settings("net", "classifier"), (data,))
        network = settings("net", "objective", "gan")
        if kind != "true":
            network.gan.num_steps = config.control_steps
        alone(gan, stages.train_generator, network, (data, judge))
        final = settings("net", "invert", "explain")
        if kind != "true":
            final.explain.noise = ()  # a control is no place to ask how steady maps are
        alone(maps, stages.explain, final, (data, judge, gan))
        names.append(maps)
    judges = tuple(name.replace("explain-", "classifier-") for name in names)
    alone("measure", measure.measure, _settings(config, config.seeds[0]), (*names, *judges))
    alone("report", report.report, ConfigDict({"source": source_of(config)}), (*names, "measure"))
    if distributed.is_main():
        page = publish(workdir, "measure/results.json")
        print(f"report: {page}")


def source_of(config: ConfigDict) -> str:
    """What the images are, for the report's first line."""
    if config.data.table:
        return f"Images of {Path(config.data.table).name}; where their lesions are is not known."
    return f"{config.phantom.source} phantoms from real anatomy with a lesion of known place."


def _settings(config: ConfigDict, seed: int, *names: str) -> ConfigDict:
    chosen = {name: config[name].copy_and_resolve_references() for name in names}
    return ConfigDict({**chosen, "seed": seed})
