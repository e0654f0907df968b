"""The files that the original weights2weights publishes, read without torch and without trust.

``V.pt [D, 10000]``, ``mean.pt`` and ``std.pt [D]``, ``proj_1000pc.pt [N, 1000]``,
``weight_dimensions.pt`` (key to number of values and shape, in the order of the flat vector),
``identity_df.pt`` (a pickled pandas DataFrame), ``all_weights.pt [N, D]`` and
``adapter_config.json``, together in one folder or in the folders of the hub repository. Large
tensors are mapped into memory, so that only what is used is read.
"""

import os
import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import tqdm

from common import frame_reader, torch_reader
from w2w import folders
from w2w.adapters import config as adapter_config
from w2w.adapters.formats import AdapterError, dotted, parse
from w2w.bank import Bank
from w2w.lora_layout import Layout
from w2w.subspace import Subspace

_FOLDERS = (".", "files", "weights_datasets/identities", "weights_datasets")


class ReleaseError(ValueError):
    """A file of the release is missing, damaged, malicious, or does not fit the others."""


def find(folder: str | os.PathLike[str], name: str) -> pathlib.Path:
    """A file of the release, in the folder or one of the hub repository's folders.

    Raises:
      ReleaseError: it is in none of them.
    """
    root = pathlib.Path(folder)
    for place in _FOLDERS:
        if (root / place / name).is_file():
            return root / place / name
    raise ReleaseError(f"{root}: no {name} in {', '.join(_FOLDERS)}")


