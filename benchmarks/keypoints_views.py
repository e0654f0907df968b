"""Errors of discovered keypoints by number of views and of keypoints, as in the paper's tables.

    python benchmarks/keypoints_views.py rodent humanoid [--views 2 4 6] [--keypoints 15 30]
        [--workdir runs/keypoints_views] [--config.train.num_steps=4000 ...]

Each combination is one run of `configs/keypoints.py:VARIANT` without the trained baselines; what is
finished is not run again. Overrides change the configuration of all runs. Printed are mean errors
after the linear map, in mm, of clips that training does not see; in brackets after Procrustes
alignment. Costs a run of the variant for each cell.
"""

import argparse
import pathlib
import sys
from typing import Any

from absl import logging

from common import config as config_lib
from common import storage, xla_flags
from configs import keypoints as keypoints_config
from keypoints import experiment


def run(variant: str, views: int, keypoints: int, changes: Any, root: pathlib.Path) -> dict:
    """Results of one run."""
    config = keypoints_config.get_config(variant)
    config.data.views, config.model.keypoints = views, keypoints
    config.baseline.num_steps = config.supervised.num_steps = 0
    config.evaluate.by_views = False
    config = config_lib.apply_overrides(config, changes)
    workdir = root / f"{variant}-{views}-views-{keypoints}-keypoints"
    workdir.mkdir(parents=True, exist_ok=True)
    experiment.run(config, workdir)
    return storage.load_json(workdir / "results.json")


def cell(row: dict[str, dict[str, float]]) -> str:
    """MPJPE and, in brackets, P-MPJPE of the frames furthest from training."""
    part = row["unseen"] if "unseen" in row else row["later"]
    return f"{part['mpjpe']:.1f} ({part['p_mpjpe']:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="+")
    parser.add_argument("--views", type=int, nargs="+", default=[2, 4, 6])
    parser.add_argument("--keypoints", type=int, nargs="+", default=[15, 30])
    parser.add_argument("--workdir", type=pathlib.Path, default="runs/keypoints_views")
    rest, changes = config_lib.take_overrides(sys.argv)
    options = parser.parse_args(rest[1:])
    xla_flags.prepare()  # as launch.py does
    logging.set_verbosity(logging.WARNING)
    rows = []
    for variant in options.variants:
        for views in options.views:
            found = {
                k: run(variant, views, k, changes, options.workdir) for k in options.keypoints}
            first = found[options.keypoints[0]]
            cells = [cell(found[k]["errors"]["this model"]) for k in options.keypoints]
            hull = cell(first["baselines"]["hull centroid, moments, heights"])
            mean = cell(first["baselines"]["mean pose"])
            rows.append([variant, str(views), *cells, hull, mean])
    header = ["scene", "views", *(f"{k} keypoints" for k in options.keypoints), "visual hull",
              "mean pose"]  # fmt: skip
    for row in [header, ["---"] * len(header), *rows]:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
