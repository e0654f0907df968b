"""Phantoms: images composed of real anatomy, with a lesion whose place is known.

*Chest*: the real outlines of a patient's lungs, filled with air and surrounded by tissue; the fine
detail (ribs, vessels) is that of one real radiograph, moved and mirrored at random. *Brain*: slices
of one real head, warped a little. Half of the images get a lesion inside lung or brain whose size
is drawn from real boxed findings. Each image comes with the same image before the lesion was put
in.

Hard phantoms have fainter lesions, more noise, and distractors in both classes: a bright wire and a
bright square, which are not lesions. A shortcut marks a corner of the positives.
"""

import dataclasses

import numpy as np
from PIL import Image
from scipy import ndimage

from medical.data import pieces, studies

BLOCK = 4
"""Neighbouring slices of the brain, 1 mm apart, that stay together."""


@dataclasses.dataclass(frozen=True)
class PhantomConfig:
    """What is drawn.

    Attributes:
      source: "chest" or "brain".
      size: side in pixels.
      amplitude: range of the lesion's brightness (the grey scale is 0 to 1).
      smallest: least diameter of a lesion in pixels; smaller ones are drawn at this size.
      noise: deviation of the pixel noise.
      distractors: whether wires and squares are drawn, in both classes alike.
      shortcut: share of the positives that carry the corner mark (and none of the negatives).
      detail: gain of the real radiograph's detail.
    """

    source: str = "chest"
    size: int = 32
    amplitude: tuple[float, float] = (0.3, 0.5)
    smallest: float = 4.0
    noise: float = 0.02
    distractors: bool = False
    shortcut: float = 0.0
    detail: float = 0.5


@dataclasses.dataclass(frozen=True)
class Phantoms:
    """Images with their truth.

    Attributes:
      images: float32 ``[n, size, size, 1]`` in [-1, 1].
      healthy: the same without lesion and without corner mark.
      masks: bool ``[n, size, size]``: the lesion (at least half of its amplitude).
      labels: int32 ``[n]``, 1 with a lesion.
      patients: int32 ``[n]``: whose anatomy.
    """

    images: np.ndarray
    healthy: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    patients: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def make(
    config: PhantomConfig, counts: dict[str, int], rng: np.random.Generator
) -> dict[str, Phantoms]:
    """Phantoms of each part (name to number of images); no patient is in two parts.

    The patients are shared out by the counts; of the brain, whose slices are all of one person, a
    "patient" is a block of `BLOCK` slices.
    """
    anatomy = _anatomy(config)
    total = sum(counts.values())
    shares = {name: count / total for name, count in counts.items()}
    rows = studies.split(anatomy.patients, shares, rng)
    parts = {name: _part(config, anatomy, rows[name], rng.permutation(np.arange(count) % 2), rng)
             for name, count in counts.items()}
    studies.check_disjoint({name: np.unique(part.patients) for name, part in parts.items()})
    return parts


def with_lesions(
    config: PhantomConfig, lesions: dict[str, np.ndarray], rng: np.random.Generator
) -> dict[str, Phantoms]:
    """As `make`, with a given number of lesions in each image (name to int ``[n]``).

    Lesions may touch. The label is 1 where there is at least one.
    """
    anatomy = _anatomy(config)
    total = sum(map(len, lesions.values()))
    shares = {name: len(wanted) / total for name, wanted in lesions.items()}
    rows = studies.split(anatomy.patients, shares, rng)
    parts = {name: _part(config, anatomy, rows[name], wanted, rng)
             for name, wanted in lesions.items()}
    studies.check_disjoint({name: np.unique(part.patients) for name, part in parts.items()})
    return parts


