"""Synthetic subjects: a template's cortex with smooth individual variation and planted atrophy.

Thickness of scan i at vertex v, mm:

    mean(v) (1 + global_i + smooth_i(v)) (1 - effect severity_i profile(v)) + noise

Of a subcortical body the distance from its medial curve stands for thickness, so an effect on
"hippocampus" makes it thinner. `profile` is 1 inside a region and falls off smoothly. What makes a
patient is one of three plants: "additive" (region A is thin in all patients), "either" (A in half
of them, B in the others) and "xor" (patients have exactly one thin region, controls have both or
none, so that neither region says anything alone and no linear classifier can be better than
chance).
"""

import dataclasses

import numpy as np
import scipy.sparse as sp

from meshgcn.laplacian import adjacency
from meshgcn.templates import Template

__all__ = [
    "PLANTS",
    "Cohort",
    "CohortConfig",
    "features",
    "make",
    "profile",
    "smoother",
    "variation",
]

PLANTS = ("additive", "either", "xor")


@dataclasses.dataclass(frozen=True)
class CohortConfig:
    """How subjects differ.

    Attributes:
      subjects: number of people, half of them patients.
      repeated: share of people with a second scan (the same cortex, new noise).
      smooth_sd: SD over people of the smooth variation, as a share of thickness.
      global_sd: SD of a factor common to all vertices.
      noise: SD of independent noise, mm.
      scales: rounds of neighbour averaging of the components of the smooth variation.
      severity_sd: SD of the patients' severity, whose mean is 1.
      region_a, region_b: names of the regions.
      falloff: rounds of averaging of the profile's border.
    """

    subjects: int = 400
    repeated: float = 0.25
    smooth_sd: float = 0.12
    global_sd: float = 0.05
    noise: float = 0.1
    scales: tuple[int, ...] = (2, 8, 32)
    severity_sd: float = 0.25
    region_a: tuple[str, ...] = ("entorhinal", "parahippocampal", "fusiform", "inferiortemporal")
    region_b: tuple[str, ...] = ("precuneus", "isthmuscingulate", "inferiorparietal")
    falloff: int = 1


@dataclasses.dataclass(frozen=True)
class Cohort:
    """Scans with labels.

    Attributes:
      thickness: float32 `[scans, vertices]`, mm.
      subject: int32 `[scans]`.
      label: int32 `[scans]`, 1 for patients.
      thin: bool `[scans, 2]`, whether region A and B are thin.
      truth: bool `[vertices]`, where the plant is.
    """

    thickness: np.ndarray
    subject: np.ndarray
    label: np.ndarray
    thin: np.ndarray
    truth: np.ndarray


def smoother(template: Template) -> sp.csr_array:
    """Averages each vertex with the mean of its neighbours, half and half, `[vertices] * 2`."""
    edges = adjacency(template.mesh.edges(), len(template.mesh))
    degrees = np.maximum(np.asarray(edges.sum(axis=1)).ravel(), 1.0)
    identity = sp.eye_array(len(degrees))
    return sp.csr_array(0.5 * (identity + sp.diags_array(1.0 / degrees) @ edges))


def variation(template: Template, config: CohortConfig, seed: int) -> np.ndarray:
    """Global and smooth relative deviations of each person, float32 `[subjects, vertices]`.

    The smooth part is a sum of fields of equal variance, one for each scale.
    """
    random = np.random.default_rng([seed, 1])
    average = smoother(template).astype(np.float32)
    count = len(template.mesh)
    total = np.zeros((count, config.subjects), np.float32)
    for rounds in config.scales:
        field = random.standard_normal((count, config.subjects), np.float32)
        for _ in range(rounds):
            field = average @ field
        total += field / field.std()
    total *= config.smooth_sd / np.sqrt(len(config.scales))
    total += config.global_sd * random.standard_normal(config.subjects, np.float32)
    return np.ascontiguousarray(total.T)


