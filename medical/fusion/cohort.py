"""Stage that provides the patients: real clinical rows with phantoms, or a user's own table.

Each real patient of SUPPORT2 (`medical.data.support`) or of the breast cancer table
(`medical.data.breast_cancer`) is given a chest phantom whose number of opacities is drawn from the
law of the patient's level. Variables and outcome are real; that image and variables belong together
is made up: given the level they are independent.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from common import storage
from medical.data import breast_cancer, phantom, studies, support, variables
from medical.fusion import missing, table

Arrays = dict[str, np.ndarray]
PARTS = table.PARTS
SOURCES = {"support2": "SUPPORT2", "breast_cancer": "Wisconsin's table of breast tumours"}
"""Tables of real patients that are given phantoms, and their names in a report."""


def draw(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: one file for each part, and ``cohort.json``.

    Each file has ``images`` ``[n, size, size, 1]`` in [-1, 1], ``clinical`` ``[n, columns]`` (see
    `variables`), ``labels`` ``[n]``, ``has_image`` and ``has_clinical`` ``[n]``: what a patient is
    taken to have, ``complete`` ``[n]``: whether both are really there (always, where absence is
    made up), and ``patients`` ``[n]``: whose they are (numbers). Of phantoms there are also
    ``masks`` of the opacities, and ``pretrain.safetensors``.
    """
    del inputs
    random = np.random.default_rng(config.seed)
    if config.data.table:
        parts, columns, bad = own(config, random)
    else:
        (parts, columns), bad = made(config, random), ()
    has = parts["train"]["has_clinical"]
    encoder = variables.fit({name: values[has] for name, values in columns["train"].items()})
    for name in PARTS:
        rows = parts[name]
        # What stands for an absent row is decided later, see `missing.fill`.
        rows["clinical"] = encoder.transform(columns[name], config.data.unseen)
        storage.save_arrays(out / f"{name}.safetensors", rows)
    if "pretrain" in parts:
        storage.save_arrays(out / "pretrain.safetensors", parts["pretrain"])
    train = parts["train"]
    absent = {
        kind: missing.association(train["labels"], ~train[f"has_{kind}"], random)._asdict()
        for kind in ("image", "clinical")
    }
    storage.save_json(out / "cohort.json", {
        "classes": list(config.data.classes),
        "counts": {name: np.bincount(parts[name]["labels"],
                                     minlength=len(config.data.classes)).tolist()
                   for name in PARTS},
        "variables": encoder.to_plain(),
        "absence": absent,
        "unreadable": [list(item) for item in bad],
    })


def made(config: ConfigDict, random: np.random.Generator) -> tuple[dict, dict]:
    """Real patients with phantoms: arrays and variables of each part."""
    patients = source(config.data)
    counts = dict(config.counts)
    total = sum(counts.values())
    if total > len(patients.labels):
        raise ValueError(f"config.counts: {total} patients wanted, {config.data.source} has "
                         f"{len(patients.labels)}")
    order = np.split(random.permutation(len(patients.labels))[:total],
                     np.cumsum(list(counts.values()))[:-1])
    rows = dict(zip(counts, order, strict=True))
    c = config.opacities
    if tuple(config.data.classes) != patients.levels:
        raise ValueError(f"config.data.classes: {tuple(config.data.classes)}; the levels of "
                         f"{config.data.source} are {patients.levels}, in this order")
    for what, chosen in (("opacities.share", c.share), ("absent.clinical", config.absent.clinical),
                         ("absent.image", config.absent.image)):
        if len(chosen) != len(patients.levels):
            raise ValueError(f"config.{what}: {len(chosen)} numbers for the "
                             f"{len(patients.levels)} levels of {config.data.source}")
    lesions = {name: random.binomial(c.most, np.array(c.share)[patients.labels[chosen]])
               for name, chosen in rows.items()}
    # The trunk is pretrained on phantoms of yet other lungs: with one opacity or none.
    lesions["pretrain"] = random.permutation(np.arange(config.pretrain.count) % 2)
    phantoms = phantom.with_lesions(_phantom(config), lesions, random)
    parts: dict = {"pretrain": {"images": phantoms["pretrain"].images,
                                "labels": phantoms["pretrain"].labels}}
    columns = {}
    for name, chosen in rows.items():
        labels = patients.labels[chosen]
        parts[name] = {"images": phantoms[name].images, "labels": labels,
                       "masks": phantoms[name].masks, "complete": np.ones(len(labels), bool),
                       "patients": chosen,
                       **absences(labels, config.absent, random)}
        columns[name] = {key: values[chosen] for key, values in patients.columns.items()}
    return parts, columns


