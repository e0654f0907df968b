"""Block Krylov iteration over streamed rows: passes, convergence, state between passes."""

import os
import pathlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from common.distributed import barrier, is_main
from common.storage import load_arrays, save_arrays
from w2w.pca.krylov import Ritz, combine, extract, orthonormalise, polish
from w2w.pca.products import Products, checked, over_processes
from w2w.pca.row_blocks import Rows
from w2w.pca.standardised import (
    Standardisation,
    centre,
    estimate,
    exact,
    finish_moments,
    multiply,
    require,
    require_rank,
)


class Pass(NamedTuple):
    """What is known after a pass.

    Attributes:
      number: passes over the data so far.
      change: angle (rad) by which the last product moved the leading subspace.
      error: estimated angle (rad) to the true leading subspace.
      variances: ``[k]`` or fewer, of the components found.
    """

    number: int
    change: float
    error: float
    variances: np.ndarray


@dataclass(frozen=True)
class Options:
    """Of the iteration; see :func:`w2w.pca.streaming.fit`."""

    k: int
    width: int
    tolerance: float
    max_passes: int
    depth: int
    seed: int
    std_floor: float


@dataclass
class State:
    """Krylov basis after ``passes`` passes: ``A [all but the last block] = [blocks] H``."""

    standard: Standardisation
    blocks: list[np.ndarray]
    h: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    passes: int = 0
    done: bool = False
    fresh: int = 0  # blocks at the end of the list that no checkpoint has

    def extend(self, product: np.ndarray) -> None:
        """Takes in the product with the last block."""
        block, coefficients, factor = orthonormalise(product, self.blocks)
        h = np.zeros((len(coefficients) + len(factor), len(coefficients)))
        h[: len(self.h), : self.h.shape[1]] = self.h
        h[:, self.h.shape[1] :] = np.concatenate([coefficients, factor])
        self.h = h
        if block.shape[1]:
            self.blocks.append(block)
            self.fresh += 1

    def restart(self, ritz: Ritz) -> None:
        """Replaces the basis by its best vectors, orthonormal to rounding."""
        self.blocks = [polish(combine(self.blocks, ritz.vectors))]
        self.h = np.zeros((0, 0))
        self.fresh = 1

    @property
    def exhausted(self) -> bool:
        """Whether the basis holds everything that the rows span from the start."""
        return len(self.h) > 0 and self.h.shape[0] == self.h.shape[1]


def randomized(
    rows: Rows,
    products: Products,
    options: Options,
    checkpoint: str | os.PathLike[str] | None,
    on_pass: Callable[[Pass], None] | None,
) -> tuple[Standardisation, np.ndarray, np.ndarray]:
    """``(standardisation, squared singular values [k], components [k, D])``."""
    n, k = rows.shape[0], options.k
    shift, scale = checked(lambda: estimate(rows, options.std_floor))
    store = None if checkpoint is None else Checkpoint(checkpoint, rows, options, shift, scale)
    state = None if store is None else checked(store.load)
    product = None
    if state is None:
        state, product = _first_pass(rows, products, options, shift, scale)
    ritz = None
    while not state.done:
        if product is None:
            standard, last = state.standard, state.blocks[-1]
            title = f"pass {state.passes + 1}"
            product, _ = multiply(rows, products, last, standard.shift, standard.scale, title)
            centre(product, last, standard.delta, n)
            state.passes += 1
        state.extend(product)
        product = None
        ritz = extract(state.h, k, options.width)
        converged = state.passes >= 2 and ritz.error <= options.tolerance
        state.done = state.exhausted or converged or state.passes >= options.max_passes
        if jax.process_count() > 1:  # the decision of process 0, whatever the rounding elsewhere
            state.done = bool(over_processes(np.asarray(state.done))[0])
        if not state.done and len(state.blocks) > options.depth:
            state.restart(ritz)
        if store is not None:
            checked(lambda: store.save(state))
            barrier(f"streaming pass {state.passes}")
        if on_pass is not None:
            variances = ritz.values[:k] / (n - 1)
            on_pass(Pass(state.passes, ritz.change, ritz.error, variances))
    ritz = extract(state.h, k, options.width) if ritz is None else ritz
    require_rank(k, n, ritz.values)
    if ritz.error > options.tolerance:
        warnings.warn(
            f"after {state.passes} passes the {k} components are about {ritz.error:.1e} rad from "
            f"the leading subspace, more than {options.tolerance:.1e}: "
            "the spectrum has little gap there",
            stacklevel=3,
        )
    right = combine(state.blocks, ritz.vectors[:, :k])
    state.blocks.clear()
    right = polish(right)
    return state.standard, ritz.values[:k], np.ascontiguousarray(right.T)


