"""Photographs of people to be inverted, with optional masks: finding, reading and framing them.

A photograph and its mask are framed by one and the same :class:`Frame` (crop, size, mirror), whose
box is in shares of the picture, so that it means the same place in both. The original resizes the
mask of an image that is not square to a square while it crops the image, so that they part.
"""

import hashlib
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from common.config import ConfigError
from common.datasets import IMAGE_ERRORS, IMAGE_SUFFIXES
from w2w.folders import is_dangling


class PhotographError(ConfigError, ValueError):
    """Photographs or masks cannot be used; the message names the file or folder."""


class Person(NamedTuple):
    """One person: a name, photographs, and as many masks or none."""

    name: str
    images: tuple[pathlib.Path, ...]
    masks: tuple[pathlib.Path, ...]


class Frame(NamedTuple):
    """What is seen of a picture.

    Attributes:
      box: left, top, right and bottom of the crop, as shares of width and height.
      mirrored: left and right are exchanged after the crop.
    """

    box: tuple[float, float, float, float]
    mirrored: bool


def find(images: str | pathlib.Path, masks: str | pathlib.Path = "") -> list[Person]:
    """The people in a folder, in the order of their names; links to folders and files count.

    Args:
      images: a folder of one person's photographs (the person is named after it), or of one
        sub-folder for each person.
      masks: a folder with the same sub-folders, and in them one picture for each photograph, of
        the same name without suffix; "" for none.

    Raises:
      PhotographError: no such folder or one that cannot be read, no photographs, files that are no
        pictures, links that lead nowhere, both files and sub-folders, or masks that are missing or
        left over.
    """
    folder = pathlib.Path(images)
    folders = _people(folder, "photographs")
    people = []
    for name, place in folders.items():
        pictures = _pictures(place)
        if not pictures:
            raise PhotographError(f"{place}: no photographs ({', '.join(IMAGE_SUFFIXES)})")
        people.append(Person(name, tuple(pictures.values()), ()))
    if not masks:
        return people
    root = pathlib.Path(masks)
    places = _people(root, "masks")
    if folders == {folder.resolve().name: folder}:  # of one person: the folder's name is free
        places = dict(zip(folders, places.values(), strict=True)) if len(places) == 1 else places
    if places.keys() != folders.keys():
        odd = sorted(places.keys() ^ folders.keys())
        raise PhotographError(
            f"{root}: masks of {len(places)} people for photographs of {len(folders)} in {folder}; "
            f"only one of the two has {', '.join(odd[:5])}"
        )
    return [person._replace(masks=_masks(person, places[person.name])) for person in people]


def _people(folder: pathlib.Path, what: str) -> dict[str, pathlib.Path]:
    """Name to folder of each person."""
    if not folder.is_dir():
        raise PhotographError(f"{folder} is not a folder of {what}")
    entries = _entries(folder)
    folders = {entry.name: entry for entry in entries if entry.is_dir()}
    if folders and len(folders) < len(entries):
        raise PhotographError(
            f"{folder} has files as well as sub-folders; expected {what} of one person, or one "
            "sub-folder for each person"
        )
    return folders or {folder.resolve().name: folder}


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
    """What is in a folder, without hidden files, by name."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise PhotographError(f"{folder} cannot be read: {error.strerror}") from error
    for entry in entries:
        if is_dangling(entry):
            raise PhotographError(f"{entry} is a link to {entry.readlink()}, which is not there")
    return entries


def _pictures(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Name without suffix to path."""
    found: dict[str, pathlib.Path] = {}
    for path in _entries(folder):
        if not path.is_file() or path.suffix.lower() not in IMAGE_SUFFIXES:
            raise PhotographError(f"{path} is not a picture ({', '.join(IMAGE_SUFFIXES)})")
        if path.stem in found:
            raise PhotographError(f"{path} and {found[path.stem].name} have one name")
        found[path.stem] = path
    return found


