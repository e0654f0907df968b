"""The stages for own adapters: train, import, fit, sample, invert, edit, export, draw, report."""

import hashlib
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from common.config import ConfigError
from common.report import publish
from common.stages import Pipeline
from w2w.adapters import base_model, class_images, earlier, encode, photographs, planted
from w2w.adapters import draw as drawing
from w2w.adapters import invert as inverting
from w2w.adapters import report as adapters_report
from w2w.adapters import stages as own_adapters
from w2w.adapters import train as training
from w2w.bank import folder as bank_import


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs the stages of ``configs/w2w_adapters.py`` in ``workdir``; finished ones are skipped."""
    stages = Pipeline(workdir)
    base = _base(config)
    fitting = {**earlier.settings(config.space, workdir), "seed": config.seed}
    source, needs = _source(config, stages, base)
    seed = {"seed": config.seed}
    settings = {"adapter": config.adapter, "bank": config.bank, **source}
    stages.stage("import", own_adapters.import_adapters, ConfigDict(settings), needs)
    stages.stage("space", own_adapters.fit, ConfigDict(fitting), ("import",))
    sampling = ConfigDict({**config.sample, **seed})
    stages.stage("sample", own_adapters.sample, sampling, ("import", "space"))
    models: tuple[str, ...] = ("sample",)
    if config.invert.images:
        pictures = photographs.digest(encode.find_people(config.invert, inverting.WHERE))
        settings = ConfigDict({**config.invert, **base, **seed, "pictures": pictures})
        stages.stage("invert", inverting.invert, settings, ("import", "space"))
        models = (*models, "invert")
    planted_needs = needs if config.planted.models else ()
    if config.edit.labels or planted_needs:
        settings = ConfigDict({**config.edit, **_digest(config.edit.labels)})
        above = (*planted_needs, "import", "space", *models)
        stages.stage("edit", own_adapters.edit, settings, above)
        models = (*models, "edit")
    stages.stage("export", own_adapters.export, ConfigDict(config.export), ("import", *models))
    everything: tuple[str, ...] = (*needs, "import", "space", *models, "export")
    if base and config.draw.prompts:
        settings = ConfigDict({**config.draw, **base, **seed})
        trained = needs if config.train.images else ()
        stages.stage("draw", drawing.draw, settings, (*trained, "import", "space", *models))
        everything = (*everything, "draw")
    stages.stage("report", adapters_report.report, ConfigDict(), everything)
    print(f"adapters: {workdir / 'stages' / 'export' / 'adapters'}")
    page = publish(workdir, "report/results.json")
    print(f"report: {page}")


def _base(config: ConfigDict) -> dict[str, Any]:
    """What stages that evaluate the base model depend on; empty if none is given.

    Mistakes in what those stages are told are errors here, before anything runs.
    """
    if not config.base.pipeline:
        for name in ("train", "invert"):
            if config[name].images:
                message = f"config.{name}.images needs the base model, config.base.pipeline"
                raise ConfigError(message)
        return {}
    if jax.process_count() > 1:
        raise ConfigError("config.base.pipeline: its stages run in one process")
    if config.invert.masks and not config.invert.images:
        raise ConfigError("config.invert.masks without config.invert.images")
    digest = base_model.digest(config.base.pipeline)
    if config.invert.images:
        encode.find_people(config.invert, inverting.WHERE)
        inverting.recipe_of(config.invert)
    return {**config.base, "pipeline_digest": digest}


def _source(
    config: ConfigDict, stages: Pipeline, base: dict[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Where the adapters are: settings of the import stage, and the stage that makes them."""
    given = {
        "config.planted.models": config.planted.models,
        "config.folder": config.folder,
        "config.train.images": config.train.images,
    }
    chosen = [name for name, value in given.items() if value]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)}: give one source of adapters")
    if not chosen:
        raise ConfigError(
            "config.folder is empty; it names the folder of your adapter files, or "
            "config.train.images that of photographs to train adapters from"
        )
    if config.planted.models:
        made = ConfigDict({**config.planted, "seed": config.seed})
        stages.stage("adapters", planted.make, made)
        return {}, ("adapters",)
    if config.train.images:
        _check_labels(config)
        _train(config.train, {**base, "seed": config.seed}, stages)
        return {}, ("train",)
    folder = pathlib.Path(config.folder)
    if not folder.is_dir():
        raise ConfigError(f"config.folder: {folder} is not a folder")
    _check_labels(config)
    sources = bank_import.find(folder)
    if not sources:
        raise ConfigError(f"config.folder: no adapter files in {folder}")
    # Added or changed files are other work.
    listing = "\n".join(f"{s.name} {bank_import.stamp(folder, s)}" for s in sources)
    digest = hashlib.sha256(listing.encode()).hexdigest()
    return {"folder": str(folder), "listing": digest}, ()


def _train(config: ConfigDict, base: dict[str, Any], stages: Pipeline) -> None:
    """The stages that train adapters from photographs, and that draw images of the class."""
    people = training.find_people(config)
    training.check(config)
    drawn = ("class_prompt", "class_count", "class_steps", "class_guidance", "class_at_once")
    settings = {name: value for name, value in config.items() if name not in drawn[1:]}
    settings |= {**base, "pictures": photographs.digest(people)}
    needs: tuple[str, ...] = ()
    if config.class_images:
        settings["class_pictures"] = photographs.digest([class_images.find(config.class_images)])
    elif config.class_batch:
        making = ConfigDict({**{name: config[name] for name in drawn}, **base})
        stages.stage(class_images.NAME, class_images.draw, making)
        needs = (class_images.NAME,)
    stages.stage("train", training.train, ConfigDict(settings), needs)


def _check_labels(config: ConfigDict) -> None:
    if config.edit.labels and not pathlib.Path(config.edit.labels).is_file():
        raise ConfigError(f"config.edit.labels: there is no file {config.edit.labels}")


def _digest(labels: str) -> dict[str, str]:
    """Digest of the file of labels, so that other labels are other work."""
    if not labels:
        return {}
    return {"digest": hashlib.sha256(pathlib.Path(labels).read_bytes()).hexdigest()}
