"""The stages of an idempotent network: images, judge, baselines, training, measures, report."""

import functools
import shutil
from pathlib import Path

from ml_collections import ConfigDict

from common import distributed
from common.config import ConfigError
from common.report import publish
from common.stages import Pipeline
from ign import measure, report, stages


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the stages of `configs/ign.py` in `workdir`; finished ones are skipped."""
    weights = config.evaluate.inception
    if weights and not Path(weights).is_file():
        raise ConfigError(f"config.evaluate.inception: there is no file {weights}")
    pipeline = Pipeline(workdir)
    alone = functools.partial(pipeline.stage, everywhere=False)

    def settings(*names: str) -> ConfigDict:
        return ConfigDict({name: config[name] for name in (*names, "seed", "mesh")})

    alone("data", stages.prepare, settings("data", "noise"))
    pipeline.stage("judge", stages.train_judge, settings("judge"), ("data",))
    network = ("data", "net")
    pipeline.stage("baselines", stages.train_baselines, settings(*network, "baseline"), ("data",))
    training = settings(*network, "loss", "train", "probe")
    pipeline.stage("train", stages.train, training, ("data", "judge"))
    trained = ("data", "judge", "baselines", "train")
    alone("measure", measure.measure, settings("evaluate"), trained)
    alone("report", report.report, ConfigDict({"source": config.data.source}), (
        "measure", "train"))
    if distributed.is_main():
        model = workdir / "stages" / "train" / "member0.safetensors"
        shutil.copyfile(model, workdir / "model.safetensors")
        page = publish(workdir, "measure/results.json")
        print(f"report: {page}")