def _first_pass(
    rows: Rows, products: Products, options: Options, shift: np.ndarray, scale: np.ndarray
) -> tuple[State, np.ndarray | None]:
    """Moments, a random orthonormal block and its product: one pass.

    The product is None where a column that seemed to vary does not: its part in the product of
    the test matrix is then not known apart.
    """
    n, d = rows.shape
    rng = np.random.default_rng(options.seed)
    test = rng.standard_normal((d, options.width), np.float32)
    test[scale == 1] = 0  # of unknown scale
    product, moments = multiply(rows, products, test, shift, scale, "pass 1", with_moments=True)
    mean, std = finish_moments(rows, moments, shift, scale, options.std_floor)
    require(options.k, n, std)
    usable = not ((std == 0) & (scale != 1)).any()
    if usable:
        centre(product, test, moments.mean, n)
        product *= np.divide(1, scale * std, out=np.zeros(d), where=std != 0)[:, None].astype(
            np.float32
        )
    test *= (scale * std).astype(np.float32)[:, None]
    block, _, factor = orthonormalise(test)
    state = State(exact(mean, std), [block], passes=1, fresh=1)
    return state, combine([product], np.linalg.pinv(factor)) if usable else None


class Checkpoint:
    """State between passes in a folder: one file for each block, and one that names them.

    The latter is written last and whole, so the folder always holds a complete state. Process 0
    writes; all read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        rows: Rows,
        options: Options,
        shift: np.ndarray,
        scale: np.ndarray,
    ):
        self._folder = pathlib.Path(folder)
        self._path = self._folder / "state.safetensors"
        names = ("k", "width", "depth", "seed", "std_floor")
        self._options: Mapping[str, Any] = {name: getattr(options, name) for name in names} | {
            "shape": list(rows.shape),
            "dtype": str(rows.dtype),
        }
        self._sample = {"shift": shift, "scale": scale}
        self._limit = (options.tolerance, options.max_passes)
        self._files: list[str] = []

    def load(self) -> State | None:
        """The last state, or None where there is none.

        Raises:
          ValueError: it is of other options or other data.
        """
        if not self._path.exists():
            return None
        arrays, header = load_arrays(self._path)
        for name, value in self._options.items():
            if header["options"].get(name) != value:
                raise ValueError(
                    f"{self._path} is of a fit with {name} = {header['options'].get(name)}, "
                    f"not {value}; use another folder"
                )
        for name, value in self._sample.items():
            if not np.array_equal(arrays[name], value):
                raise ValueError(f"{self._path} is of a fit of other weights; use another folder")
        self._files = list(header["files"])
        blocks = [load_arrays(self._folder / name)[0]["block"] for name in self._files]
        standard = exact(arrays["mean"], arrays["std"])
        state = State(standard, blocks, arrays["h"], header["passes"])
        # Another tolerance or limit may ask for more passes of a fit that had ended.
        state.done = header["done"] and (header["limit"] == list(self._limit) or state.exhausted)
        return state

    def save(self, state: State) -> None:
        """Writes the blocks that are new, then the state, then removes what it does not name."""
        if is_main():
            self._folder.mkdir(parents=True, exist_ok=True)
            kept = len(state.blocks) - state.fresh
            self._files = self._files[:kept]
            for i, block in enumerate(state.blocks[kept:], kept):
                name = f"block-{state.passes}-{i}.safetensors"
                save_arrays(self._folder / name, {"block": block})
                self._files.append(name)
            arrays = {"h": state.h, "mean": state.standard.mean, "std": state.standard.std}
            header = {"options": self._options, "files": self._files, "passes": state.passes,
                      "done": state.done, "limit": list(self._limit)}  # fmt: skip
            save_arrays(self._path, {**arrays, **self._sample}, header)
            for path in self._folder.glob("block-*.safetensors"):
                if path.name not in self._files:
                    path.unlink()
        state.fresh = 0
