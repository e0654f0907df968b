"""Stage that provides the images of a run: phantoms, or a user's own studies."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from common import storage
from medical.data import phantom, studies
from medical.data.studies import PARTS


def draw(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: the images of the three parts, one file each.

    Each has ``images`` ``[n, size, size, 1]`` in [-1, 1], ``labels`` int ``[n]`` (1: positive),
    ``patients`` ``[n]`` (whose they are, numbers) and ``masks`` bool ``[n, size, size]``: of
    phantoms the lesion, of a user's images empty, since nothing is known. Phantoms have their
    ``healthy`` twins, too. ``config.labels`` "shuffled" mixes the labels of training and
    validation.
    """
    del inputs
    random = np.random.default_rng(config.seed)
    parts = own(config, random) if config.data.table else phantoms(config, random)
    for name, arrays in parts.items():
        if config.labels == "shuffled" and name != "test":
            arrays["labels"] = random.permutation(arrays["labels"])
        elif config.labels not in ("true", "shuffled"):
            raise ValueError(f"labels {config.labels!r}; known: true, shuffled")
        storage.save_arrays(out / f"{name}.safetensors", arrays)


def phantoms(config: ConfigDict, random: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """The phantoms of ``config.phantom``, by part."""
    drawn = dict(config.phantom)
    drawn["amplitude"] = tuple(drawn["amplitude"])
    made = phantom.make(phantom.PhantomConfig(**drawn), dict(config.counts), random)
    return {name: part.arrays() for name, part in made.items()}


def own(config: ConfigDict, random: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """The studies of the table ``config.data.table``, by part; every patient is in one part.

    Raises:
      FileNotFoundError: there is no such table.
      StudyError: see `medical.data.studies.read`; not two classes; a part with one class only.
      PatientLeakError: the table's own parts share a patient.
    """
    c = config.data
    found = studies.read(
        c.table, config.net.size, file=c.file, patient=c.patient, label=c.label, part=c.part,
        classes=tuple(c.classes) or None, contrast=c.contrast)
    if len(found.classes) != 2:
        raise studies.StudyError(
            f"{c.table}: column {c.label!r} has the classes {', '.join(found.classes)}; two are "
            "needed, negative first: name them with --config.data.classes")
    for file, reason in found.bad:
        print(f"left out {file}: {reason}")
    if found.parts is None:
        split = studies.split(found.patients, dict(zip(PARTS, c.fractions, strict=True)), random)
    else:
        split = {name: np.flatnonzero(found.parts == name) for name in PARTS}
    studies.check_disjoint({name: found.patients[rows] for name, rows in split.items()})
    parts = {}
    for name, rows in split.items():
        labels = found.labels[rows]
        if len(np.unique(labels)) < 2:
            seen = f"all {found.classes[labels[0]]!r}" if len(labels) else "none"
            raise studies.StudyError(
                f"{c.table}: the {len(rows)} images of part {name!r} are {seen}: images of both "
                "classes are needed in each")
        parts[name] = {"images": found.images[rows], "labels": labels,
                       "patients": np.unique(found.patients, return_inverse=True)[1][rows],
                       "masks": np.zeros((len(rows), *found.images.shape[1:3]), bool)}
    return parts
