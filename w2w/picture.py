"""Stage that draws a run: contact sheets, strips, spectra, scores, and one HTML report."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from common import figures, image_grids, storage
from common.report import Report
from w2w import apply, context, evaluate
from w2w.context import FaceTable

Array = np.ndarray
Arrays = dict[str, np.ndarray]

METHODS = {
    "photograph": "the photograph itself",
    "real": "other real photographs",
    "multi": "LoRA, five photographs",
    "w2w": "w2w, one photograph",
    "single": "LoRA, one photograph",
    "base": "base model",
}
TITLES = {"male": "male", "smiling": "smiling", "age": "age"}
UNITS = {"male": "P(male)", "smiling": "P(happy)", "age": "age, years"}


def report(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: all figures and ``report.html``."""
    del config
    table = context.load_faces(inputs["faces"])
    inverted, _ = storage.load_arrays(inputs["invert"] / "inverted.safetensors")
    portraits, _ = storage.load_arrays(inputs["portraits"] / "portraits.safetensors")
    samples, _ = storage.load_arrays(inputs["sample"] / "samples.safetensors")
    edits, header = storage.load_arrays(inputs["edit"] / "edits.safetensors")
    population, _ = storage.load_arrays(inputs["populate"] / "adapters.safetensors")
    quality = storage.load_json(inputs["space"] / "quality.json")
    results = storage.load_json(inputs["judge"] / "results.json")
    who = tuple(int(p) for p in inverted["person"])

    draw_population(table, population["identity"], samples, out / "identities.png")
    draw_inversions(table, who, portraits, edits, header["strengths"], out / "inversions.png")
    draw_faces(portraits["w2w"], out / "faces.png")
    draw_samples(table, population["identity"], samples, out / "samples.png")
    for name in evaluate.ATTRIBUTES:
        draw_strips(table, who, edits, name, header["strengths"], out / f"edit_{name}.png")
    draw_scores(results, out)
    draw_space(quality, out)
    write(results, quality, out)


def draw_population(table: FaceTable, identity: Array, samples: Arrays, path: Path) -> None:
    """Training identities: a photograph above an image of their model."""
    count = min(12, len(samples["training_images"]))
    photos = [table.faces.of(int(identity[i]))[0][..., None] for i in range(count)]
    images = [samples["training_images"][i, 0] for i in range(count)]
    rows = [photos, images]
    image_grids.grid(rows, path, row_labels=["photograph", "its model"], title="Training models")


def draw_inversions(
    table: FaceTable,
    who: tuple[int, ...],
    portraits: Arrays,
    edits: Arrays,
    strengths: list[float],
    path: Path,
) -> None:
    """For each person: the photograph, another one, images by each method, two edits."""
    rows = []
    last = len(strengths) - 1
    for i, person in enumerate(who):
        photos = table.faces.of(person)[..., None]
        rows.append(
            [
                photos[apply.INVERTED][0],
                photos[apply.REFERENCES][0],
                portraits["w2w"][i, 0],
                portraits["w2w"][i, 1],
                portraits["single"][i, 0],
                portraits["single"][i, 1],
                portraits["multi"][i, 0],
                edits["edit.smiling"][i, last, 0],
                edits["edit.age"][i, last, 0],
            ]
        )
    columns = ["inverted photograph", "another", "w2w", "w2w", "LoRA, 1 photo", "LoRA, 1 photo"]
    columns += ["LoRA, 5 photos", "w2w + smile", "w2w + age"]
    image_grids.grid(
        rows,
        path,
        row_labels=[f"person {p}" for p in who],
        column_labels=columns,
        title="Inversion of people outside the space",
        separators=(2, 4, 6, 7),
    )


def draw_faces(images: Array, path: Path) -> None:
    """Two images of each inverted person's model, and no photographs: free to publish."""
    image_grids.grid([list(images[:, 0]), list(images[:, 1])], path, scale=2)


def draw_samples(table: FaceTable, identity: Array, samples: Arrays, path: Path) -> None:
    """Sampled models, two images each, above the photograph of the nearest training identity."""
    count = min(12, len(samples["images"]))
    first = [samples["images"][i, 0] for i in range(count)]
    second = [samples["images"][i, -1] for i in range(count)]
    near = [
        table.faces.of(int(identity[samples["nearest"][i]]))[0][..., None] for i in range(count)
    ]
    image_grids.grid(
        [first, second, near],
        path,
        row_labels=["sampled model", "same model", "nearest in space"],
        title="Models sampled from the space",
    )


def draw_strips(
    table: FaceTable,
    who: tuple[int, ...],
    edits: Arrays,
    name: str,
    strengths: list[float],
    path: Path,
) -> None:
    """One attribute at rising strength, for up to six people."""
    count = min(6, len(who))
    rows = [
        [table.faces.of(who[i])[0][..., None], *edits[f"edit.{name}"][i, :, 0]]
        for i in range(count)
    ]
    image_grids.grid(
        rows,
        path,
        row_labels=[f"person {p}" for p in who[:count]],
        column_labels=["photograph", *(f"{s:+g}" for s in strengths)],
        title=f"Edit: {TITLES[name]} (strength 1 = largest training projection)",
        separators=(1,),
    )


