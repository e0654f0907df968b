"""Photographs of people, aligned to one framing, with their split, augmentations and prompts.

Two sources: the Olivetti (AT&T) set, ten photographs of each of 40 people, and 999 photographs of
CelebA, one each; both reach this machine through :mod:`common.registry`. Everything is grey,
square and framed as Olivetti is: eyes at a quarter of the height, half the width apart.

The split is by person and fixed, so that no result depends on a draw: every fourth Olivetti person
is a *test* person (inverted, never trained on), five are *validation* people (hyper-parameters),
and the other 25, with all of CelebA, are *training* people of base model and weight space.
"""

import dataclasses

import numpy as np
from PIL import Image

from common import datasets

OLIVETTI_PEOPLE = 40
TEST_PEOPLE = tuple(p for p in range(OLIVETTI_PEOPLE) if p % 4 == 1)
VALIDATION_PEOPLE = tuple(p for p in range(OLIVETTI_PEOPLE) if p % 8 == 3)
TRAINING_PEOPLE = tuple(
    p for p in range(OLIVETTI_PEOPLE) if p not in TEST_PEOPLE and p not in VALIDATION_PEOPLE
)
FIRST_CELEBA = 1000
"""CelebA photograph ``i`` is identity ``FIRST_CELEBA + i``."""

CELEBA_PHOTOGRAPHS = 999

CELEBA_BOX = (46.4, 89.6, 130.4, 173.6)
"""Crop of an aligned 178 x 218 CelebA photograph that puts the eyes where Olivetti has them."""

RARE_WORD = "sks"
WORDS = (
    RARE_WORD,
    *("photo", "of", "a", "person", "man", "woman", "young", "middle-aged", "old"),
    *("neutral", "smiling", "sad", "angry", "fearful", "disgusted", "surprised"),
)
EXPRESSION_WORDS = ("neutral", "smiling", "sad", "angry", "fearful", "disgusted", "surprised")
"""Words of the seven classes of :mod:`common.nets.expression`, in its order."""


def name_word(identity: int) -> str:
    """The word that names a training identity in prompts of the base model."""
    return f"name{identity:04d}"


def base_words() -> tuple[str, ...]:
    """Vocabulary of the base model: :data:`WORDS` and a name for each training identity."""
    identities = [*TRAINING_PEOPLE, *range(FIRST_CELEBA, FIRST_CELEBA + CELEBA_PHOTOGRAPHS)]
    return WORDS + tuple(name_word(i) for i in identities)


@dataclasses.dataclass(frozen=True)
class Faces:
    """Aligned photographs.

    Attributes:
      images: uint8 ``[photographs, size, size]``.
      identity: int32 ``[photographs]``; Olivetti people 0-39, CelebA from :data:`FIRST_CELEBA`.
    """

    images: np.ndarray
    identity: np.ndarray

    def of(self, identity: int) -> np.ndarray:
        """The photographs of one identity, ``[n, size, size]``."""
        return self.images[self.identity == identity]

    def select(self, keep: np.ndarray) -> "Faces":
        return Faces(self.images[keep], self.identity[keep])


@dataclasses.dataclass(frozen=True)
class Jitter:
    """Ranges of the random augmentation (uniform in plus or minus each).

    Attributes:
      rotation: degrees.
      shift: fraction of the side.
      zoom: fraction of the side.
      contrast: relative gain about the mean.
      brightness: fraction of the full range.
      flip: probability of a left-right flip.
    """

    rotation: float = 6.0
    shift: float = 0.03
    zoom: float = 0.06
    contrast: float = 0.15
    brightness: float = 0.06
    flip: float = 0.5


