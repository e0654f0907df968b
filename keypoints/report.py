"""The report of a run: figures, tables and one self-contained page."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from common import figures as plots
from common import storage
from common.report import Report
from common.writer import read_jsonl
from keypoints import build, data, edges, evaluate, figures, overlay_video


def report(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: all figures and `report.html`."""
    recording, cube, cameras = build.load_rig(inputs)
    results = storage.load_json(inputs["measure"] / "results.json")
    arrays, _ = storage.load_arrays(inputs["measure"] / "keypoints.safetensors")
    split = data.split(recording, config.split.test_subjects, config.split.later)
    draw(results, arrays, recording, split, cube, cameras, inputs, out)
    video(results, arrays, recording, split, cube, cameras, out / "overlay.mp4")
    page = Report(
        "Discovered 3-D keypoints",
        f"{results['keypoints']} keypoints from {len(recording.calibration.names)} cameras, found"
        " without labels",
    )
    unit = recording.unit
    page.section(
        "What was found",
        "Held-out frames. A keypoint has one colour in all frames and views; lines are the edges of"
        " the learned skeleton with the largest weights.",
    )
    page.figure(out / "strip.png", "Time runs to the right, one row for each camera.")
    page.figure(out / "poses.png", "The same frames in space; grey: ground truth.")
    page.figure(out / "graph.png", "The learned graph, drawn at the pose of one frame.")
    if "errors" in results:
        page.section("Errors after linear regression").table(*error_table(results))
        page.note(
            "A linear map with ridge penalty 1 on standardised coordinates, fitted on the training"
            " frames. Later: the end of the training subjects' sequences. Unseen: other subjects."
        )
        page.figure(out / "errors.png")
        if results.get("views"):
            page.section("Fewer views, same network").table(*view_table(results))
    page.section("Without labels").table(*free_table(results))
    page.section("Skeleton").table(
        ["edge", "weight", f"length / {unit or 'units'}", "variation"],
        [
            [f"{e['ends'][0]}–{e['ends'][1]}", e["weight"], e["length"], e["variation"]]
            for e in results["skeleton"][:12]
        ],
        "Strongest edges; variation: standard deviation of the length over its mean.",
    )
    page.section("Training").figure(out / "losses.png")
    page.write(out / "report.html")


