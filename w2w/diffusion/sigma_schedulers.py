"""Samplers in terms of the noise level ``sigma = sqrt(1 - abar) / sqrt(abar)``.

Euler's method (Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
2022, algorithm 2 without churn) and DPM-Solver++ (Lu et al., 2022). The interface is that of
:mod:`w2w.diffusion.schedulers`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from w2w.diffusion.noise import NoiseProcess, spaced
from w2w.diffusion.schedulers import Row, State, Table, no_history, rows

_RHO = 7.0  # Karras et al., 2022, eq. 5
_SMALLEST_ABAR = 2.0**-24  # stands for 0, whose sigma is infinite


def _sigmas(process: NoiseProcess) -> np.ndarray:
    """Sigma of every training timestep, ascending."""
    abar = process.abar.copy()
    if process.zero_terminal_snr:
        abar[-1] = _SMALLEST_ABAR
    return np.sqrt((1 - abar) / abar)


def _karras(largest: float, smallest: float, count: int) -> np.ndarray:
    """``count`` sigmas, equally spaced in their 7th roots, descending."""
    ends = largest ** (1 / _RHO), smallest ** (1 / _RHO)
    return np.linspace(*ends, count) ** _RHO


def _times(sigmas: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Fractional timesteps of sigmas, linear in ``log sigma`` between training timesteps."""
    return np.interp(np.log(sigmas), np.log(table), np.arange(len(table)))


def _final(kind: str, table: np.ndarray) -> float:
    if kind == "zero":
        return 0.0
    if kind == "sigma_min":
        return float(table[0])
    raise ValueError(f"final_sigmas_type {kind!r} is not supported; expected zero or sigma_min")


@dataclasses.dataclass(frozen=True)
class Euler:
    """Euler's method on the probability-flow equation ``dx / dsigma = (x - x_0) / sigma``.

    The sample is ``x_0 + sigma e``; the network sees it divided by ``sqrt(sigma^2 + 1)``.

    Attributes:
      process: noise and prediction.
      spacing: see :func:`w2w.diffusion.noise.spaced`; "linspace" timesteps are fractions here.
      offset: likewise.
      karras: space the sigmas as Karras et al. (eq. 5).
      final_sigma: "zero", or "sigma_min" to end at the first training timestep.
    """

    process: NoiseProcess = NoiseProcess()
    spacing: str = "linspace"
    offset: int = 0
    karras: bool = False
    final_sigma: str = "zero"

    @property
    def stochastic(self) -> bool:
        return False

    def table(self, steps: int) -> Table:
        """Coefficients of each call; see :mod:`w2w.diffusion.schedulers`."""
        every = _sigmas(self.process)
        t = spaced(len(every), steps, self.spacing, self.offset).astype(np.float64)
        if self.spacing == "linspace":
            t = np.linspace(len(every) - 1, 0, steps) if steps > 1 else np.zeros(1)
        sigmas = np.interp(t, np.arange(len(every)), every)
        if self.karras:
            sigmas = _karras(sigmas[0], sigmas[-1], steps)
            t = _times(sigmas, every)
        change = np.append(sigmas[1:], _final(self.final_sigma, every)) - sigmas
        if self.process.prediction == "epsilon":
            next_x, next_out = 1.0, change
        else:
            next_x = 1 + change * sigmas / (sigmas**2 + 1)
            next_out = change / np.sqrt(sigmas**2 + 1)
        largest = sigmas.max()
        scale = np.sqrt(largest**2 + 1) if self.spacing == "leading" else largest
        return rows(
            timestep=t,
            input_scale=1 / np.sqrt(sigmas**2 + 1),
            next_x=next_x,
            next_out=next_out,
            start_scale=scale,
        )

    def start(self, noise: jax.Array, table: Mapping[str, Any]) -> State:
        """The state before the first call: noise of the largest sigma."""
        sample = noise * jnp.asarray(table["start_scale"][0], noise.dtype)
        return State(sample, no_history(noise))

    def step(self, row: Row, state: State, output: jax.Array, noise: Any = None) -> State:
        """The state after a call of the network."""
        del noise
        return state._replace(sample=row["next_x"] * state.sample + row["next_out"] * output)


