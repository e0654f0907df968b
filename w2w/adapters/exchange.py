"""LoRA files to and from flat vectors ``[D]``: PEFT, diffusers, kohya, original weights2weights.

    layout = adapters.layout_of("adapters/anna")
    anna = adapters.load("adapters/anna", layout)
    adapters.save("anna.safetensors", anna.vector, layout, alpha=anna.alpha, format="kohya")

A vector means an update only together with its alpha: the update of a module is
``alpha / rank * lora_B lora_A``. Alpha is never guessed. A file that does not state it is refused
unless the caller says what to make of it, and a file of another strength than asked for is folded
into ``lora_B``, which is exact up to one rounding and reported.
"""

import json
import math
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from common.storage import write_whole
from w2w.adapters.config import CONFIG, METADATA
from w2w.adapters.files import DIFFUSERS_STEM, PEFT_STEM
from w2w.adapters.files import read as read_file
from w2w.adapters.formats import FORMATS, AdapterError, spell
from w2w.adapters.vectors import Loaded, Reading, layout_from, read
from w2w.lora_layout import Layout

__all__ = ["FORMATS", "AdapterError", "Loaded", "Reading", "layout_of", "load", "read", "save"]


def layout_of(
    path: str | os.PathLike[str], rank: int | None = None, text_encoder: str = "refuse"
) -> Layout:
    """Layout of the adapters of a file's kind: no base model is needed.

    Args:
      path: an adapter file or folder.
      rank: rank of the layout; None for the file's.
      text_encoder: see :class:`Reading`.

    Raises:
      AdapterError: an unusable file, or one of several ranks when none is given.
    """
    found = read_file(pathlib.Path(path), None, text_encoder)
    ranks = {found.rank(module): module for module in found.factors}
    if rank is None and len(ranks) > 1:
        listing = ", ".join(f"{rank} ({module})" for rank, module in sorted(ranks.items()))
        raise AdapterError(f"{found.path}: ranks {listing}; give the rank of the layout")
    return layout_from(found, next(iter(ranks)) if rank is None else rank)


def load(
    path: str | os.PathLike[str],
    layout: Layout,
    alpha: float | None = None,
    missing_alpha: float | str | None = None,
    reduce: str | None = None,
    canonical: bool = False,
    text_encoder: str = "refuse",
) -> Loaded:
    """Reads one adapter; warns of everything that was changed on the way (see :class:`Reading`).

    Args:
      path: a ``.safetensors`` (or, through the restricted reader, ``.bin``, ``.pt``) file, or a
        folder of PEFT, of diffusers, or of the original's export.
      layout: the wanted order and shapes.
      alpha, missing_alpha, reduce, canonical, text_encoder: see :class:`Reading`.

    Raises:
      AdapterError: the file is refused.
    """
    reading = Reading(alpha, missing_alpha, reduce, canonical, text_encoder)
    loaded = read(path, layout, reading)
    for note in loaded.notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    return loaded


def save(
    path: str | os.PathLike[str],
    vector: Any,
    layout: Layout,
    *,
    alpha: float,
    format: str = "peft",
    fold: bool = False,
    dtype: Any = np.float32,
) -> pathlib.Path:
    """Writes one adapter; files appear whole or not at all, and replace what was there.

    Args:
      path: for ``"peft"`` a folder (for ``"w2w"`` the parent of its folder ``unet``); for the
        others a ``.safetensors`` file, or a folder for ``pytorch_lora_weights.safetensors``
        (``"diffusers"``, ``"model"``).
      vector: ``[D]``.
      layout: order and shapes of the vector.
      alpha: what the vector refers to; the update is ``alpha / rank * lora_B lora_A``.
      format: ``"peft"``, ``"kohya"`` (A1111, ComfyUI, diffusers), ``"diffusers"`` (a pipeline's
        ``load_lora_weights``), ``"model"`` (``unet.load_lora_adapter(folder, prefix=None,
        weight_name=file)``; without ``weight_name`` diffusers loses the header with alpha), or
        ``"w2w"`` (the original's export: its keys hold an adapter name, so that PEFT loads it as
        ``identity1`` and under any other name loads nothing without a word).
      fold: multiply ``lora_B`` by the scale and state alpha = rank. For readers that ignore where
        alpha stands: ComfyUI and older versions of diffusers do not read the header of
        ``"diffusers"`` and ``"model"`` files, and the update is ``alpha / rank`` times too weak.
      dtype: float32, float16 or bfloat16.

    Returns:
      The file with the tensors.

    Raises:
      AdapterError: a vector of another size or not finite (also after rounding to ``dtype``).
      ValueError: an unknown format, or alpha that is not positive.
    """
    path, vector = pathlib.Path(path), np.asarray(vector)
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; expected one of {', '.join(FORMATS)}")
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be positive, got {alpha}")
    if vector.shape != (layout.size,):
        raise AdapterError(f"{path}: a vector {vector.shape}, layout of {layout.size} values")
    scale = alpha / layout.rank if fold else 1.0
    tensors = {}
    starts = zip(layout.offsets, layout.shapes, strict=True)
    for i, (start, (rows, columns)) in enumerate(starts):
        module, part = layout.modules[i // 2][0], "AB"[i % 2]
        tensor = vector[start : start + rows * columns].reshape(rows, columns)
        if part == "B" and scale != 1:
            tensor = tensor.astype(np.float64) * scale
        with np.errstate(over="ignore"):  # reported below
            tensor = tensor.astype(dtype)
        bad = tensor.size - np.count_nonzero(np.isfinite(tensor.astype(np.float32)))
        if bad:
            raise AdapterError(
                f"{path}: key {layout.names[i]}: {bad} of {tensor.size} values are not finite in "
                f"{np.dtype(dtype)}"
            )
        tensors[spell(module, part, format)] = tensor
    alpha = float(layout.rank) if fold else float(alpha)
    if format == "kohya":
        for module, _, _ in layout.modules:
            tensors[spell(module, "alpha", format)] = np.asarray(alpha, np.float32)
        if len(tensors) != 3 * len(layout.modules):
            raise AdapterError(f"{path}: two modules of the layout have one kohya name")

    file, header = _destination(path, format), {"format": "pt"}
    config = _lora_config(layout, alpha)
    if format in ("diffusers", "model") and not fold:
        prefix = "unet." if format == "diffusers" else ""
        named = {f"{prefix}{key}": value for key, value in config.items()}
        header[METADATA] = json.dumps(named, indent=2, sort_keys=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    if format in ("peft", "w2w"):
        more = {"peft_type": "LORA", "base_model_name_or_path": None, "inference_mode": True}
        text = json.dumps({**more, **config}, indent=2, sort_keys=True)
        write_whole(file.with_name(CONFIG), text.encode())
    write_whole(file, safetensors.numpy.save(tensors, header))
    return file


def _destination(path: pathlib.Path, format: str) -> pathlib.Path:
    if format in ("peft", "w2w"):
        folder = path / "unet" if format == "w2w" else path
        return folder / f"{PEFT_STEM}.safetensors"
    if path.suffix == ".safetensors":
        return path
    if format == "kohya":
        raise ValueError(f"{path}: a kohya file must end in .safetensors")
    return path / f"{DIFFUSERS_STEM}.safetensors"


def _lora_config(layout: Layout, alpha: float) -> Mapping[str, Any]:
    """Fields of a ``peft.LoraConfig``; full names of modules adapt these and no others."""
    return {
        "r": layout.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "target_modules": [module for module, _, _ in layout.modules],
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }
