"""Units of a model: which channel of which tap has which number, and maps grouped by their size.

A unit is one channel of one tap. Units are numbered through the taps in their order and through the
channels inside a tap (the numbering of the published tables). For matrix products the maps of one
size are one array, so that a model with many taps costs few products.
"""

import bisect
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Layout", "MapError", "group"]

Maps = Mapping[str, jax.Array]


class MapError(ValueError):
    """Activation maps that cannot be compared; the message names model, tap and numbers."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The units of one model, all of them or a block of consecutive ones.

    Attributes:
      name: name of the model, unique in a mining plan.
      taps: names of the taps in the order of the numbering.
      sizes: side of each tap's maps in cells.
      channels: channels that each tap has.
      start, stop: the units of this block; all by default.
      source: the model whose maps these are, where a model stands in a plan twice (a block of its
        units as rows, all of them as columns); the layout's own name by default.
    """

    name: str
    taps: tuple[str, ...]
    sizes: tuple[int, ...]
    channels: tuple[int, ...]
    start: int = 0
    stop: int = -1
    source: str = ""

    def __post_init__(self) -> None:
        if "/" in self.name or not self.name:
            raise ValueError(f"the model's name {self.name!r} must be non-empty and without '/'")
        if not len(self.taps) == len(self.sizes) == len(self.channels) > 0:
            raise ValueError(f"model {self.name!r}: one size and number of channels for each tap")
        if self.stop == -1:
            object.__setattr__(self, "stop", sum(self.channels))
        if not 0 <= self.start < self.stop <= sum(self.channels):
            raise ValueError(
                f"model {self.name!r} has {sum(self.channels)} units, not {self.start} to "
                f"{self.stop}"
            )

    @classmethod
    def of(
        cls, name: str, maps: Mapping[str, Any], taps: Sequence[str] | None = None
    ) -> "Layout":
        """The layout of maps `{tap: [batch, size, size, channels]}` (arrays or their shapes).

        Args:
          name: of the model.
          maps: may hold the maps of other taps as well.
          taps: names of the taps in the order of the units; by default all, in the order of
            `maps`. What comes out of a jitted function is in alphabetical order.

        Raises:
          MapError: maps that are missing, not square, not of rank 4, not of a floating type, or
            empty.
        """
        taps = tuple(maps if taps is None else taps)
        missing = [tap for tap in taps if tap not in maps]
        if not taps or missing:
            raise MapError(f"model {name!r} has taps {list(maps)}; missing: {missing or 'all'}")
        for tap in taps:
            array = maps[tap]
            shape = tuple(array.shape)
            if len(shape) != 4 or 0 in shape:
                raise MapError(
                    f"model {name!r}, tap {tap!r}: maps of shape {shape}, expected [batch, size, "
                    "size, channels]"
                )
            if shape[1] != shape[2]:
                raise MapError(
                    f"model {name!r}, tap {tap!r}: maps of {shape[1]} x {shape[2]} cells are not "
                    "square"
                )
            if not jnp.issubdtype(array.dtype, jnp.floating):
                raise MapError(f"model {name!r}, tap {tap!r}: maps of type {array.dtype}")
        sizes = tuple(maps[tap].shape[1] for tap in taps)
        return cls(name, taps, sizes, tuple(maps[tap].shape[3] for tap in taps))

    def __len__(self) -> int:
        """Number of units in this block."""
        return self.stop - self.start

    @property
    def model(self) -> str:
        """The model whose maps these are."""
        return self.source or self.name

    @property
    def offsets(self) -> tuple[int, ...]:
        """Number of the first unit of each tap."""
        return tuple(int(n) for n in np.cumsum([0, *self.channels])[:-1])

    @property
    def grids(self) -> tuple[int, ...]:
        """The sizes of maps in this block, ascending."""
        return tuple(sorted({self.sizes[tap] for tap, _, _ in self._slices()}))

    def block(self, start: int, stop: int) -> "Layout":
        """The same model restricted to the units `start` to `stop - 1`."""
        return dataclasses.replace(self, start=start, stop=stop)

    def find(self, unit: int) -> tuple[int, int]:
        """Tap (its index) and channel of a unit of the model.

        Raises:
          IndexError: the model has no such unit.
        """
        if not 0 <= unit < sum(self.channels):
            raise IndexError(f"model {self.name!r} has {sum(self.channels)} units, not {unit}")
        tap = bisect.bisect_right(self.offsets, unit) - 1
        return tap, unit - self.offsets[tap]

    def depth(self, units: Any) -> np.ndarray:
        """Index of the tap of each of `units`, in their shape."""
        return np.searchsorted(self.offsets, np.asarray(units), side="right") - 1

    def units_of(self, size: int) -> np.ndarray:
        """Numbers of this block's units with maps of one size, in the order of `group`."""
        parts = [
            self.offsets[tap] + np.arange(low, high)
            for tap, low, high in self._slices()
            if self.sizes[tap] == size
        ]
        return np.concatenate(parts)

    def check(self, maps: Mapping[str, Any]) -> int:
        """Returns the number of images of `maps`.

        Raises:
          MapError: they are not the maps of this layout.
        """
        found = Layout.of(self.name, maps, self.taps)
        if (found.sizes, found.channels) != (self.sizes, self.channels):
            raise MapError(
                f"model {self.name!r}: maps {_describe(found)} where the layout has "
                f"{_describe(self)}"
            )
        counts = {maps[tap].shape[0] for tap in self.taps}
        if len(counts) != 1:
            raise MapError(f"model {self.name!r}: taps with {sorted(counts)} images")
        return counts.pop()

    def _slices(self) -> Iterator[tuple[int, int, int]]:
        """Yields (tap, first channel, end) of the taps that this block meets."""
        for tap, (offset, count) in enumerate(zip(self.offsets, self.channels, strict=True)):
            low, high = max(self.start - offset, 0), min(self.stop - offset, count)
            if low < high:
                yield tap, low, high


def group(layout: Layout, maps: Maps) -> dict[int, jax.Array]:
    """Maps of one size as one float32 array: size -> `[batch, size, size, units]`.

    The units are those of `layout.units_of(size)`.

    Raises:
      MapError: maps that do not fit the layout.
    """
    layout.check(maps)
    parts: dict[int, list[jax.Array]] = {}
    for tap, low, high in layout._slices():
        array = maps[layout.taps[tap]][..., low:high].astype(jnp.float32)
        parts.setdefault(layout.sizes[tap], []).append(array)
    return {size: jnp.concatenate(parts[size], axis=-1) for size in sorted(parts)}


def _describe(layout: Layout) -> str:
    taps = [
        f"{tap} {size}x{size}x{channels}"
        for tap, size, channels in zip(layout.taps, layout.sizes, layout.channels, strict=True)
    ]
    return ", ".join(taps) if len(taps) <= 6 else f"{', '.join(taps[:6])} and {len(taps) - 6} more"
