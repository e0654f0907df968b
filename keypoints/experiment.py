"""The stages of BKinD-3D: recording, volume, training, baseline, measures, report."""

import functools
from pathlib import Path

from ml_collections import ConfigDict

from common import distributed
from common.report import publish
from common.stages import Pipeline
from keypoints import build, measure, report, supervised


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the stages of `configs/keypoints.py` in `workdir`; finished ones are skipped."""
    stages = Pipeline(workdir)
    alone = functools.partial(stages.stage, everywhere=False)
    recording = ConfigDict({"data": config.data, "seed": config.seed})
    alone("record", build.record, recording, version=2)
    alone("volume", build.find_volume, config.volume, ("record",))
    training = {name: config[name] for name in ("model", "train", "split", "mesh", "seed")}
    rig = ("record", "volume")
    stages.stage("train", build.fit, ConfigDict({**training, "lifting": "volume"}), rig)
    needs: tuple[str, ...] = (*rig, "train")
    if config.baseline.num_steps:
        flat = ConfigDict({**training, "lifting": "triangulation"})
        flat.train = ConfigDict({**config.train, "num_steps": config.baseline.num_steps})
        stages.stage("baseline", build.fit, flat, rig)
        needs = (*needs, "baseline")
    if config.supervised.num_steps:
        names = ("model", "supervised", "split", "mesh", "seed")
        settings = ConfigDict({name: config[name] for name in names})
        stages.stage("supervised", supervised.fit, settings, rig)
        needs = (*needs, "supervised")
    evaluation = ConfigDict({"split": config.split, **config.evaluate})
    alone("measure", measure.measure, evaluation, needs, version=2)
    shown = (*rig, "train", "measure")
    alone("report", report.report, ConfigDict({"split": config.split}), shown, version=2)
    if distributed.is_main():
        exports = [p.name for p in sorted((workdir / "stages" / "measure").glob("keypoints.*"))
                   if p.suffix != ".safetensors"]
        files = [f"measure/{name}" for name in ("results.json", *exports)]
        if (workdir / "stages" / "report" / "overlay.mp4").exists():
            files.append("report/overlay.mp4")
        page = publish(workdir, "train/model.safetensors", *files)
        print(f"report: {page}")