def _masks(person: Person, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
    masks, wanted = _pictures(folder), [path.stem for path in person.images]
    if masks.keys() != set(wanted):
        missing, more = sorted(set(wanted) - masks.keys()), sorted(masks.keys() - set(wanted))
        parts = [f"none for {', '.join(missing[:5])}"] if missing else []
        parts += [f"no photograph for {', '.join(more[:5])}"] if more else []
        raise PhotographError(
            f"{folder}: {len(masks)} masks for {len(wanted)} photographs of {person.name}: "
            f"{'; '.join(parts)}"
        )
    return tuple(masks[stem] for stem in wanted)


def read_image(path: pathlib.Path) -> Image.Image:
    """An RGB picture, turned as its camera says.

    Raises:
      PhotographError: damaged.
    """
    return _open(path).convert("RGB")


def read_mask(path: pathlib.Path, image: Image.Image) -> Image.Image:
    """A mask in [0, 1], float32 (mode "F"); white is 1 in files of 1, 8 and 16 bits.

    Raises:
      PhotographError: damaged, black everywhere, or of other proportions than its photograph (by
        more than one pixel).
    """
    found = _open(path)
    if found.mode.startswith("I;16"):
        values = np.asarray(found, np.float32) / 65535
    else:
        values = np.asarray(found.convert("L"), np.float32) / 255
    mask = Image.fromarray(values)
    (width, height), (w, h) = image.size, mask.size
    if abs(w * height - h * width) > max(width, height):
        raise PhotographError(
            f"{path}: a mask of {w} x {h} pixels for a photograph of {width} x {height}; their "
            "proportions differ"
        )
    if not values.max() > 0:
        raise PhotographError(f"{path}: the mask is black everywhere; white is what counts")
    return mask


def _open(path: pathlib.Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file)
    except IMAGE_ERRORS as error:
        raise PhotographError(f"{path} cannot be read as a picture: {error}") from error


def draw_frames(
    picture: tuple[int, int],
    size: tuple[int, int],
    count: int,
    zoom: float,
    mirror: bool,
    seed: np.random.SeedSequence,
) -> list[Frame]:
    """Random frames of one picture.

    The crop has the proportions of ``size``. Its side is a uniform share in ``[zoom, 1]`` of the
    largest that fits; its place is uniform. With ``zoom = 1`` a square picture and size give the
    one frame that shows all of it, and others the original's random crop.

    Args:
      picture: width and height in pixels.
      size: height and width in pixels that the crop will be brought to.
      count: number of frames, of which equal ones are kept once.
      zoom: smallest share, in (0, 1].
      mirror: each frame is mirrored with probability 1/2.
      seed: of the random numbers.
    """
    if not 0 < zoom <= 1 or count < 1:
        raise ValueError(f"zoom = {zoom} must be in (0, 1] and views = {count} positive")
    rng = np.random.default_rng(seed)
    width, height = picture
    largest = min(width / size[1], height / size[0])  # pixels of the picture for one of the crop
    frames: dict[Frame, None] = {}
    for scale, x, y, coin in rng.random((count, 4)):
        side = largest * (zoom + (1 - zoom) * scale)
        w, h = min(side * size[1] / width, 1.0), min(side * size[0] / height, 1.0)
        left, top = x * (1 - w), y * (1 - h)
        box = left, top, min(left + w, 1.0), min(top + h, 1.0)
        frames[Frame(box, bool(mirror and coin < 0.5))] = None
    return list(frames)


def apply_frame(picture: Image.Image, frame: Frame, size: tuple[int, int]) -> np.ndarray:
    """The framed picture, float32 ``[height, width]`` or ``[height, width, 3]``.

    Resized bilinearly with anti-aliasing, as torchvision resizes pictures of PIL. Values are those
    of the picture: 0 to 255 of an image, 0 to 1 of a mask.

    Args:
      picture: of mode "RGB" or "F".
      frame: see :class:`Frame`.
      size: height and width of the result in pixels.
    """
    width, height = picture.size
    left, top, right, bottom = frame.box
    box = left * width, top * height, right * width, bottom * height
    found = picture.resize(size[::-1], Image.Resampling.BILINEAR, box=box)
    values = np.asarray(found, np.float32)
    return values[:, ::-1] if frame.mirrored else values


def digest(people: list[Person]) -> str:
    """Digest of names and contents of all photographs and masks."""
    total = hashlib.sha256()
    for person in people:
        for path in (*person.images, *person.masks):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{person.name}/{path.name} {content}\n".encode())
    return total.hexdigest()