def draw_scores(results: dict, out: Path) -> None:
    """Identity by method and by number of models; edits against prompting."""
    identity = results["identity"]
    names = [m for m in METHODS if m in identity and m != "base"]
    figures.bars(
        out / "identity.png",
        [METHODS[m] for m in names],
        [identity[m]["mean"] for m in names],
        [identity[m]["standard_error"] for m in names],
        ylabel="ID score (cosine)",
        title="Identity on held-out photographs",
        hlines={"base model": identity["base"]["mean"]},
    )
    counts = sorted(int(m.split("-")[1]) for m in identity if m.startswith("w2w-"))
    points = [(n, identity[f"w2w-{n}"]) for n in counts]
    points.append((results["models"], identity["w2w"]))
    x = [n for n, _ in points]
    y = np.array([v["mean"] for _, v in points])
    error = np.array([v["standard_error"] for _, v in points])
    figures.curves(
        out / "identity_by_models.png",
        {"w2w, one photograph": (x, y, y - error, y + error)},
        xlabel="models in the space",
        ylabel="ID score (cosine)",
        title="Inversion against the size of the population",
        logx=True,
        hlines={
            "LoRA, 1 photo": identity["single"]["mean"],
            "LoRA, 5 photos": identity["multi"]["mean"],
            "base": identity["base"]["mean"],
        },
    )
    for name in evaluate.ATTRIBUTES:
        row = results["edits"][name]
        figures.curves(
            out / f"effect_{name}.png",
            {UNITS[name]: (row["strengths"], row["attribute"][name])},
            xlabel="strength",
            ylabel=UNITS[name],
            title=f"Independent classifier under the edit: {TITLES[name]}",
            hlines={f'prompt "{w}"': p["attribute"] for w, p in row["prompts"].items()},
        )


def draw_space(quality: dict, out: Path) -> None:
    """Explained variance, and reconstruction of models the space was not built from."""
    explained = np.cumsum(quality["explained"])
    figures.curves(
        out / "spectrum.png",
        {"cumulative": (np.arange(1, len(explained) + 1), explained)},
        xlabel="components",
        ylabel="explained variance",
        title="Spectrum of the population",
    )
    error = np.array(quality["heldout_error"])
    figures.curves(
        out / "heldout.png",
        {f"{k} components": (quality["counts"], error[:, j]) for j, k in enumerate(quality["ks"])},
        xlabel="models in the space",
        ylabel="relative squared error",
        title="Reconstruction of held-out models",
        logx=True,
    )


def write(results: dict, quality: dict, out: Path) -> None:
    """``report.html``."""
    page = Report(
        "weights2weights on real faces",
        f"{results['models']} customised models; {len(results['people'])} people inverted who are "
        "in neither the base model's nor the space's training data.",
    )
    page.section("Models of training identities").figure(
        out / "identities.png", "A photograph of each identity, and an image its model draws."
    )
    page.section(
        "Inversion",
        "Identity is the cosine of centred face descriptors to held-out photographs of the person. "
        "Real photographs of the person are the ceiling, the base model is chance. Errors are "
        "standard errors over people.",
    )
    page.figure(out / "inversions.png", "Photograph, images of each method, edits.")
    identity = results["identity"]
    rows = [
        [
            METHODS.get(name, name),
            f"{v['mean']:.3f} ± {v['standard_error']:.3f}",
            v["rank1"],
            v["lpips"],
            v.get("diversity", "–"),
        ]
        for name, v in sorted(identity.items(), key=lambda item: -item[1]["mean"])
    ]
    columns = ["method", "ID score", "rank-1 (1 reference)", "LPIPS to other photographs"]
    page.table([*columns, "diversity within a model"], rows)
    page.figure(out / "identity.png").figure(out / "identity_by_models.png")
    page.section(
        "Editing",
        "Strength 1 is the largest projection of a training model on the direction. Identity and "
        "LPIPS compare edited with unedited images of the same noise.",
    )
    for name in evaluate.ATTRIBUTES:
        row = results["edits"][name]
        page.figure(out / f"edit_{name}.png").figure(out / f"effect_{name}.png")
        table = [
            [f"edit {s:+g}", row["attribute"][name][i], row["identity"][i], row["lpips"][i], "–"]
            for i, s in enumerate(row["strengths"])
        ]
        for word, p in row["prompts"].items():
            matched = "–" if p["matched"] is None else p["matched"]
            table.append([f'prompt "{word}"', p["attribute"], p["identity"], p["lpips"], matched])
        page.table(
            ["", UNITS[name], "identity kept", "LPIPS", "identity of the edit of equal effect"],
            table,
        )
    page.section("Sampling").figure(out / "samples.png")
    novelty = results["samples"]
    page.table(
        ["cosine of", "mean", "5 %", "median", "95 %"],
        [
            [f"{kind}: {name.replace('_', ' ')}", *(v[k] for k in ("mean", "p5", "median", "p95"))]
            for kind in ("space", "face")
            for name, v in novelty[kind].items()
        ],
    )
    names = ("kid", "frechet", "frechet_floor", "precision", "recall", "density", "coverage")
    titles = [name.replace("_", " ") for name in names]
    page.table(
        ["recogniser's features against training photographs", *titles],
        [
            [kind.replace("_", " "), *(values[n] for n in names)]
            for kind, values in novelty["distribution"].items()
        ],
    )
    page.section("The space").figure(out / "spectrum.png").figure(out / "heldout.png")
    page.write(out / "report.html")
    del quality
