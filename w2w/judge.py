"""Stage that scores a run with the independent networks: ``results.json``."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from common import storage
from common.nets import lpips
from w2w import apply, context, data, directions, evaluate
from w2w.context import FaceTable


def judge(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: identity, edits and samples, each beside its baselines."""
    table = context.load_faces(inputs["faces"])
    inverted, _ = storage.load_arrays(inputs["invert"] / "inverted.safetensors")
    portraits, _ = storage.load_arrays(inputs["portraits"] / "portraits.safetensors")
    edits, header = storage.load_arrays(inputs["edit"] / "edits.safetensors")
    samples, _ = storage.load_arrays(inputs["sample"] / "samples.safetensors")
    population, _ = storage.load_arrays(inputs["populate"] / "adapters.safetensors")
    classes, _ = storage.load_arrays(inputs["base"] / "class_images.safetensors")
    who = tuple(int(p) for p in inverted["person"])
    people = apply.gallery(table, who)
    results = {
        "people": list(who),
        "models": len(population["vectors"]),
        "identity": identity(table, who, people, portraits),
        "edits": edit_scores(edits, header["strengths"], table.centre),
        "samples": novelty(
            table, population["identity"], samples, classes["images"][..., None]
        ),
    }
    storage.save_json(out / "results.json", results)


def identity(
    table: FaceTable,
    who: tuple[int, ...],
    people: evaluate.Gallery,
    portraits: dict[str, np.ndarray],
) -> dict:
    """Identity score, rank-1 accuracy and LPIPS of each method, with ceiling and chance.

    LPIPS is the mean over pairs of an image and a held-out photograph of the person.
    """
    rows = dict(portraits)
    rows["real"] = apply.photographs(table, who, apply.TRAINED)[..., None]
    rows["photograph"] = apply.photographs(table, who, apply.INVERTED)[..., None]
    found: dict[str, Any] = {}
    references = apply.photographs(table, who, apply.REFERENCES)[..., None]
    perceptual = lpips.load_params("alex")
    for name, images in rows.items():
        described = people.describe(images)
        scores = people.id_scores(described)
        found[name] = {
            **evaluate.summary(scores),
            "rank1": people.rank1(described),
            "person": scores.mean(axis=1).tolist(),
            "lpips": _pairwise(perceptual, images, references),
        }
        if name not in ("real", "photograph"):
            # How varied a model's images are: 0 when it draws one picture whatever the noise.
            spread = [evaluate.diversity(person) for person in described]
            found[name]["diversity"] = float(np.mean(spread))
    return found


def edit_scores(
    edits: dict[str, np.ndarray], strengths: list[float], centre: np.ndarray
) -> dict[str, Any]:
    """What each edit does to its attribute, the others, the identity and the picture.

    Identity and LPIPS compare an edited image with the unedited one of the same noise. ``matched``
    is the identity of the edit at the strength that moves the attribute as far as the prompt does
    (None if no strength does).
    """
    zero = list(strengths).index(0.0)
    perceptual = lpips.load_params("alex")
    found: dict[str, Any] = {}
    for name in evaluate.ATTRIBUTES:
        images = edits[f"edit.{name}"]
        before = images[:, zero]
        descriptors = evaluate.unit(evaluate.describe(images), centre)
        same = np.einsum("psnd,pnd->psn", descriptors, descriptors[:, zero])
        values = {k: v.mean(axis=2) for k, v in evaluate.attribute_values(images).items()}
        row = {
            "strengths": list(strengths),
            "attribute": {k: v.mean(axis=0).tolist() for k, v in values.items()},
            "monotone": evaluate.monotone_share(values[name]),
            "mean_monotone": evaluate.monotone_share(values[name].mean(axis=0)),
            "identity": same.mean(axis=(0, 2)).tolist(),
            "lpips": [
                _distance(perceptual, images[:, s], before) for s in range(len(strengths))
            ],
            "prompts": {},
        }
        curve = values[name].mean(axis=0)
        for key in (k for k in edits if k.startswith(f"prompt.{name}.")):
            prompted = edits[key]
            after = evaluate.unit(evaluate.describe(prompted), centre)
            value = float(evaluate.attribute_values(prompted)[name].mean())
            row["prompts"][key.split(".", 2)[2]] = {
                "attribute": value,
                "identity": float(np.mean(np.sum(after * descriptors[:, zero], axis=-1))),
                "lpips": _distance(perceptual, prompted, before),
                "matched": _matched(curve, row["identity"], value, zero),
            }
        found[name] = row
    vectors = np.stack([edits[f"direction.{name}"] for name in evaluate.ATTRIBUTES])
    found["entanglement"] = directions.entanglement(vectors)
    return found


