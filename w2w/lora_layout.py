"""Which layers a LoRA adapter adapts, and the order of its values in a flat vector.

Modules are named as in torch (``down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q``) and
ordered as the sorted keys of a PEFT state dict, so that a flat vector equals the concatenation of
the tensors of such a file (``lora_A [rank, in]``, then ``lora_B [out, rank]``, each in C order).
"""

import dataclasses
import functools
import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

Adapter = dict[str, dict[str, jax.Array]]
Params = Mapping[str, Any]

PEFT_PREFIX = "base_model.model."
QUERY_AND_VALUE = (r"(.*\.)?attn[12]\.to_[qv]",)

# Torch attributes that end in a number without being an entry of a list, and the one pair of
# torch modules that is a single module here.
_ATTRIBUTES = re.compile(r"linear_\d+")
_FUSED = {"net.0.proj": "net_0_proj"}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """What is adapted, and how strongly.

    Attributes:
      rank: rank of each update.
      alpha: numerator of the scale; None stands for ``rank`` (a scale of 1).
      targets: regular expressions of which one must match a module's whole torch name; the
        default is the queries and values of self- and cross-attention.
      rslora: divide alpha by the square root of the rank instead of the rank.
    """

    rank: int = 1
    alpha: float | None = None
    targets: tuple[str, ...] = QUERY_AND_VALUE
    rslora: bool = False

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"LoRA rank must be at least 1, got {self.rank}")
        targets: Any = self.targets  # may come from a configuration file
        if isinstance(targets, str) or not targets:
            raise ValueError(f"targets must be a non-empty tuple of regexes, got {targets!r}")
        object.__setattr__(self, "targets", tuple(targets))

    @property
    def scale(self) -> float:
        """Factor of ``a b``."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def torch_name(path: str) -> str:
    """Torch name of a flax module path: ``blocks_0/attn1/to_q`` becomes ``blocks.0.attn1.to_q``.

    A trailing ``_<int>`` of a path component is an index into a list of modules.
    """
    fused = {flax: torch for torch, flax in _FUSED.items()}
    parts = []
    for part in path.split("/"):
        if part in fused:
            parts.append(fused[part])
        elif _ATTRIBUTES.fullmatch(part):
            parts.append(part)
        else:
            parts.append(re.sub(r"_(\d+)$", r".\1", part))
    return ".".join(parts)


def flax_path(name: str) -> str:
    """Inverse of :func:`torch_name`."""
    for torch, flax in _FUSED.items():
        name = re.sub(rf"(^|\.){re.escape(torch)}(?=\.|$)", rf"\g<1>{flax}", name)
    return re.sub(r"\.(\d+)(?=\.|$)", r"_\1", name).replace(".", "/")


def target_modules(params: Params, config: LoraConfig) -> tuple[str, ...]:
    """Torch names of the adapted modules, in the order of the sorted keys of a PEFT state dict.

    Args:
      params: the ``params`` collection; arrays or their abstract shapes.
      config: names the targets.

    Raises:
      ValueError: a target regex matches no module, or matches one whose kernel is not a matrix.
    """
    names = {}
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        module, _, kind = path.rpartition("/")
        if kind == "kernel":
            names[torch_name(module)] = leaf.shape
    chosen = set()
    for target in config.targets:
        found = [name for name in names if re.fullmatch(target, name)]
        if not found:
            raise ValueError(f"LoRA target {target!r} matches none of {len(names)} modules")
        chosen.update(found)
    for name in chosen:
        if len(names[name]) != 2:
            raise ValueError(
                f"LoRA target {name} has a kernel of shape {names[name]}; only dense kernels "
                "of two dimensions can be adapted"
            )
    return tuple(sorted(chosen, key=lambda name: f"{PEFT_PREFIX}{name}.lora_A.weight"))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Order and shapes of an adapter's flat vector: the concatenated sorted PEFT state dict.

    Attributes:
      modules: ``(torch name, in, out)`` of each module, in PEFT key order.
      rank: rank of the adapter.
    """

    modules: tuple[tuple[str, int, int], ...]
    rank: int

    def __post_init__(self):
        order = sorted(self.modules, key=lambda m: f"{PEFT_PREFIX}{m[0]}.lora_A.weight")
        object.__setattr__(self, "modules", tuple(order))

    @classmethod
    def from_params(cls, params: Params, config: LoraConfig) -> "Layout":
        """Layout of the adapters that :func:`init` makes for these parameters (shapes suffice)."""
        flat = traverse_util.flatten_dict(params, sep="/")
        names = target_modules(params, config)
        shapes = (flat[f"{flax_path(name)}/kernel"].shape for name in names)
        return cls(tuple((n, *s) for n, s in zip(names, shapes, strict=True)), config.rank)

    @classmethod
    def of(cls, adapter: Adapter) -> "Layout":
        """Layout of one adapter (without a leading population axis)."""
        modules = ((n, f["a"].shape[0], f["b"].shape[1]) for n, f in adapter.items())
        return cls(tuple(modules), next(iter(adapter.values()))["a"].shape[1])

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """PEFT state-dict keys, sorted."""
        sides = ("lora_A", "lora_B")
        return tuple(f"{PEFT_PREFIX}{m[0]}.{s}.weight" for m in self.modules for s in sides)

    @functools.cached_property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """PEFT tensor shapes: ``[rank, in]`` and ``[out, rank]`` in turn."""
        return tuple(s for _, i, o in self.modules for s in ((self.rank, i), (o, self.rank)))

    @functools.cached_property
    def offsets(self) -> tuple[int, ...]:
        """Start of each tensor in the flat vector."""
        sizes = [rows * columns for rows, columns in self.shapes]
        return tuple(int(n) for n in np.cumsum([0, *sizes[:-1]]))

    @property
    def size(self) -> int:
        """Length D of the flat vector."""
        return sum(rows * columns for rows, columns in self.shapes)

    @property
    def sha256(self) -> str:
        """Digest of the lines ``<key> <rows>x<columns>``."""
        lines = (f"{n} {s[0]}x{s[1]}" for n, s in zip(self.names, self.shapes, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def to_peft(adapter: Adapter, layout: Layout) -> dict[str, jax.Array]:
    """PEFT state dict ``{key: tensor}`` of an adapter, in sorted order.

    Raises:
      ValueError: the adapter does not have the layout.
    """
    if Layout.of(adapter) != layout:
        raise ValueError(
            f"adapter of {Layout.of(adapter).size} values (sha256 {Layout.of(adapter).sha256[:12]})"
            f" does not have the layout of {layout.size} values (sha256 {layout.sha256[:12]})"
        )
    sides = (adapter[module][side].T for module, _, _ in layout.modules for side in ("a", "b"))
    return dict(zip(layout.names, sides, strict=True))


def from_peft(tensors: Mapping[str, Any], layout: Layout) -> Adapter:
    """Adapter of a PEFT state dict; the inverse of :func:`to_peft`.

    Raises:
      ValueError: keys or shapes are not those of the layout.
    """
    wanted = dict(zip(layout.names, layout.shapes, strict=True))
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if found != wanted:
        key = min(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
        raise ValueError(
            f"state dict key {key}: shape {found.get(key, 'absent')}, layout "
            f"{wanted.get(key, 'absent')}"
        )
    a, b = ([jnp.asarray(tensors[key]).T for key in layout.names[side::2]] for side in (0, 1))
    pairs = zip(layout.modules, a, b, strict=True)
    return {module: {"a": left, "b": right} for (module, _, _), left, right in pairs}


def flatten(adapter: Adapter, layout: Layout) -> jax.Array:
    """Flat vector ``[D]`` of an adapter. Under vmap, ``[N, D]`` of a population."""
    return jnp.concatenate([tensor.reshape(-1) for tensor in to_peft(adapter, layout).values()])


def unflatten(vector: jax.Array, layout: Layout) -> Adapter:
    """Exact inverse of :func:`flatten`."""
    if vector.shape != (layout.size,):
        raise ValueError(f"expected a vector of shape ({layout.size},), got {vector.shape}")
    tensors = (
        vector[start : start + rows * columns].reshape(rows, columns)
        for start, (rows, columns) in zip(layout.offsets, layout.shapes, strict=True)
    )
    return from_peft(dict(zip(layout.names, tensors, strict=True)), layout)
