"""Pictures of the comparison: accuracy against images, differences to the CNN, samples."""

from pathlib import Path

import numpy as np

from common import figures
from medical.acgan.methods import METHODS


def draw_accuracy(results: dict, path: Path) -> None:
    """Accuracy of each method against labelled images of each class; bands are one standard
    deviation over seeds."""
    places = results["sizes"]
    series = {}
    for name, table in results["accuracy"].items():
        mean = np.array([table[str(n)]["mean"] for n in places])
        spread = np.array([table[str(n)]["sd"] or 0.0 for n in places])
        series[METHODS[name].title] = (places, mean, mean - spread, mean + spread)
    figures.curves(path, series, "labelled images of each class", "test accuracy",
                   f"Accuracy over {len(results['seeds'])} seeds; band: deviation",
                   logx=True)


def draw_differences(
    results: dict, path: Path, key: str = "difference", baseline: str = "CNN"
) -> None:
    """Difference of each method's accuracy to a baseline's in points, with 95 % intervals."""
    places = [str(n) for n in results["sizes"]]
    values, errors = {}, {}
    for name, table in results[key].items():
        title = METHODS[name].title
        values[title] = [100 * table[n]["mean"] for n in places]
        errors[title] = [100 * (table[n]["high"] - table[n]["mean"])
                         if table[n]["high"] is not None else 0.0 for n in places]
    figures.bars(path, [f"{n} of each class" for n in places], values, errors,
                 f"points of accuracy over the {baseline}",
                 f"Difference to the {baseline}, 95 % intervals")


def draw_samples(
    samples: np.ndarray, reals: np.ndarray, classes: tuple[str, ...], title: str, path: Path,
    shown: int = 10,
) -> None:
    """Samples of each class, one row each, after one real image.

    Args:
      samples: uint8 ``[classes, count, height, width, channels]``.
      reals: one real image of each class, uint8 ``[classes, height, width, channels]``.
      classes: names.
      title: text above.
      path: PNG file to write.
      shown: most samples of a class.
    """
    rows = [[real, *made[:shown]] for real, made in zip(reals, samples, strict=True)]
    figures.grid(rows, path, row_labels=list(classes), title=title, separators=(1,), scale=2,
                 column_labels=["real", *[""] * (len(rows[0]) - 1)])