def draw(
    results: dict[str, Any],
    arrays: dict[str, np.ndarray],
    recording: data.Recording,
    split: data.Split,
    cube: Any,
    cameras: Any,
    inputs: dict[str, Path],
    out: Path,
) -> None:
    """All figures of the report."""
    pool = split.unseen if len(split.unseen) else split.later
    pool = pool if len(pool) else split.train
    pool = pool[len(pool) // 3 :]
    step = max(1, min(round(0.25 * recording.rate), len(pool) // 8))  # eight frames
    shown = pool[: 8 * step : step]
    joined = [tuple(e["ends"]) for e in results["skeleton"][: results["keypoints"]]]
    points = arrays["points"]
    pixels = evaluate.project(cube.from_world(points[shown]), cameras)
    names = recording.calibration.names
    figures.strip(out / "strip.png", recording.images[shown], pixels, joined, names)
    few = shown[:: max(1, len(shown) // 3)][:3]
    truth = None if recording.joints is None else recording.joints[few]
    figures.skeletons(
        out / "poses.png", points[few], joined, truth, recording.bones, recording.unit
    )
    weights = np.logaddexp(0.0, arrays["skeleton"])
    figures.graph(out / "graph.png", points[few[0]], weights, edges.pairs(points.shape[1]))
    log = read_jsonl(inputs["train"] / "metrics.jsonl")
    series = {
        name: ([r["step"] for r in log if name in r], [r[name] for r in log if name in r])
        for name in (
            "reconstruction", "silhouette", "coverage", "overlap", "separation", "length",
            "rotation", "perceptual",
        )  # fmt: skip
        if any(name in r for r in log)
    }
    plots.curves(out / "losses.png", series, "step", "loss", logy=True, markers=False)
    if "errors" in results:
        part = "unseen" if results["labelled"]["unseen"] else "later"
        bars = {
            name: {"MPJPE": row[part]["mpjpe"], "P-MPJPE": row[part]["p_mpjpe"]}
            for group in ("errors", "controls", "baselines")
            for name, row in results[group].items()
        }
        plots.bars(
            out / "errors.png",
            list(bars),
            {key: [row[key] for row in bars.values()] for key in ("MPJPE", "P-MPJPE")},
            ylabel=f"error / {recording.unit}",
        )


def video(
    results: dict[str, Any], arrays: dict[str, np.ndarray], recording: data.Recording,
    split: data.Split, cube: Any, cameras: Any, path: Path, most: int = 300,
) -> None:
    """`overlay.mp4` of the first `most` held-out frames, where OpenCV is installed."""
    pool = split.unseen if len(split.unseen) else split.later
    shown = pool[recording.sequence[pool] == recording.sequence[pool[0]]][:most]
    pixels = evaluate.project(cube.from_world(arrays["points"][shown]), cameras)
    joined = [tuple(e["ends"]) for e in results["skeleton"][: results["keypoints"]]]
    try:
        overlay_video.write(path, recording.images[shown], pixels, joined, recording.rate)
    except ModuleNotFoundError:
        print(f"{path.name} is left out: OpenCV is not installed (extra `keypoints`)")


def error_table(results: dict[str, Any]) -> tuple[list[str], list[list[Any]], str]:
    """Header, rows and caption."""
    parts = [name for name in ("later", "unseen") if results["labelled"][name]]
    size = results["body_size"]
    rows = []
    for group in ("errors", "controls", "baselines"):
        for name, row in results[group].items():
            cells: list[Any] = [name]
            for part in parts:
                cells += [row[part][k] for k in ("mpjpe", "centred", "p_mpjpe")]
            last = row[parts[-1]]
            cells.append(100 * last["mpjpe"] / size)
            rows.append([*cells, 100 * last["swapped"] if "swapped" in last else ""])
    header = ["predictor"]
    for part in parts:
        header += [f"{part}: MPJPE", "centred", "P-MPJPE"]
    caption = (
        f"In {results['unit']}; then for {parts[-1]} in per cent of the body ({size:.0f}), and the"
        " per cent of left and right joints nearer to each other's place than to their own."
    )
    return [*header, "% of body", "% swapped"], rows, caption


def view_table(results: dict[str, Any]) -> tuple[list[str], list[list[Any]], str]:
    """Header, rows and caption: errors with the first views only."""
    parts = [name for name in ("later", "unseen") if results["labelled"][name]]
    everything = {**results["views"], "all": results["errors"]["this model"]}
    rows = [
        [views, *(row[part][k] for part in parts for k in ("mpjpe", "p_mpjpe"))]
        for views, row in everything.items()
    ]
    header = ["views", *(f"{p}: {k}" for p in parts for k in ("MPJPE", "P-MPJPE"))]
    return header, rows, f"In {results['unit']}; the regression is fitted for each."


def free_table(results: dict[str, Any]) -> tuple[list[str], list[list[Any]], str]:
    """Header, rows and caption of what needs no ground truth."""
    left, inside, time = results["left_out_view"], results["inside_motion"], results["temporal"]
    rows = [
        ["left-out view: distance to keypoints of all views, pixels", left["pixels"]],
        ["the same in space, sides of the volume", left["sides"]],
        ["spread of a keypoint over frames, pixels", left["spread_pixels"]],
        ["share of projections inside the motion mask", inside["share"]],
        ["area of the mask (chance)", inside["chance"]],
        ["second difference over step in time (1.73 is noise)", time["ratio"]],
    ]
    return ["", "value"], rows, "Held-out frames."
