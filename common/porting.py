"""Rule-based porting of named weights into a parameter tree, with nothing left over on either side.

A rule is `(pattern, target, transform)`. The pattern is a regular expression for the whole source
name; the target is a "/"-joined parameter path in which `\\1`, `\\g<name>` stand for the pattern's
groups; the transform maps the source array to the target array. The first rule that matches a name
is used. A rule with target `DROP` consumes tensors that have no counterpart (for instance
`num_batches_tracked`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

__all__ = [
    "DROP", "PortingError", "Rule", "conv_oihw_to_hwio", "conv_transpose_iohw_to_hwio",
    "depthwise_hwim_to_hwio", "identity", "linear_oi_to_io", "port", "reshape", "squeeze",
]

Transform = Callable[[np.ndarray], np.ndarray]
Rule = tuple[str, str | None, Transform]

DROP = None


class PortingError(ValueError):
    """Source tensors and target parameters do not correspond one to one."""


def identity(array: np.ndarray) -> np.ndarray:
    """Returns the array as it is."""
    return array


def conv_oihw_to_hwio(array: np.ndarray) -> np.ndarray:
    """Convolution kernel `[out, in, *spatial]` (PyTorch) -> `[*spatial, in, out]` (Flax)."""
    if array.ndim < 3:
        raise ValueError(f"a convolution kernel has at least 3 axes, found shape {array.shape}")
    return np.moveaxis(array, (1, 0), (-2, -1))


def conv_transpose_iohw_to_hwio(array: np.ndarray) -> np.ndarray:
    """Transposed convolution kernel `[in, out, kh, kw]` (PyTorch) -> `[kh, kw, in, out]` (Flax).

    PyTorch scatters with the kernel as stored, Flax (`transpose_kernel=False`) correlates with it,
    so the spatial axes are flipped.
    """
    if array.ndim != 4:
        raise ValueError(f"expected a kernel with 4 axes, found shape {array.shape}")
    return np.ascontiguousarray(array.transpose(2, 3, 0, 1)[::-1, ::-1])


def depthwise_hwim_to_hwio(array: np.ndarray) -> np.ndarray:
    """Depthwise kernel `[kh, kw, in, multiplier]` (TensorFlow) -> `[kh, kw, 1, in*multiplier]`."""
    if array.ndim != 4:
        raise ValueError(f"expected a kernel with 4 axes, found shape {array.shape}")
    return array.reshape(*array.shape[:2], 1, -1)


def linear_oi_to_io(array: np.ndarray) -> np.ndarray:
    """Linear weight `[out, in]` (PyTorch) -> `[in, out]` (Flax)."""
    if array.ndim != 2:
        raise ValueError(f"expected a matrix, found shape {array.shape}")
    return array.T


def squeeze(array: np.ndarray) -> np.ndarray:
    """Removes all axes of length 1."""
    return np.squeeze(array)


def reshape(*shape: int) -> Transform:
    """Returns a transform that reshapes to `shape` (one entry may be -1)."""
    return lambda array: array.reshape(shape)


def port(source: Mapping[str, np.ndarray], rules: Sequence[Rule], target_shapes: Any) -> Any:
    """Fills a parameter tree from named tensors.

    Args:
        source: tensor name -> array.
        rules: see the module docstring; tried in order for each source name.
        target_shapes: nested dicts with leaves that have `shape` and `dtype`, for instance
            `jax.eval_shape(module.init, key, x)["params"]`.

    Returns:
        Nested dicts like `target_shapes` with NumPy arrays of the targets' dtypes.

    Raises:
        PortingError: a source tensor that no rule matches, a target that is filled twice or not at
            all, or a target that does not exist; the message lists all of them. Also a transformed
            array whose shape differs from the target's, or a transform that fails.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(target_shapes)
    targets = {_path(path): leaf for path, leaf in leaves}
    filled: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    unmatched, unknown, faults = [], [], []
    for name, array in source.items():
        rule = _first_match(name, rules)
        if rule is None:
            unmatched.append(f"{name} {np.shape(array)}")
            continue
        target, transform = rule
        if target is DROP:
            continue
        if target not in targets:
            unknown.append(f"{name} -> {target}")
            continue
        if target in filled:
            faults.append(f"{target} is filled by both {origin[target]} and {name}")
            continue
        try:
            value = np.asarray(transform(np.asarray(array)))
        except ValueError as error:
            raise PortingError(f"{name} -> {target}: {error}") from error
        expected = targets[target]
        if value.shape != tuple(expected.shape):
            faults.append(
                f"{name} -> {target}: shape {value.shape}, expected {tuple(expected.shape)}")
        filled[target], origin[target] = value.astype(expected.dtype), name
    missing = [
        f"{path} {tuple(leaf.shape)}" for path, leaf in targets.items() if path not in filled]
    problems = [
        f"{title} ({len(items)}): {', '.join(items)}"
        for title, items in (
            ("source tensors that no rule matches", unmatched),
            ("targets that do not exist", unknown),
            ("targets not filled", missing),
            ("conflicts", faults),
        ) if items
    ]
    if problems:
        raise PortingError("; ".join(problems))
    return jax.tree_util.tree_unflatten(structure, [filled[_path(path)] for path, _ in leaves])


def _first_match(name: str, rules: Sequence[Rule]) -> tuple[str | None, Transform] | None:
    for pattern, target, transform in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return (DROP if target is DROP else match.expand(target)), transform
    return None


def _path(path: Sequence[Any]) -> str:
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")