def _tensor(path: pathlib.Path, shape: Sequence[int | None]) -> np.ndarray:
    """A mapped tensor of this shape; None stands for any size, axes of size 1 are ignored."""
    try:
        array = torch_reader.read(path, mmap=True)
    except torch_reader.PickleError as error:
        raise ReleaseError(str(error)) from error
    if not isinstance(array, np.ndarray):
        raise ReleaseError(f"{path}: {type(array).__name__} instead of a tensor")
    if array.ndim == len(shape) + 1 and 1 in array.shape:
        array = array.squeeze(array.shape.index(1))
    fits = array.ndim == len(shape) and all(
        want in (None, size) for want, size in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype.kind not in "fV":
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ReleaseError(f"{path}: {array.dtype} {array.shape}, expected floats ({wanted})")
    return array


def _finite(path: pathlib.Path, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array, np.float32)
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad:
        raise ReleaseError(f"{path}: {bad} of {array.size} values are not finite")
    return array


def read_layout(folder: str | os.PathLike[str]) -> Layout:
    """Layout by ``weight_dimensions.pt``, whose keys may be spelled in any known way.

    Raises:
      ReleaseError: its order is not that of the sorted PEFT keys (vectors would be permuted), or
        entries do not belong together.
    """
    path = find(folder, "weight_dimensions.pt")
    try:
        table = torch_reader.read(path)
    except torch_reader.PickleError as error:
        raise ReleaseError(str(error)) from error
    if not isinstance(table, dict) or not table:
        raise ReleaseError(f"{path}: {type(table).__name__} instead of a dict of sizes")
    order: list[tuple[str, str]] = []
    shapes: dict[tuple[str, str], tuple[int, int]] = {}
    for key, value in table.items():
        try:
            parsed = parse(str(key))
            module = parsed.module
            if parsed.format == "kohya":
                module = dotted([module], None)[module]
            (count,), (rows, columns) = np.atleast_1d(value[0]).tolist(), value[1]
        except (AdapterError, TypeError, ValueError, IndexError) as error:
            raise ReleaseError(f"{path}: key {key}: {value!r:.80}: {error}") from error
        if rows * columns != count:
            raise ReleaseError(f"{path}: key {key}: {count} values of shape ({rows}, {columns})")
        order.append((module, parsed.part))
        shapes[module, parsed.part] = (rows, columns)
    modules = []
    for module in {module for module, _ in order}:
        a, b = shapes.get((module, "A")), shapes.get((module, "B"))
        if a is None or b is None or a[0] != b[1]:
            raise ReleaseError(f"{path}: {module}: lora_A is {a}, lora_B is {b}")
        modules.append((module, a[1], b[0]))
    ranks = {shape[0] for (_, part), shape in shapes.items() if part == "A"}
    if len(ranks) != 1:
        raise ReleaseError(f"{path}: several ranks, {sorted(ranks)}")
    layout = Layout(tuple(modules), ranks.pop())
    wanted = [(module, part) for module, _, _ in layout.modules for part in "AB"]
    if order != wanted:
        at = next(i for i, pair in enumerate(order) if pair != wanted[i])
        raise ReleaseError(
            f"{path}: entry {at} is {' '.join(order[at])}, in the order of PEFT keys it is "
            f"{' '.join(wanted[at])}"
        )
    return layout


def read_alpha(folder: str | os.PathLike[str], layout: Layout) -> float:
    """Alpha of the release by its ``adapter_config.json``.

    Raises:
      ReleaseError: the file is missing or asks for anything but plain LoRA of the layout's rank.
    """
    path = find(folder, adapter_config.CONFIG)
    try:
        source, fields = adapter_config.fields_of(path, path, {})
        assert fields is not None  # there is a configuration
        ranks = {module: layout.rank for module, _, _ in layout.modules}
        scales = set(adapter_config.scales(source, fields, ranks).values())
    except AdapterError as error:
        raise ReleaseError(str(error)) from error
    if len(scales) != 1:
        raise ReleaseError(f"{path}: several strengths, {sorted(scales)}")
    return scales.pop() * layout.rank


def read_coefficients(folder: str | os.PathLike[str]) -> np.ndarray:
    """Coefficients of the published models on the leading components, ``[N, 1000]``, mapped."""
    return _tensor(find(folder, "proj_1000pc.pt"), (None, None))


def read_space(
    folder: str | os.PathLike[str],
    k: int | None = None,
    variances: Sequence[float] | np.ndarray | None = None,
) -> Subspace:
    """The published space.

    Components keep their published signs, and the standard deviation may be negative: the
    coefficients of the release refer to them.

    Args:
      folder: of the release.
      k: number of components; by default as many as ``proj_1000pc.pt`` has columns.
      variances: ``[k]`` of the coefficients; by default those of ``proj_1000pc.pt``, unbiased.

    Raises:
      ReleaseError: files that do not fit each other, components that are not of norm 1, or more
        components than variances are known of.
    """
    d = read_layout(folder).size
    known = read_coefficients(folder)
    v_path = find(folder, "V.pt")
    v = _tensor(v_path, (d, None))
    k = min(known.shape[1], v.shape[1]) if k is None else k
    if not 1 <= k <= v.shape[1]:
        raise ReleaseError(f"{v_path}: {k} components asked for, it has {v.shape[1]}")
    if variances is None:
        if k > known.shape[1]:
            raise ReleaseError(
                f"{folder}: variances of {k} components asked for, proj_1000pc.pt has "
                f"{known.shape[1]}; give variances (coefficient_variances computes them)"
            )
        variances = np.asarray(known[:, :k], np.float64).var(axis=0, ddof=1)
    if len(variances) != k:
        raise ReleaseError(f"{folder}: {len(variances)} variances for {k} components")
    components = np.ascontiguousarray(_finite(v_path, v[:, :k]).T)
    norms = np.linalg.norm(components, axis=1)
    if np.abs(norms - 1).max() > 1e-2:
        worst = int(np.abs(norms - 1).argmax())
        raise ReleaseError(f"{v_path}: component {worst} has norm {norms[worst]:.4f}, not 1")
    vectors = {}
    for name in ("mean", "std"):
        path = find(folder, f"{name}.pt")
        vectors[name] = jnp.asarray(_finite(path, _tensor(path, (d,))))
    return Subspace(
        **vectors,
        components=jnp.asarray(components),
        variances=jnp.asarray(np.asarray(variances), jnp.float32),
        n=known.shape[0],
    )


def coefficient_variances(folder: str | os.PathLike[str], k: int, chunk: int = 256) -> np.ndarray:
    """Unbiased variances ``[k]`` of the coefficients of all published models, from their weights.

    One pass over ``all_weights.pt``, ``chunk`` models at a time, in float64.
    """
    d = read_layout(folder).size
    weights = _tensor(find(folder, "all_weights.pt"), (None, d))
    v = np.asarray(_tensor(find(folder, "V.pt"), (d, None))[:, :k], np.float64)
    mean, std = (
        np.asarray(_tensor(find(folder, f"{name}.pt"), (d,)), np.float64)
        for name in ("mean", "std")
    )
    inverse = np.divide(1, std, out=np.zeros_like(std), where=std != 0)
    count, total, squares = len(weights), np.zeros(k), np.zeros(k)
    for start in tqdm.trange(0, count, chunk, desc="variances", disable=None):
        block = np.asarray(weights[start : start + chunk], np.float64)
        coefficients = ((block - mean) * inverse) @ v
        total += coefficients.sum(axis=0)
        squares += (coefficients**2).sum(axis=0)
    return (squares - total**2 / count) / (count - 1)


def read_labels(folder: str | os.PathLike[str]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Names of the published models and their numeric attributes, name to ``[N]`` float64.

    Raises:
      ReleaseError: damaged, malicious, or repeated names.
    """
    path = find(folder, "identity_df.pt")
    try:
        frame = frame_reader.read(path)
    except frame_reader.PickleError as error:
        raise ReleaseError(str(error)) from error
    names = tuple(str(name) for name in frame.index)
    if len(set(names)) != len(names):
        raise ReleaseError(f"{path}: {len(names)} rows with {len(set(names))} names")
    numeric = {
        name: column.astype(np.float64)
        for name, column in frame.columns.items()
        if column.dtype.kind in "biuf"
    }
    return names, numeric


def import_weights(folder: str | os.PathLike[str], bank: Bank, chunk: int = 256) -> None:
    """Appends ``all_weights.pt`` to a bank, with the labels that the bank has; continues.

    Args:
      folder: of the release. Its rows are in alphanumeric order of the models' names.
      bank: of the release's layout and alpha; empty, or the beginning of an earlier import.
      chunk: models committed at a time.

    Raises:
      ReleaseError: files that do not fit each other or the bank; names in another order.
    """
    path, layout = find(folder, "all_weights.pt"), read_layout(folder)
    alpha = read_alpha(folder, layout)
    if bank.layout != layout or bank.alpha != alpha:
        raise ReleaseError(
            f"{bank.path}: layout {bank.layout.sha256[:12]} and alpha {bank.alpha:g}, the release "
            f"has {layout.sha256[:12]} and {alpha:g}"
        )
    weights = _tensor(path, (None, layout.size))
    names, attributes = read_labels(folder)
    if len(names) != len(weights):
        raise ReleaseError(f"{path}: {len(weights)} models, identity_df.pt has {len(names)}")
    if list(names) not in (sorted(names), sorted(names, key=folders.natural)):
        raise ReleaseError(f"{folder}: identity_df.pt is not in alphanumeric order of its names")
    if missing := set(bank.label_names) - set(attributes):
        raise ReleaseError(f"{folder}: identity_df.pt has no {', '.join(sorted(missing))}")
    if bank.names != names[: len(bank)]:
        raise ReleaseError(f"{bank.path}: its {len(bank)} rows are not the release's first ones")
    for start in tqdm.trange(len(bank), len(names), chunk, desc="import", disable=None):
        part = slice(start, start + chunk)
        labels = {name: attributes[name][part].tolist() for name in bank.label_names}
        bank.append(names[part], weights[part], labels)
