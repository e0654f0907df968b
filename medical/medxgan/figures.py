"""Pictures of explanations: overlays with their colour scale, interpolation strips, samples."""

from pathlib import Path

import matplotlib
import numpy as np

from common import image_grids

Arrays = dict[str, np.ndarray]

SHOWN = ("difference", "lig", "lig_path", "ig_negative", "ig_black", "grad_cam", "occlusion")
OUTLINE = np.array([0.35, 1.0, 0.45])  # of the true lesion
TILE = 128  # pixels of a picture in a grid; larger images are not enlarged


def factor_of(size: int, tile: int = TILE) -> int:
    """By how much images of this side are enlarged for tiles of `tile` pixels."""
    return max(1, tile // size)


def grey(images: np.ndarray) -> np.ndarray:
    """Images ``[..., h, w, c]`` in [-1, 1] as ``[..., h, w, 3]`` in [0, 1]."""
    return np.clip(np.repeat(images.mean(axis=-1, keepdims=True), 3, -1) / 2 + 0.5, 0, 1)


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """Repeats the pixels of ``[h, w, ...]``."""
    return image.repeat(factor, 0).repeat(factor, 1)


def outline(mask: np.ndarray, factor: int) -> np.ndarray:
    """The border of a mask ``[h, w]``, one pixel wide after enlargement."""
    big = enlarge(mask, factor)
    padded = np.pad(big, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return big & ~inner


def overlay(
    image: np.ndarray, values: np.ndarray | None, mask: np.ndarray | None, factor: int,
    largest: float | None = None,
) -> np.ndarray:
    """A grey image ``[h, w, c]`` with a map ``[h, w]`` and a lesion's outline.

    The map is shown over `largest`, by default its own maximum. Its opacity grows with its value,
    so that anatomy stays visible where it is low.
    """
    picture = enlarge(grey(image), factor)
    if values is not None:
        largest = float(values.max()) if largest is None else largest
        share = enlarge(np.minimum(values / max(largest, 1e-12), 1), factor)
        colour = matplotlib.colormaps["inferno"](share)[..., :3]
        opacity = 0.25 + 0.75 * np.sqrt(share)[..., None]
        picture = opacity * colour + (1 - opacity) * picture
    if mask is not None:
        picture[outline(mask, factor)] = OUTLINE
    return picture


def colour_scale(size: int, factor: int) -> np.ndarray:
    """A vertical scale of the map's colours, the maximum at the top."""
    side = size * factor
    share = np.linspace(1, 0, side)[:, None]
    bar = matplotlib.colormaps["inferno"](share)[..., :3]
    picture = np.ones((side, side, 3))
    picture[:, : side // 5] = bar
    return picture


def draw_explanations(found: Arrays, titles: dict[str, str], path: Path, count: int = 8) -> None:
    """Images, generated pair, and maps as overlays; the true lesion outlined in all of them."""
    size = found["images"].shape[1]
    factor, rows = factor_of(size), []
    for i in range(min(count, len(found["images"]))):
        mask = found["masks"][i]
        row = [overlay(found[name][i], None, mask if name == "images" else None, factor)
               for name in ("images", "positive", "negative")]
        row += [overlay(found["images"][i], found[f"map.{name}"][i], mask, factor)
                for name in SHOWN]
        rows.append([*row, colour_scale(size, factor) if i == 0 else None])
    columns = ["image, lesion outlined", "G(z1, z2)", "G(z1, 0)", *(titles[n] for n in SHOWN),
               "scale: maximum above, 0 below"]
    image_grids.grid(rows, path, column_labels=columns, separators=(1, 3), scale=1,
                     title="Test images with a lesion, and what each map marks")


def signed(values: np.ndarray, limit: float, factor: int) -> np.ndarray:
    """A difference of images ``[h, w, c]``: red where positive, blue where negative."""
    share = np.clip(enlarge(values.mean(axis=-1), factor) / max(limit, 1e-12), -1, 1)
    return matplotlib.colormaps["RdBu_r"](0.5 + 0.5 * share)[..., :3]


def draw_interpolation(found: Arrays, path: Path, count: int = 6) -> None:
    """From G(z1, 0) to G(z1, z2) with the classifier's probability below each image.

    Beside them G(z1, z2) - G(z1, 0) as in Dravid and Katsaggelos, AAAI 2022, on one scale for all
    rows, and Grad-CAM; the lesion is outlined where it is known.
    """
    images, scores = found["path_images"], found["path_scores"]
    count = min(count, images.shape[1])
    change = images[-1] - images[0]
    limit = float(np.abs(change[:count]).max())
    factor = factor_of(images.shape[2], 96)
    rows, labels = [], []
    for i in range(count):
        mask = found["masks"][i] if found["masks"][i].any() else None
        rows.append([overlay(found["images"][i], None, mask, factor),
                     *(enlarge(grey(images[k, i]), factor) for k in range(len(images))),
                     signed(change[i], limit, factor),
                     overlay(found["images"][i], found["map.grad_cam"][i], mask, factor)])
        labels.append(["image", *(f"{scores[k, i]:.2f}" for k in range(len(images))), "", ""])
    alpha = [f"{a:.1f}" for a in np.linspace(0, 1, len(images))]
    last = len(images) + 1
    image_grids.grid(
        rows, path, column_labels=["", *alpha, "difference", "Grad-CAM"], labels=labels,
        separators=(1, last, last + 1), scale=1,
        title="Adding the pathology code, alpha from 0 to 1; below: P(positive). "
              f"Difference: blue -{limit:.2f}, red {limit:.2f}; images run from -1 to 1")


def draw_samples(found: Arrays, path: Path) -> None:
    """Real negatives, generated negatives and the same with a pathology code."""
    names = {"real_negative": "real negatives", "sample_negative": "G(z1, 0)",
             "sample_positive": "G(z1, z2)"}
    factor = factor_of(found["real_negative"].shape[1])
    rows = [[enlarge(grey(image), factor) for image in found[name][:10]] for name in names]
    image_grids.grid(rows, path, row_labels=list(names.values()), scale=1,
                     title="Samples of the generator")