def _matched(curve: np.ndarray, identity: list[float], value: float, zero: int) -> float | None:
    """Identity where the edit's curve, going out from no edit, first reaches ``value``."""
    sign = 1 if value >= curve[zero] else -1
    upwards = sign * (curve[-1] - curve[0]) > 0
    order = list(range(zero, len(curve)) if upwards else range(zero, -1, -1))
    for a, b in zip(order, order[1:], strict=False):
        if sign * (curve[b] - value) >= 0:
            share = (value - curve[a]) / (curve[b] - curve[a])
            return float(identity[a] + share * (identity[b] - identity[a]))
    return None


def _pairwise(params: dict, images: np.ndarray, references: np.ndarray) -> float:
    """Mean LPIPS of all pairs of ``images [P, n, ...]`` and ``references [P, m, ...]``."""
    shape = (*images.shape[:2], *references.shape[1:])
    first = np.broadcast_to(images[:, :, None], shape)
    return _distance(params, first, np.broadcast_to(references[:, None], shape))


def _distance(params: dict, x: np.ndarray, y: np.ndarray) -> float:
    """Mean LPIPS of image pairs uint8 ``[..., size, size, 1]``."""
    x, y = (a.reshape(-1, *a.shape[-3:]) for a in (x, y))
    found = np.empty(len(x))
    for start in range(0, len(x), 16):
        # The last rows again fill up the last block: one compilation.
        rows = np.minimum(np.arange(start, start + 16), len(x) - 1)
        pair = [jnp.asarray(a[rows].astype(np.float32) / 255) for a in (x, y)]
        found[rows] = lpips.lpips(params, *pair)
    return float(found.mean())


def novelty(
    table: FaceTable,
    trained: np.ndarray,
    samples: dict[str, np.ndarray],
    class_images: np.ndarray,
) -> dict:
    """How near sampled models are to training ones, against how near those are to each other.

    ``space``: cosine of coefficients to the nearest training model. ``face``: cosine of face
    descriptors to the nearest training identity, for images of sampled models, for photographs of
    training identities (to the nearest *other* one), and for images of training models (to the
    nearest other identity, and to their own). ``distribution``: images of sampled models, of
    training models and of the base model (``class_images [n, size, size, 1]``) against the training
    photographs, in the recogniser's features.
    """
    photos = np.stack([table.descriptors[table.rows(int(i))].mean(axis=0) for i in trained])
    known = evaluate.unit(photos, table.centre)
    among = known @ known.T
    np.fill_diagonal(among, -np.inf)
    drawn = evaluate.unit(evaluate.describe(samples["images"]), table.centre)
    members = evaluate.unit(evaluate.describe(samples["training_images"]), table.centre)
    count = len(members)
    base = evaluate.unit(evaluate.describe(class_images), table.centre)
    everybody = data.training_identities(table.faces.identity)
    real = evaluate.unit(table.descriptors[everybody], table.centre)
    near = members @ known.T
    own = near[np.arange(count), :, np.arange(count)]
    near[np.arange(count), :, np.arange(count)] = -np.inf
    return {
        "space": {
            "sample_to_nearest": _spread(samples["nearest_cosine"]),
            "training_to_nearest_other": _spread(samples["training_cosine"]),
        },
        "face": {
            "sample_to_nearest": _spread((drawn @ known.T).max(axis=-1)),
            "photograph_to_nearest_other": _spread(among.max(axis=-1)),
            "training_model_to_nearest_other": _spread(near.max(axis=-1)),
            "training_model_to_own_photograph": _spread(own),
        },
        "distribution": {
            "samples": evaluate.distances(real, drawn.reshape(-1, drawn.shape[-1])),
            "training_models": evaluate.distances(real, members.reshape(-1, drawn.shape[-1])),
            "base": evaluate.distances(real, base),
        },
        "diversity": {
            "samples": evaluate.diversity(drawn[:, 0]),
            "training_models": evaluate.diversity(members[:, 0]),
            "photographs": float(1 - (known @ known.T)[np.triu_indices(len(known), 1)].mean()),
        },
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    low, middle, high = np.percentile(values, [5, 50, 95])
    return {
        "mean": float(np.mean(values)),
        "p5": float(low),
        "median": float(middle),
        "p95": float(high),
    }
