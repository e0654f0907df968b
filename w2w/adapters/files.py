"""Files of LoRA adapters: tensors and strengths of one adapter as its file states them.

Nothing is rescaled or dropped here; :mod:`w2w.adapters` turns what is read into a flat vector. The
strength of a module's update ``lora_B lora_A`` is ``alpha / rank`` (``alpha / sqrt(rank)`` for
rank-stabilised LoRA). Where a file states alpha depends on its format: in ``adapter_config.json``
(PEFT), in the header's ``lora_adapter_metadata`` (diffusers, if at all), or in tensors (kohya).
"""

import dataclasses
import json
import os
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from common import torch_reader
from w2w import folders
from w2w.adapters import config as adapter_config
from w2w.adapters.formats import AdapterError, Key, dotted, parse
from w2w.lora_layout import Layout

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
SUFFIXES = (".safetensors", *PICKLES)
PEFT_STEM, DIFFUSERS_STEM = "adapter_model", "pytorch_lora_weights"

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_INTEGERS = {"I64": np.dtype(np.int64), "I32": np.dtype(np.int32)}  # an alpha may be one


@dataclasses.dataclass(frozen=True)
class AdapterFile:
    """One adapter as its file states it.

    Attributes:
      path: the file with the tensors.
      format: see :mod:`w2w.adapters.formats`.
      factors: torch module name to ``(lora_A [rank, in], lora_B [out, rank])``, float32.
      scales: module to the factor of ``lora_B lora_A``; None if the file does not state alpha.
      keys: module to the key of its ``lora_A``, for messages.
      notes: what was left out on request.
    """

    path: pathlib.Path
    format: str
    factors: dict[str, tuple[np.ndarray, np.ndarray]]
    scales: dict[str, float] | None
    keys: dict[str, str]
    notes: tuple[str, ...] = ()

    def rank(self, module: str) -> int:
        """Rank of one module's update."""
        return self.factors[module][0].shape[0]


def locate(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path | None]:
    """The file with the tensors and, for PEFT, its configuration.

    Args:
      path: a file, or a folder with ``adapter_model`` or ``pytorch_lora_weights`` in it (or with
        ``unet/adapter_model``, the original's export).

    Raises:
      AdapterError: there is none, or more than one, or the configuration is missing.
    """
    if os.path.isdir(path):
        stems = (PEFT_STEM, DIFFUSERS_STEM, f"unet/{PEFT_STEM}")
        candidates = [path / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
        found = [file for file in candidates if os.path.isfile(file)]
        if not found and (why := folders.reason(path)):
            raise AdapterError(f"{path}: the folder cannot be read: {why}")
        if len(found) != 1:
            names = ", ".join(str(file.relative_to(path)) for file in found) or "none"
            raise AdapterError(f"{path}: expected one file of adapter weights, found {names}")
        path = found[0]
    elif not os.path.isfile(path):
        link = f"; it is a link to {path.readlink()}" if path.is_symlink() else ""
        raise AdapterError(f"{path}: no such file{link}")
    if path.suffix not in SUFFIXES:
        raise AdapterError(f"{path}: suffix {path.suffix!r} is none of {', '.join(SUFFIXES)}")
    config = path.with_name(adapter_config.CONFIG)
    if path.stem == PEFT_STEM and not config.is_file():
        raise AdapterError(
            f"{path}: {adapter_config.CONFIG}, which states its alpha, is not beside it"
        )
    return path, config if path.stem == PEFT_STEM else None


def read(
    path: pathlib.Path, layout: Layout | None = None, text_encoder: str = "refuse"
) -> AdapterFile:
    """Reads one adapter.

    Args:
      path: see :func:`locate`.
      layout: helps to tell the module names of kohya files; nothing is compared with it.
      text_encoder: ``"refuse"`` files that also adapt a text encoder, or ``"drop"`` that part.

    Raises:
      AdapterError: damaged or malicious file, values that are not finite, tensors of other methods
        than LoRA, mixed or repeated spellings, factors that do not fit each other.
    """
    path, config = locate(path)
    tensors, header = _tensors(path)
    keys: dict[str, Key] = {}
    for key in tensors:
        try:
            keys[key] = parse(key)
        except AdapterError as error:
            raise AdapterError(f"{path}: key {key}: {error}") from error
    text = [key for key, parsed in keys.items() if parsed.format == "text encoder"]
    if text and text_encoder != "drop":
        raise AdapterError(
            f"{path}: key {text[0]}: {len(text)} of {len(keys)} tensors adapt a text encoder; "
            'vectors hold UNet adapters only, text_encoder="drop" leaves the others out'
        )
    notes = (f"left out {len(text)} tensors of a text encoder",) if text else ()
    keys = {key: parsed for key, parsed in keys.items() if key not in text}
    if not keys:
        raise AdapterError(f"{path}: none of its {len(tensors)} tensors adapts a UNet")
    kinds: dict[tuple[str, str], str] = {}
    for key, parsed in keys.items():
        kinds.setdefault((parsed.format, parsed.adapter), key)
    if len(kinds) > 1:
        listing = ", ".join(f"{' '.join(kind).strip()} ({key})" for kind, key in kinds.items())
        raise AdapterError(f"{path}: mixes {len(kinds)} spellings: {listing}")
    format = next(iter(kinds))[0]

    names = {parsed.module for parsed in keys.values()}
    try:
        full = dotted(names, layout) if format == "kohya" else dict.fromkeys(names)
    except AdapterError as error:
        raise AdapterError(f"{path}: {error}") from error
    parts: dict[tuple[str, str], str] = {}
    for key, parsed in keys.items():
        where = (full[parsed.module] or parsed.module, parsed.part)
        if where in parts:
            raise AdapterError(f"{path}: keys {parts[where]} and {key} are the same tensor")
        parts[where] = key
    factors = _factors(path, parts, tensors)
    first = {module: parts[module, "A"] for module in factors}
    ranks = {module: a.shape[0] for module, (a, _) in factors.items()}
    scales = _scales(path, config, header, parts, tensors, ranks)
    return AdapterFile(path, format, factors, scales, first, notes)


def _tensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], Mapping[str, str]]:
    """Tensors by key and the string metadata of the header."""
    if path.suffix in PICKLES:
        try:
            tree = torch_reader.read(path)
        except (torch_reader.PickleError, OSError) as error:
            raise AdapterError(str(error)) from error
        if not isinstance(tree, dict):
            raise AdapterError(f"{path}: holds {type(tree).__name__}, not a dict of tensors")
        return {str(key): _numeric(path, str(key), value) for key, value in tree.items()}, {}
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {error}") from error
    header = _header(path, data)
    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise AdapterError(f"{path}: damaged file of {len(data)} bytes: {error}") from error
    known, tensors = _DTYPES | _INTEGERS, {}
    for key, entry in entries:
        if entry["dtype"] not in known:
            raise AdapterError(f"{path}: key {key}: values of type {entry['dtype']}, not floats")
        array = np.frombuffer(entry["data"], known[entry["dtype"]]).reshape(entry["shape"])
        tensors[key] = _numeric(path, key, array)
    return tensors, header