@dataclasses.dataclass(frozen=True)
class DPMSolverPP:
    """DPM-Solver++ of first or second order, multistep (Lu et al., 2022, algorithm 2: "2M").

    The sample is variance preserving, as for DDIM.

    Attributes:
      process: noise and prediction.
      spacing: see :func:`w2w.diffusion.noise.spaced`.
      offset: likewise.
      order: 1 or 2.
      solver: "midpoint" or "heun", how the second-order term is weighted.
      lower_order_final: a last step of first order when there are fewer than 15 steps.
      euler_at_final: a last step of first order always (it is for ``final_sigma="zero"`` anyway).
      karras: space the sigmas as Karras et al. (2022, eq. 5).
      final_sigma: "zero", or "sigma_min" to end at the first training timestep.
    """

    process: NoiseProcess = NoiseProcess()
    spacing: str = "linspace"
    offset: int = 0
    order: int = 2
    solver: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    karras: bool = False
    final_sigma: str = "zero"

    def __post_init__(self):
        if self.order not in (1, 2):
            raise ValueError(f"solver_order {self.order} is not supported; expected 1 or 2")
        if self.solver not in ("midpoint", "heun"):
            raise ValueError(
                f"solver_type {self.solver!r} is not supported; expected midpoint or heun"
            )

    @property
    def stochastic(self) -> bool:
        return False

    def _timesteps(self, steps: int) -> np.ndarray:
        total = self.process.steps
        if self.spacing == "trailing":
            return spaced(total, steps, self.spacing)
        # One more timestep than steps, without the last: the end is sigma's own.
        chosen = spaced(total, steps + 1, self.spacing, self.offset)
        return chosen[:-1]

    def table(self, steps: int) -> Table:
        """Coefficients of each call; see :mod:`w2w.diffusion.schedulers`."""
        every = _sigmas(self.process)
        t = self._timesteps(steps)
        sigmas = every[t]
        if self.karras:
            sigmas = _karras(every[-1], every[0], steps)
            times = _times(sigmas, every)
            rounded = self.process.schedule != "squaredcos_cap_v2"
            # Timesteps are whole numbers in diffusers; under the cosine schedule it truncates.
            t = (times.round() if rounded else times).astype(np.int64)
        after = np.append(sigmas[1:], _final(self.final_sigma, every))
        signal = 1 / np.sqrt(sigmas**2 + 1)
        if self.process.prediction == "epsilon":
            clean_x, clean_out = 1 / signal, -sigmas
        else:
            clean_x, clean_out = signal, -sigmas * signal
        signal_after = 1 / np.sqrt(after**2 + 1)
        shrink = after / sigmas  # exp(-h), where h is the step in log(signal / noise)
        gain = signal_after * (1 - shrink)
        second = self._second_order(steps)
        # Of the steps of second order only: neither end of those has sigma 0.
        h = np.where(second, -np.log(np.where(second, shrink, 1.0)), 1.0)
        h_before = np.append(1.0, np.log(sigmas[:-1] / sigmas[1:]))
        if self.solver == "midpoint":
            slope = 0.5 * gain
        else:
            slope = signal_after * (1 - (1 - shrink) / h)
        slope = np.where(second, slope * h / h_before, 0.0)
        return rows(
            timestep=t,
            input_scale=1.0,
            clean_x=clean_x,
            clean_out=clean_out,
            next_x=shrink * signal_after / signal,
            next_clean=gain + slope,
            next_before=-slope,
        )

    def _second_order(self, steps: int) -> np.ndarray:
        """Which steps are of second order."""
        second = np.full(steps, self.order == 2)
        second[0] = False
        few = self.lower_order_final and steps < 15
        if self.euler_at_final or few or self.final_sigma == "zero":
            second[-1] = False
        return second

    def start(self, noise: jax.Array, table: Mapping[str, Any]) -> State:
        """The state before the first call."""
        del table
        return State(noise, jnp.zeros((1, *noise.shape), noise.dtype))

    def step(self, row: Row, state: State, output: jax.Array, noise: Any = None) -> State:
        """The state after a call of the network."""
        del noise
        x = state.sample
        clean = row["clean_x"] * x + row["clean_out"] * output
        x = row["next_x"] * x + row["next_clean"] * clean + row["next_before"] * state.history[0]
        return state._replace(sample=x, history=clean[None])