def corner(size: int) -> np.ndarray:
    """Where the corner mark is, bool ``[size, size]``."""
    mask = np.zeros((size, size), bool)
    mask[1 : 1 + max(size // 10, 2), 1 : 1 + max(size // 10, 2)] = True
    return mask


@dataclasses.dataclass(frozen=True)
class _Anatomy:
    """Pictures ``[n, side, side]`` (None: drawn from the regions), regions that can hold a lesion,
    and whose they are ``[n]`` (numbers)."""

    pictures: np.ndarray | None
    regions: np.ndarray
    patients: np.ndarray


def _anatomy(config: PhantomConfig) -> _Anatomy:
    if config.source == "chest":
        found = pieces.lungs()
        patients = np.unique(found.patients, return_inverse=True)[1]
        return _Anatomy(None, found.masks.astype(np.float32) / 255, patients)
    if config.source == "brain":
        image, inside = pieces.brain()
        chosen = range(64, 136)  # through the hemispheres, above the cerebellum's base
        square = [studies.square(image[i], 96) for i in chosen]
        where = [studies.square(inside[i].astype(np.float32), 96) for i in chosen]
        return _Anatomy(np.stack(square), np.stack(where), np.arange(len(square)) // BLOCK)
    raise ValueError(f"unknown source {config.source!r}; known: chest, brain")


def _part(
    config: PhantomConfig, anatomy: _Anatomy, rows: np.ndarray, lesions: np.ndarray,
    rng: np.random.Generator,
) -> Phantoms:
    side, count = config.size, len(lesions)
    images = np.empty((count, side, side), np.float32)
    healthy = np.empty_like(images)
    masks = np.zeros((count, side, side), bool)
    labels = np.minimum(lesions, 1).astype(np.int32)
    chosen = rng.choice(rows, count)
    for i, row in enumerate(chosen):
        picture, region = _draw(config, anatomy, int(row), rng)
        if config.distractors:
            picture = picture + _distractors(side, rng)
        noise = config.noise * rng.normal(size=picture.shape)
        healthy[i] = picture + noise
        images[i] = healthy[i]
        for _ in range(lesions[i]):
            lesion, where = _lesion(config, region, rng)
            images[i] += lesion
            masks[i] |= where
        if labels[i] and rng.random() < config.shortcut:
            images[i][corner(side)] = 1.0
    def scaled(x: np.ndarray) -> np.ndarray:
        return (np.clip(x, 0, 1) * 2 - 1)[..., None]

    patients = anatomy.patients[chosen].astype(np.int32)
    return Phantoms(scaled(images), scaled(healthy), masks, labels, patients)


def _draw(
    config: PhantomConfig, anatomy: _Anatomy, row: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A healthy picture and its region, both ``[size, size]`` in [0, 1]."""
    side = config.size
    turn, zoom = rng.uniform(-5, 5), rng.uniform(0.94, 1.06)
    shift = rng.uniform(-0.03, 0.03, 2)
    region = _moved(anatomy.regions[row], turn, zoom, shift, side)
    if anatomy.pictures is not None:
        picture = _moved(anatomy.pictures[row], turn, zoom, shift, side)
        if rng.random() < 0.5:
            picture, region = picture[:, ::-1], region[:, ::-1]
        gain, gamma = rng.uniform(0.6, 0.75), rng.uniform(0.9, 1.15)
        return gain * np.clip(picture, 0, 1) ** gamma, region
    tissue, air = rng.uniform(0.6, 0.72), rng.uniform(0.14, 0.26)
    slope = rng.uniform(-0.08, 0.08) * np.linspace(-1, 1, side)[:, None]
    picture = tissue * (1 - region) + air * region + slope
    return picture + config.detail * _detail(side, rng), region


def _moved(
    image: np.ndarray, turn: float, zoom: float, shift: np.ndarray, size: int
) -> np.ndarray:
    """A square image turned (degrees), zoomed, shifted (fraction of the side) and scaled."""
    side = image.shape[0]
    middle = side / 2
    centre = (middle + shift[0] * side, middle + shift[1] * side)
    moved = Image.fromarray(image).rotate(turn, Image.Resampling.BILINEAR, center=centre)
    half = middle / zoom
    # The frame may reach over the edge by a pixel or two; `resize` wants it inside.
    box = (max(centre[1] - half, 0), max(centre[0] - half, 0),
           min(centre[1] + half, side), min(centre[0] + half, side))
    return np.asarray(moved.resize((size, size), Image.Resampling.BOX, box=box), np.float32)


def _detail(size: int, rng: np.random.Generator) -> np.ndarray:
    """Fine structure of the real radiograph: a random window less its local mean."""
    source = pieces.radiograph()
    window = round(len(source) * rng.uniform(0.65, 0.85))
    top, left = rng.integers(0, len(source) - window, 2)
    cut = source[top : top + window, left : left + window]
    if rng.random() < 0.5:
        cut = cut[:, ::-1]
    small = np.asarray(
        Image.fromarray(np.ascontiguousarray(cut)).resize((size, size), Image.Resampling.BOX),
        np.float32,
    )
    return small - ndimage.gaussian_filter(small, size / 10, mode="nearest")


def _lesion(
    config: PhantomConfig, region: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A smooth bright ellipse inside the region, and where it has half its brightness."""
    side = config.size
    # The frame is closer than the whole X-ray: lungs fill 1 / (1 + 2 MARGIN) of it, and about 0.7
    # of an X-ray's side.
    closer = 1 / (0.7 * (1 + 2 * pieces.MARGIN))
    diameter = rng.choice(pieces.finding_sizes()) * closer * side
    diameter = float(np.clip(diameter, config.smallest, side / 4))
    depth = ndimage.distance_transform_edt(region > 0.5)
    inside = depth > min(diameter / 2, depth.max() * 0.7)
    y, x = rng.choice(np.argwhere(inside)) + rng.uniform(-0.5, 0.5, 2)
    angle, ratio = rng.uniform(0, np.pi), rng.uniform(0.75, 1.0)
    dy, dx = np.mgrid[:side, :side] - np.array([y, x])[:, None, None]
    along = dx * np.cos(angle) + dy * np.sin(angle)
    across = (dy * np.cos(angle) - dx * np.sin(angle)) / ratio
    # 1 inside, falling over the last third of the radius: a half at the radius itself.
    distance = np.sqrt(along**2 + across**2) / (diameter / 2)
    profile = 1 / (1 + np.exp((distance - 1) * 9))
    amplitude = rng.uniform(*config.amplitude)
    return (amplitude * profile).astype(np.float32), profile >= 0.5


def _distractors(size: int, rng: np.random.Generator) -> np.ndarray:
    """A wire across the picture and a small square somewhere, each in half of the pictures."""
    out = np.zeros((size, size), np.float32)
    if rng.random() < 0.5:
        y, slope = rng.uniform(0, size), rng.uniform(-1, 1)
        columns = np.arange(size)
        rows = np.round(y + slope * (columns - size / 2)).astype(int)
        seen = (rows >= 0) & (rows < size)
        out[rows[seen], columns[seen]] = 0.35
    if rng.random() < 0.5:
        top, left = rng.integers(0, size - 3, 2)
        out[top : top + 3, left : left + 3] = 0.35
    return out
