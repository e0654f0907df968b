"""The stages after training: keypoints of all frames, errors and controls, exports."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from common import storage
from keypoints import baselines, build, data, evaluate, exports, regression
from keypoints.predict import predict


def measure(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: `results.json`, and the keypoints of all frames."""
    recording, cube, cameras = build.load_rig(inputs)
    split = data.split(recording, config.split.test_subjects, config.split.later)
    masks = build.load_masks(inputs["record"])
    model, params = build.load_model(inputs["train"] / "model.safetensors")
    found = predict(model, params, recording.images, cameras)
    world = cube.to_world(found.points)
    test = np.concatenate([split.later, split.unseen])
    results: dict[str, Any] = {
        "unit": recording.unit,
        "keypoints": model.config.keypoints,
        "frames": {
            "train": len(split.train), "later": len(split.later), "unseen": len(split.unseen)
        },
        "volume_side": cube.side,
    }
    if recording.joints is not None:
        known = data.labelled(recording, split)
        results["labelled"] = {
            "train": len(known.train), "later": len(known.later), "unseen": len(known.unseen)
        }
        size = regression.body_size(recording.joints[known.train])
        results["body_size"] = size
        results["errors"] = {"this model": evaluate.errors(found.points, recording, known)}
        if "baseline" in inputs:
            other, weights = build.load_model(inputs["baseline"] / "model.safetensors")
            flat = predict(other, weights, recording.images, cameras)
            name = "2-D heat maps + triangulation"
            results["errors"][name] = evaluate.errors(flat.points, recording, known)
        if "supervised" in inputs:  # keypoints are joints: no regression
            other, weights = build.load_model(inputs["supervised"] / "model.safetensors")
            joints = cube.to_world(predict(other, weights, recording.images, cameras).points)
            tests = {"later": known.later, "unseen": known.unseen}
            results["errors"]["supervised, same network"] = {
                name: regression.errors(
                    joints[frames], recording.joints[frames],
                    regression.sides(recording.joint_names),
                )
                for name, frames in tests.items() if len(frames)
            }
        results["controls"] = {
            "calibrations exchanged": evaluate.shuffled(model, params, recording, known, cameras)
        }
        if config.by_views:
            results["views"] = evaluate.by_views(model, params, recording, known, cameras)
        tests = {"later": known.later, "unseen": known.unseen}
        results["baselines"] = baselines.table(
            recording.joints, masks, cameras, known.train, tests, 0.015 * size
        )
    chosen = test[:: max(1, len(test) // 256)]
    part = type(found)(found.points[chosen], found.covariance[chosen], found.confidence[chosen])
    results["left_out_view"] = evaluate.leave_one_view_out(
        model, params, recording.images[chosen], cameras, part
    )
    pixels = evaluate.project(found.points[test], cameras)
    share, chance = baselines.inside_share(pixels, masks[test])
    hidden = evaluate.hidden_share(pixels)
    results["inside_motion"] = {"share": share, "chance": chance, "hidden": hidden}
    results["temporal"] = evaluate.temporal(world, recording.sequence)
    results["skeleton"] = evaluate.skeleton(params, world[test])
    storage.save_json(out / "results.json", results)
    arrays = {
        "points": world,
        "covariance": cube.covariance_to_world(found.covariance),
        "confidence": found.confidence,
        "skeleton": params["skeleton"],
    }
    storage.save_arrays(out / "keypoints.safetensors", arrays, {"unit": recording.unit})
    export(out, recording, arrays)


def export(out: Path, recording: data.Recording, arrays: dict[str, np.ndarray]) -> None:
    """Writes the keypoints in the formats of `keypoints.exports`; HDF5 where h5py is installed."""
    points, score = arrays["points"], arrays["confidence"]
    names = tuple(f"k{index}" for index in range(points.shape[1]))
    spread = np.sqrt(np.trace(arrays["covariance"], axis1=-2, axis2=-1))
    views = np.full(len(points), recording.images.shape[1])
    exports.anipose_csv(out / "keypoints.csv", points, names, score, spread, views)
    exports.dannce_mat(out / "keypoints.mat", points, score)
    try:
        exports.sleap_hdf5(out / "keypoints.h5", points, names, score)
    except ModuleNotFoundError:
        print("keypoints.h5 is left out: h5py is not installed (extra `keypoints`)")