def source(config: ConfigDict) -> variables.Patients:
    """The patients of the table ``config.source``, with the variables ``config.names`` ((): all).

    Raises:
      VariableError: the table has no such variable.
    """
    if config.source == "support2":
        found = support.read(tuple(config.cuts))
    elif config.source == "breast_cancer":
        found = breast_cancer.read()
    else:
        raise ValueError(f"config.data.source: {config.source!r}; known: {', '.join(SOURCES)}")
    strange = [name for name in config.names if name not in found.columns]
    if strange:
        raise variables.VariableError(f"no variable {strange[0]!r} in {config.source}; there are "
                                      f"{', '.join(found.columns)}")
    names = tuple(config.names) or tuple(found.columns)
    return found._replace(columns={name: found.columns[name] for name in names})


def absences(labels: np.ndarray, config: ConfigDict, random: np.random.Generator) -> Arrays:
    """Which patients have which modality: ``has_image`` and ``has_clinical``, bool ``[n]``.

    ``config.clinical`` holds the probability to lack the variables for each level, ``config.image``
    to lack the image; nobody lacks both.
    """
    no_clinical = random.random(len(labels)) < np.array(config.clinical)[labels]
    no_image = (random.random(len(labels)) < np.array(config.image)[labels]) & ~no_clinical
    return {"has_image": ~no_image, "has_clinical": ~no_clinical}


def own(config: ConfigDict, random: np.random.Generator) -> tuple[dict, dict, tuple]:
    """The patients of the table ``config.data.table``, by part; each is in one part.

    Raises:
      FileNotFoundError, StudyError: see `table.read`; a level does not occur in a part, or not
        among the test patients with image and variables, on whom networks are compared.
      PatientLeakError: the table's own parts share a patient.
    """
    c = config.data
    found = table.read(
        c.table, config.net.size, tuple(c.classes), file=c.file, patient=c.patient, label=c.label,
        part=c.part, names=tuple(c.names), contrast=c.contrast)
    if found.parts is None:
        shares = dict(zip(PARTS, c.fractions, strict=True))
        rows = studies.split(found.patients, shares, random)
    else:
        rows = {name: np.flatnonzero(found.parts == name) for name in PARTS}
    studies.check_disjoint({name: np.unique(found.patients[chosen])
                            for name, chosen in rows.items()})
    parts, columns = {}, {}
    for name, chosen in rows.items():
        labels = found.labels[chosen]
        complete = (found.image & found.clinical)[chosen]
        groups = {"": labels, " with image and variables": labels[complete]}
        for what, seen in groups.items():
            lacking = sorted(set(range(len(c.classes))) - set(seen.tolist()))
            if lacking and (name == "test" or not what):
                raise studies.StudyError(f"{c.table}: nobody{what} of part {name!r} has level "
                                         f"{c.classes[lacking[0]]!r}")
        parts[name] = {"images": found.images[chosen], "labels": labels, "complete": complete,
                       "has_image": found.image[chosen], "has_clinical": found.clinical[chosen],
                       "patients": np.unique(found.patients, return_inverse=True)[1][chosen]}
        columns[name] = {key: values[chosen] for key, values in found.columns.items()}
    return parts, columns, found.bad


def _phantom(config: ConfigDict) -> phantom.PhantomConfig:
    return phantom.PhantomConfig(size=config.net.size, amplitude=tuple(config.opacities.amplitude),
                                 noise=config.opacities.noise)