def framed(
    photo: np.ndarray,
    box: tuple[float, float, float, float],
    size: int,
    jitter: Jitter | None = None,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Cuts ``box`` (left, top, right, bottom) out of ``photo`` and scales it to ``size``.

    Args:
      photo: uint8 ``[height, width]``.
      box: may have fractions; must lie inside the photograph with room for the jitter.
      size: side of the result.
      jitter: None for the canonical frame.
      rng: source of the jitter.

    Returns:
      uint8 ``[size, size]``.
    """
    image = Image.fromarray(photo)
    left, top, right, bottom = box
    if jitter is None:
        out = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
        return np.asarray(out)
    if rng is None:
        raise ValueError("a jittered frame needs a random generator")
    side = right - left
    x, y = (left + right) / 2, (top + bottom) / 2
    angle = rng.uniform(-jitter.rotation, jitter.rotation)
    image = image.rotate(angle, Image.Resampling.BICUBIC, center=(x, y))
    x += side * rng.uniform(-jitter.shift, jitter.shift)
    y += side * rng.uniform(-jitter.shift, jitter.shift)
    half = side / 2 * (1 + rng.uniform(-jitter.zoom, jitter.zoom))
    frame = (x - half, y - half, x + half, y + half)
    values = np.asarray(
        image.resize((size, size), Image.Resampling.LANCZOS, box=frame), np.float32
    )
    if rng.random() < jitter.flip:
        values = values[:, ::-1]
    mean = values.mean()
    gain = 1 + rng.uniform(-jitter.contrast, jitter.contrast)
    shift = 255 * rng.uniform(-jitter.brightness, jitter.brightness)
    return np.clip((values - mean) * gain + mean + shift, 0, 255).round().astype(np.uint8)


class Photographs:
    """The photographs of both sources at full size, from which frames are cut.

    Args:
      size: side of the frames in pixels.
      celeba: how many of the CelebA photographs, in order of file name.
      olivetti: how many of the Olivetti people.
    """

    def __init__(
        self, size: int = 64, celeba: int = CELEBA_PHOTOGRAPHS, olivetti: int = OLIVETTI_PEOPLE
    ):
        found = datasets.olivetti()
        mine = found.person < olivetti
        self.size = size
        pad = 16
        self._olivetti = np.pad(found.images[mine], ((0, 0), (pad, pad), (pad, pad)), mode="edge")
        self._olivetti_box = (float(pad), float(pad), float(pad + 64), float(pad + 64))
        self._celeba = _grey(datasets.celeba_photos()[:celeba])
        self.identity = np.concatenate(
            [
                np.asarray(found.person[mine], np.int32),
                FIRST_CELEBA + np.arange(len(self._celeba), dtype=np.int32),
            ]
        )

    def __len__(self) -> int:
        return len(self.identity)

    def frame(
        self, index: int, jitter: Jitter | None = None, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Photograph ``index`` as uint8 ``[size, size]``, jittered if asked."""
        count = len(self._olivetti)
        if index < count:
            return framed(self._olivetti[index], self._olivetti_box, self.size, jitter, rng)
        return framed(self._celeba[index - count], CELEBA_BOX, self.size, jitter, rng)

    def faces(self) -> Faces:
        """All photographs in their canonical frame."""
        return Faces(np.stack([self.frame(i) for i in range(len(self))]), self.identity)

    def variants(
        self, indices: np.ndarray, count: int, jitter: Jitter, rng: np.random.Generator
    ) -> np.ndarray:
        """``count`` jittered frames of each photograph, uint8 ``[len(indices), count, S, S]``."""
        out = np.empty((len(indices), count, self.size, self.size), np.uint8)
        for row, index in enumerate(indices):
            for column in range(count):
                out[row, column] = self.frame(int(index), jitter, rng)
        return out


def _grey(photos: np.ndarray) -> np.ndarray:
    """Luma (ITU-R 601-2, as PIL's mode L) of uint8 ``[n, height, width, 3]``."""
    luma = photos[..., 0] * 0.299
    luma += photos[..., 1] * 0.587
    luma += photos[..., 2] * 0.114
    return luma.round().astype(np.uint8)


def to_model(images: np.ndarray) -> np.ndarray:
    """uint8 ``[..., size, size]`` to float32 ``[..., size, size, 1]`` in [-1, 1]."""
    return (images.astype(np.float32) / 127.5 - 1.0)[..., None]


def training_identities(identity: np.ndarray) -> np.ndarray:
    """Mask of the photographs of training people (not test, not validation)."""
    return ~np.isin(identity, TEST_PEOPLE + VALIDATION_PEOPLE)


def describe(age: float, male: float, expression: np.ndarray) -> tuple[str, str, str]:
    """Words for age, sex and expression, empty where the classifiers are unsure.

    Args:
      age: years.
      male: probability.
      expression: seven probabilities in the order of :data:`EXPRESSION_WORDS`.
    """
    years = "young" if age < 27 else "old" if age > 45 else "middle-aged"
    sex = "man" if male > 0.8 else "woman" if male < 0.2 else "person"
    best = int(np.argmax(expression))
    return years, sex, EXPRESSION_WORDS[best] if expression[best] > 0.6 else ""


def caption(
    words: tuple[str, str, str],
    name: str,
    rng: np.random.Generator,
    *,
    keep: float = 0.5,
    name_probability: float = 0.6,
    empty: float = 0.1,
) -> str:
    """A training prompt of the base model.

    Like web captions, it tells an arbitrary part of what is seen: each attribute with probability
    ``keep``, the name with ``name_probability``; one in ten is empty (for guidance), and the rare
    word appears now and then without any meaning, as it does for Stable Diffusion.
    """
    if rng.random() < empty:
        return ""
    age, sex, expression = words
    out = [RARE_WORD] if rng.random() < 0.05 else []
    out += [w for w in (age, expression) if w and rng.random() < keep]
    out.append(sex if rng.random() < keep else "person")
    if rng.random() < name_probability:
        out.append(name)
    return " ".join(out)
