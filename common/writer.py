"""Metrics on disk: one JSON line per record in `<name>.jsonl`, and TensorBoard event files.

A run that stopped after its last checkpoint has logged steps that the resumed run computes again;
`Writer.begin` drops those lines, so the file reads like that of an uninterrupted run.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

JsonDict = dict[str, Any]


def read_jsonl(path: str | os.PathLike[str]) -> list[JsonDict]:
    """Returns the records of a JSON-lines file; a last line cut short by a kill is left out.

    Raises:
        ValueError: a line that is not the last one is not JSON; names the file and the line.
    """
    lines = pathlib.Path(path).read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):  # no newline after it: the writer was killed in this line
                break
            raise ValueError(f"{path}: line {number} is not JSON: {error}") from error
    return records


class Writer:
    """Writes scalars and images of a run; in a multi-process run only process 0 writes.

    Args:
        workdir: folder of the run; created where missing.
        name: the records go to `<workdir>/<name>.jsonl`, TensorBoard files to
            `<workdir>/tensorboard`.
    """

    def __init__(self, workdir: str | os.PathLike[str], name: str = "metrics"):
        self.path = pathlib.Path(workdir) / f"{name}.jsonl"
        self._phase: str | None = None
        self._active = jax.process_index() == 0
        self._file: Any = None
        self._board: Any = None
        if self._active:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():  # a line cut short by a kill must not be continued
                self._rewrite(read_jsonl(self.path))
            self._file = self.path.open("a", encoding="utf-8")
            # Imports torch where that is installed, which takes seconds.
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self.path.parent / "tensorboard"))

    def begin(self, phase: str, step: int = 0) -> None:
        """Starts or resumes a phase, for example "train", at `step`.

        The records that follow carry the phase. Records of the same phase with a step greater than
        or equal to `step` are dropped from the file: they will be computed again.
        """
        self._phase = phase
        if not self._active:
            return
        self._file.close()
        records = read_jsonl(self.path)
        kept = [r for r in records if r.get("phase") != phase or r.get("step", -1) < step]
        if len(kept) != len(records):
            self._rewrite(kept)
        self._file = self.path.open("a", encoding="utf-8")

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one record. An array (a population's values) is logged as its mean.

        Non-finite numbers become the strings "nan", "inf", "-inf": JSON has no such numbers.
        """
        if not self._active:
            return
        numbers = {key: float(np.mean(np.asarray(value))) for key, value in values.items()}
        record: JsonDict = {} if self._phase is None else {"phase": self._phase}
        record["step"] = int(step)
        for key, number in numbers.items():
            record[key] = number if math.isfinite(number) else str(number)
            self._board.add_scalar(self._tag(key), number, int(step))
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def image(self, step: int, name: str, array: Any) -> None:
        """Adds a picture to TensorBoard.

        Args:
            step: the step it belongs to.
            name: its tag.
            array: float `[height, width, channels]` in [0, 1], channels 1 or 3.

        Raises:
            ValueError: the array has another shape.
        """
        if not self._active:
            return
        picture = np.asarray(array, dtype=np.float32)
        if picture.ndim != 3 or picture.shape[-1] not in (1, 3):
            raise ValueError(
                f"image '{name}' must be [height, width, 1 or 3], got shape {picture.shape}"
            )
        pixels = np.round(np.clip(picture, 0.0, 1.0) * 255.0).astype(np.uint8)
        self._board.add_image(self._tag(name), pixels, int(step), dataformats="HWC")

    def close(self) -> None:
        """Closes the files; the writer must not be used afterwards."""
        if self._active:
            self._file.close()
            self._board.close()

    def _tag(self, key: str) -> str:
        return key if self._phase is None else f"{self._phase}/{key}"

    def _rewrite(self, records: list[JsonDict]) -> None:
        """Replaces the file by `records`, through a temporary name."""
        temporary = self.path.with_suffix(".jsonl.partial")
        text = "".join(json.dumps(record) + "\n" for record in records)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.path)
