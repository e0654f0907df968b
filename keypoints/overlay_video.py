"""A video of all views beside each other, with the keypoints and the learned skeleton drawn in."""

import os
import pathlib
from typing import Any

import numpy as np

from keypoints import figures

Path = str | os.PathLike[str]


def frame(
    images: np.ndarray, pixels: np.ndarray, edges: list[tuple[int, int]], scale: int
) -> np.ndarray:
    """One picture of a moment: the views in rows of two (three from five views on).

    Args:
        images: uint8 `[views, height, width, 3]`.
        pixels: `[views, keypoints, 2]`, integer pixel centres; NaN where a keypoint is not seen.
        edges: pairs to join.
        scale: enlargement.

    Returns:
        uint8 `[rows * height * scale, columns * width * scale, 3]`, black where there is no view.
    """
    views = len(images)
    columns = min(views, 2 if views < 5 else 3)
    rows = -(-views // columns)
    drawn = [figures.overlay(images[v], pixels[v], edges, scale) for v in range(views)]
    drawn += [np.zeros_like(drawn[0])] * (rows * columns - views)
    return np.concatenate(
        [np.concatenate(drawn[r * columns : (r + 1) * columns], axis=1) for r in range(rows)]
    )


def write(
    path: Path,
    images: np.ndarray,
    pixels: np.ndarray,
    edges: list[tuple[int, int]],
    rate: float,
) -> pathlib.Path:
    """Writes an MPEG-4 video (needs OpenCV, extra `keypoints`).

    Args:
        path: ends in .mp4.
        images: uint8 `[frames, views, height, width, 3]`.
        pixels: `[frames, views, keypoints, 2]`.
        edges: pairs to join.
        rate: frames a second.

    Raises:
        ModuleNotFoundError: OpenCV is not installed.
        OSError: the video cannot be written.
    """
    import cv2

    path = pathlib.Path(path)
    scale = max(1, round(256 / images.shape[3]))
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    writer: Any = None
    try:
        for shown, places in zip(images, pixels, strict=True):
            picture = frame(shown, places, edges, scale)
            picture = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
            if writer is None:
                size = (picture.shape[1], picture.shape[0])
                code = cv2.VideoWriter.fourcc(*"mp4v")
                writer = cv2.VideoWriter(str(temporary), code, rate, size)
                if not writer.isOpened():
                    raise OSError(f"{path}: OpenCV cannot write an MPEG-4 video here")
            writer.write(np.ascontiguousarray(picture[..., ::-1]))
        if writer is None:
            raise ValueError("a video needs at least one frame")
        writer.release()
        temporary.replace(path)
    finally:
        if writer is not None:
            writer.release()
        temporary.unlink(missing_ok=True)
    return path