def profile(template: Template, names: tuple[str, ...], falloff: int) -> np.ndarray:
    """Share of the effect at each vertex, float64 `[vertices]`: 1 inside, smooth at the border."""
    inside = template.region(*names).astype(np.float64)
    average = smoother(template)
    for _ in range(falloff):
        inside = average @ inside
    return inside * (template.labels >= 0)


def make(
    template: Template,
    config: CohortConfig,
    plant: str,
    effect: float,
    seed: int,
    deviations: np.ndarray | None = None,
) -> Cohort:
    """One cohort.

    Args:
      template: shared topology and mean thickness.
      config: variation and regions.
      plant: one of `PLANTS`.
      effect: thinning at the centre of a region in a patient of severity 1, as a share.
      seed: of people, noise and who is a patient.
      deviations: of `variation` with the same seed, to use them for several plants.

    Raises:
      ValueError: another plant, or an effect outside [0, 1).
    """
    if plant not in PLANTS:
        raise ValueError(f"plant {plant!r}: {', '.join(PLANTS)}")
    if not 0 <= effect < 1:
        raise ValueError(f"effect {effect} is outside [0, 1)")
    if deviations is None:
        deviations = variation(template, config, seed)
    random = np.random.default_rng([seed, 2])
    count = config.subjects
    order = random.permutation(count)
    label = np.zeros(count, np.int32)
    label[order[: count // 2]] = 1
    second = np.zeros(count, bool)  # balanced within patients and within controls
    second[order[: count // 2 : 2]] = True
    second[order[count // 2 :: 2]] = True
    patient = label == 1
    if plant == "additive":
        thin = np.stack([patient, np.zeros(count, bool)], axis=1)
    elif plant == "either":
        thin = np.stack([patient & ~second, patient & second], axis=1)
    else:
        thin = np.stack([np.where(patient, ~second, second), second], axis=1)
    names = (config.region_a, config.region_b)
    profiles = np.stack([profile(template, name, config.falloff) for name in names])
    severity = np.clip(1 + config.severity_sd * random.standard_normal(count), 0, None)
    loss = np.clip((thin * (effect * severity)[:, None]) @ profiles, 0, 0.95)
    cortex = template.thickness * (1 + deviations) * (1 - loss)
    repeated = np.sort(random.permutation(count)[: round(config.repeated * count)])
    who = np.concatenate([np.arange(count), repeated])
    noise = config.noise * random.standard_normal((len(who), len(template.mesh)))
    thickness = np.maximum(cortex[who] + noise * (template.thickness > 0), 0.0)
    used = (0, 1) if plant != "additive" else (0,)
    truth = profiles[list(used)].max(axis=0) >= 0.5
    return Cohort(thickness.astype(np.float32), who.astype(np.int32), label[who], thin[who], truth)


def features(template: Template, thickness: np.ndarray, kind: str) -> np.ndarray:
    """Features of scans, float32 `[scans, vertices, features]`.

    Args:
      template: the surfaces along which thickness is laid.
      thickness: `[scans, vertices]`, mm.
      kind: "thickness" (1), "xyz" (white and pial coordinates, 6; of bodies the medial curve and
        the surface) or "xyz+thickness" (7).

    Raises:
      ValueError: another kind.
    """
    parts = []
    if kind not in ("thickness", "xyz", "xyz+thickness"):
        raise ValueError(f"features {kind!r}: thickness, xyz or xyz+thickness")
    if kind != "thickness":
        white = template.inner
        outward = template.surfaces["pial"] - white
        length = np.linalg.norm(outward, axis=1, keepdims=True)
        unit = outward / np.where(length > 0, length, 1.0)
        parts.append(np.broadcast_to(white, (len(thickness), *white.shape)))
        parts.append(white + thickness[..., None] * unit)
    if kind != "xyz":
        parts.append(thickness[..., None])
    return np.concatenate(parts, axis=-1).astype(np.float32)
