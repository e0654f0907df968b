"""The stages for own adapters: import, fit, sample, invert, edit, export, draw, report."""

import hashlib
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from common.config import ConfigError
from common.report import publish
from common.stages import Pipeline
from w2w.adapters import base_model, earlier, photographs, planted
from w2w.adapters import draw as drawing
from w2w.adapters import invert as inverting
from w2w.adapters import report as adapters_report
from w2w.adapters import stages as own_adapters
from w2w.bank import folder as bank_import


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs the stages of ``configs/w2w_adapters.py`` in ``workdir``; finished ones are skipped."""
    stages = Pipeline(workdir)
    base = _base(config)
    fitting = {**earlier.settings(config.space, workdir), "seed": config.seed}
    source, needs = _source(config, stages)
    seed = {"seed": config.seed}
    settings = {"adapter": config.adapter, "bank": config.bank, **source}
    stages.stage("import", own_adapters.import_adapters, ConfigDict(settings), needs)
    stages.stage("space", own_adapters.fit, ConfigDict(fitting), ("import",))
    sampling = ConfigDict({**config.sample, **seed})
    stages.stage("sample", own_adapters.sample, sampling, ("import", "space"))
    models: tuple[str, ...] = ("sample",)
    if config.invert.images:
        pictures = photographs.digest(inverting.find_people(config.invert))
        settings = ConfigDict({**config.invert, **base, **seed, "pictures": pictures})
        stages.stage("invert", inverting.invert, settings, ("import", "space"))
        models = (*models, "invert")
    if config.edit.labels or needs:
        settings = ConfigDict({**config.edit, **_digest(config.edit.labels)})
        stages.stage("edit", own_adapters.edit, settings, (*needs, "import", "space", *models))
        models = (*models, "edit")
    stages.stage("export", own_adapters.export, ConfigDict(config.export), ("import", *models))
    everything: tuple[str, ...] = (*needs, "import", "space", *models, "export")
    if base and config.draw.prompts:
        settings = ConfigDict({**config.draw, **base, **seed})
        stages.stage("draw", drawing.draw, settings, ("import", "space", *models))
        everything = (*everything, "draw")
    stages.stage("report", adapters_report.report, ConfigDict(), everything)
    print(f"adapters: {workdir / 'stages' / 'export' / 'adapters'}")
    page = publish(workdir, "report/results.json")
    print(f"report: {page}")


def _base(config: ConfigDict) -> dict[str, Any]:
    """What stages that evaluate the base model depend on; empty if none is given."""
    if not config.invert.pipeline:
        if config.invert.images:
            raise ConfigError("config.invert.images needs the base model, config.invert.pipeline")
        return {}
    if jax.process_count() > 1:
        raise ConfigError("config.invert.pipeline: inversion and drawing run in one process")
    if config.invert.masks and not config.invert.images:
        raise ConfigError("config.invert.masks without config.invert.images")
    digest = base_model.digest(config.invert.pipeline)
    shared = {name: config.invert[name] for name in ("pipeline", "dtype", "remat", "size")}
    if config.invert.images:
        # Mistakes are errors before anything is imported.
        inverting.find_people(config.invert)
        inverting.recipe_of(config.invert)
    return {**shared, "pipeline_digest": digest}


def _source(config: ConfigDict, stages: Pipeline) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Where the adapters are: settings of the import stage, and the stage that makes them."""
    if config.planted.models:
        made = ConfigDict({**config.planted, "seed": config.seed})
        stages.stage("adapters", planted.make, made)
        return {}, ("adapters",)
    if not config.folder:
        raise ConfigError("config.folder is empty; it names the folder of your adapter files")
    folder = pathlib.Path(config.folder)
    if not folder.is_dir():
        raise ConfigError(f"config.folder: {folder} is not a folder")
    if config.edit.labels and not pathlib.Path(config.edit.labels).is_file():
        raise ConfigError(f"config.edit.labels: there is no file {config.edit.labels}")
    sources = bank_import.find(folder)
    if not sources:
        raise ConfigError(f"config.folder: no adapter files in {folder}")
    # Added or changed files are other work.
    listing = "\n".join(f"{s.name} {bank_import.stamp(folder, s)}" for s in sources)
    digest = hashlib.sha256(listing.encode()).hexdigest()
    return {"folder": str(folder), "listing": digest}, ()


def _digest(labels: str) -> dict[str, str]:
    """Digest of the file of labels, so that other labels are other work."""
    if not labels:
        return {}
    return {"digest": hashlib.sha256(pathlib.Path(labels).read_bytes()).hexdigest()}
