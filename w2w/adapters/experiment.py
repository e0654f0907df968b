"""The stages for somebody's own adapters: import, fit, sample, edit, export, report."""

import hashlib
import pathlib
from typing import Any

from ml_collections import ConfigDict

from common.config import ConfigError
from common.stages import Pipeline
from w2w.adapters import planted
from w2w.adapters import report as adapters_report
from w2w.adapters import stages as own_adapters
from w2w.bank import folder as bank_import


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs the stages of ``configs/w2w_adapters.py`` in ``workdir``; finished ones are skipped."""
    stages = Pipeline(workdir)
    source, needs = _source(config, stages)
    seed = {"seed": config.seed}
    settings = {"adapter": config.adapter, "bank": config.bank, **source}
    stages.stage("import", own_adapters.import_adapters, ConfigDict(settings), needs)
    stages.stage("space", own_adapters.fit, ConfigDict({**config.space, **seed}), ("import",))
    sampling = ConfigDict({**config.sample, **seed})
    stages.stage("sample", own_adapters.sample, sampling, ("import", "space"))
    models: tuple[str, ...] = ("sample",)
    if config.edit.labels or needs:
        editing = ConfigDict({**config.edit, **_digest(config.edit.labels)})
        needed = (*needs, "import", "space", "sample")
        stages.stage("edit", own_adapters.edit, editing, needed)
        models = ("sample", "edit")
    stages.stage("export", own_adapters.export, ConfigDict(config.export), ("import", *models))
    everything = (*needs, "import", "space", *models, "export")
    stages.stage("report", adapters_report.report, ConfigDict(), everything)
    print(f"adapters: {workdir / 'stages' / 'export' / 'adapters'}")
    print(f"report: {adapters_report.publish(workdir)}")


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