def _header(path: pathlib.Path, data: bytes) -> Mapping[str, str]:
    """The metadata; refuses a header in which a key occurs twice (the library keeps one)."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise AdapterError(f"{path}: key {twice} occurs {keys.count(twice)} times")
        return dict(pairs)

    size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else len(data)
    if 8 + size > len(data):
        raise AdapterError(f"{path}: truncated: header of {size} bytes in a file of {len(data)}")
    try:
        header = json.loads(data[8 : 8 + size], object_pairs_hook=unique)
        return dict(header.get("__metadata__") or {})
    except AdapterError:
        raise
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise AdapterError(f"{path}: not a safetensors file: {error}") from error


def _numeric(path: pathlib.Path, key: str, value: Any) -> np.ndarray:
    """Finite float32 values; exact for narrower types."""
    known = _DTYPES | (_INTEGERS if key.endswith(".alpha") else {})
    if not isinstance(value, np.ndarray) or value.dtype not in known.values():
        kind = getattr(value, "dtype", type(value).__name__)
        raise AdapterError(f"{path}: key {key}: {kind} instead of a tensor of floats")
    with np.errstate(over="ignore"):  # a float64 beyond float32 is reported below
        array = value.astype(np.float32)
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad:
        raise AdapterError(f"{path}: key {key}: {bad} of {array.size} values are not finite")
    return array


def _factors(
    path: pathlib.Path, parts: Mapping[tuple[str, str], str], tensors: Mapping[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    factors = {}
    for module in sorted({module for module, _ in parts}):
        for part, other in ("AB", "BA"):
            if (module, part) not in parts:
                key = parts.get((module, other)) or parts[module, "alpha"]
                raise AdapterError(f"{path}: key {key}: lora_{part} of the same module is missing")
        key_a, key_b = parts[module, "A"], parts[module, "B"]
        a, b = tensors[key_a], tensors[key_b]
        for key, tensor in ((key_a, a), (key_b, b)):
            if tensor.ndim != 2 or not tensor.size:
                raise AdapterError(f"{path}: key {key}: shape {tensor.shape} is not a matrix")
        if a.shape[0] != b.shape[1]:
            raise AdapterError(
                f"{path}: key {key_a}: rank {a.shape[0]}, but {key_b} has rank {b.shape[1]}"
            )
        factors[module] = (a, b)
    return factors


def _scales(
    path: pathlib.Path,
    config: pathlib.Path | None,
    header: Mapping[str, str],
    parts: Mapping[tuple[str, str], str],
    tensors: Mapping[str, np.ndarray],
    ranks: Mapping[str, int],
) -> dict[str, float] | None:
    """Factor of each module's update, or None if the file does not state it."""
    keys = {module: parts[module, "alpha"] for module, part in parts if part == "alpha"}
    alphas = {}
    for module, key in keys.items():
        if tensors[key].size != 1:
            raise AdapterError(f"{path}: key {key}: alpha of shape {tensors[key].shape}, not one")
        alphas[module] = float(tensors[key].reshape(()))
    source, fields = adapter_config.fields_of(path, config, header)
    if fields is not None and alphas:
        raise AdapterError(f"{path}: alpha is stated twice: key {min(keys.values())} and {source}")
    if fields is not None:
        return adapter_config.scales(source, fields, ranks)
    if not alphas:
        return None
    for module, alpha in alphas.items():
        if not alpha:
            raise AdapterError(f"{path}: key {keys[module]}: alpha is 0, the file does nothing")
    if missing := sorted(ranks.keys() - alphas):
        raise AdapterError(
            f"{path}: key {parts[missing[0], 'A']}: no alpha, as for {len(missing)} of "
            f"{len(ranks)} modules"
        )
    return {module: alphas[module] / rank for module, rank in ranks.items()}
