"""Samplers in the variance-preserving form: DDPM, DDIM and PNDM (PLMS), as pure functions.

A scheduler is a frozen dataclass. On the host, :meth:`table` turns a number of steps into one row
of coefficients for each call of the network, computed in float64; a step is then a few
multiply-adds with one row, so that a whole trajectory is one ``lax.scan`` over the table
(:func:`w2w.diffusion.sampling.sample`). Rows, states and steps are plain pytrees:

* ``table(steps)``: dict of float32 arrays ``[calls, ...]``. All schedulers have ``timestep`` (what
  the network is told) and ``input_scale`` (what the sample is multiplied by for the network).
* ``start(noise, table)``: the state before the first call.
* ``step(row, state, output, noise)``: the state after the call whose prediction is ``output``.
  ``noise`` is standard normal and is used by schedulers with ``stochastic`` only.

Schedulers in the variance-exploding form are in :mod:`w2w.diffusion.sigma_schedulers`; a diffusers
configuration is read by :mod:`w2w.diffusion.scheduler_config`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from w2w.diffusion.noise import NoiseProcess, spaced

Table = dict[str, np.ndarray]
Row = Mapping[str, jax.Array]


class State(NamedTuple):
    """What is carried from call to call.

    Attributes:
      sample: the noisy latents ``[batch, ...]``.
      history: what a multistep method remembers, newest first, ``[orders, batch, ...]``.
      first: the sample of the first call, where a method returns to it, else None.
    """

    sample: jax.Array
    history: jax.Array
    first: jax.Array | None = None


class Scheduler(Protocol):
    """See the module docstring."""

    @property
    def process(self) -> NoiseProcess: ...

    @property
    def stochastic(self) -> bool: ...

    def table(self, steps: int) -> Table: ...

    def start(self, noise: jax.Array, table: Mapping[str, Any]) -> State: ...

    def step(self, row: Row, state: State, output: jax.Array, noise: Any) -> State: ...


def rows(**columns: Any) -> Table:
    """A table from columns; scalars are repeated."""
    calls = len(columns["timestep"])
    return {
        name: np.broadcast_to(np.asarray(value, np.float32), (calls, *np.shape(value)[1:])).copy()
        for name, value in columns.items()
    }


def no_history(sample: jax.Array) -> jax.Array:
    """Empty history for single-step methods."""
    return jnp.zeros((0, *sample.shape), sample.dtype)


def _after(process: NoiseProcess, t: np.ndarray, final: float) -> np.ndarray:
    """``abar`` at timesteps ``t``, or ``final`` where ``t`` is negative."""
    return np.where(t < 0, final, process.abar[np.maximum(t, 0)])


class _ToClean:
    """Step through an estimate of the clean sample, which may be clipped.

    ``x_0 = clean_x x + clean_out output``, then ``next_x x + next_out output + next_clean x_0 +
    next_noise noise``.
    """

    clip: float | None

    def start(self, noise: jax.Array, table: Mapping[str, Any]) -> State:
        del table
        return State(noise, no_history(noise))

    def step(self, row: Row, state: State, output: jax.Array, noise: Any = None) -> State:
        x = state.sample
        clean = row["clean_x"] * x + row["clean_out"] * output
        if self.clip is not None:
            clean = jnp.clip(clean, -self.clip, self.clip)
        x = row["next_clean"] * clean + row["next_x"] * x + row["next_out"] * output
        if noise is not None:
            x = x + row["next_noise"] * noise
        return state._replace(sample=x)


@dataclasses.dataclass(frozen=True)
class DDPM(_ToClean):
    """Ancestral sampling (Ho et al., 2020, algorithm 2 and eq. 7).

    Attributes:
      process: noise and prediction.
      spacing: see :func:`w2w.diffusion.noise.spaced`.
      offset: likewise.
      clip: bound of the estimated clean sample; None for none.
      large_variance: the variance of a step is ``beta`` instead of the posterior's.
    """

    process: NoiseProcess = NoiseProcess()
    spacing: str = "leading"
    offset: int = 0
    clip: float | None = None
    large_variance: bool = False

    @property
    def stochastic(self) -> bool:
        return True

    def table(self, steps: int) -> Table:
        """Coefficients of each call; see the module docstring."""
        process = self.process
        t = spaced(process.steps, steps, self.spacing, self.offset)
        now, after = process.abar[t], _after(process, np.append(t[1:], -1), 1.0)
        clean_x, clean_out = process.to_clean(t)
        alpha = now / after
        variance = 1 - alpha if self.large_variance else (1 - after) / (1 - now) * (1 - alpha)
        return rows(
            timestep=t,
            input_scale=1.0,
            clean_x=clean_x,
            clean_out=clean_out,
            next_clean=np.sqrt(after) * (1 - alpha) / (1 - now),
            next_x=np.sqrt(alpha) * (1 - after) / (1 - now),
            next_out=0.0,
            # The last step, to timestep 0 or before, ends without noise.
            next_noise=np.sqrt(np.where(t > 0, np.maximum(variance, 1e-20), 0.0)),
        )


@dataclasses.dataclass(frozen=True)
class DDIM(_ToClean):
    """Denoising diffusion implicit models (Song et al., 2021, eq. 12).

    Attributes:
      process: noise and prediction.
      spacing: see :func:`w2w.diffusion.noise.spaced`.
      offset: likewise.
      final_is_clean: end at ``abar = 1`` instead of the first timestep's (``set_alpha_to_one``).
      clip: bound of the estimated clean sample; None for none.
      eta: 0 for the deterministic sampler, 1 for DDPM's noise.
    """

    process: NoiseProcess = NoiseProcess()
    spacing: str = "leading"
    offset: int = 0
    final_is_clean: bool = True
    clip: float | None = None
    eta: float = 0.0

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def table(self, steps: int) -> Table:
        """Coefficients of each call; see the module docstring."""
        process = self.process
        t = spaced(process.steps, steps, self.spacing, self.offset)
        final = 1.0 if self.final_is_clean else process.abar[0]
        now, after = process.abar[t], _after(process, t - process.steps // steps, final)
        clean_x, clean_out = process.to_clean(t)
        noise_x, noise_out = process.to_noise(t)
        std = self.eta * np.sqrt((1 - after) / (1 - now) * (1 - now / after))
        direction = np.sqrt(np.maximum(1 - after - std**2, 0.0))
        return rows(
            timestep=t,
            input_scale=1.0,
            clean_x=clean_x,
            clean_out=clean_out,
            next_clean=np.sqrt(after),
            next_x=direction * noise_x,
            next_out=direction * noise_out,
            next_noise=std,
        )


@dataclasses.dataclass(frozen=True)
class PNDM:
    """Pseudo linear multistep sampling (Liu et al., "PNDM", 2022, eqs. 9 and 12).

    The variant of Stable Diffusion ("PLMS", ``skip_prk_steps``): instead of Runge-Kutta steps the
    first step is taken, and retaken with the mean of the predictions at its two ends, so that N
    steps (N > 1) call the network N + 1 times, twice with the second timestep.

    Attributes:
      process: noise and prediction.
      spacing: see :func:`w2w.diffusion.noise.spaced`.
      offset: likewise.
      final_is_clean: end at ``abar = 1`` instead of the first timestep's (``set_alpha_to_one``).
    """

    process: NoiseProcess = NoiseProcess()
    spacing: str = "leading"
    offset: int = 1
    final_is_clean: bool = False

    @property
    def stochastic(self) -> bool:
        return False

    def table(self, steps: int) -> Table:
        """Coefficients of each call; see the module docstring."""
        process = self.process
        t = spaced(process.steps, steps, self.spacing, self.offset)
        stride = process.steps // steps
        told = np.insert(t, 1, t[1]) if steps > 1 else t
        source, target = told.copy(), told - stride
        if steps > 1:  # the second call retakes the first step
            source[1], target[1] = told[1] + stride, told[1]
        if source.max() >= process.steps:
            raise ValueError(f"timestep {source.max()} of {process.steps}; use other steps")
        final = 1.0 if self.final_is_clean else process.abar[0]
        now, after = process.abar[source], _after(process, target, final)
        noise_x, noise_out = process.to_noise(source)
        scale = now * np.sqrt(1 - after) + np.sqrt(now * (1 - now) * after)
        gain = -(after - now) / scale
        weights = np.array([_ADAMS_BASHFORTH[min(max(i - 1, 0), 3)] for i in range(len(told))])
        if steps > 1:
            weights[1] = (0.5, 0.5, 0.0, 0.0)
        second = np.arange(len(told)) == 1
        return rows(
            timestep=told,
            input_scale=1.0,
            weights=weights,
            remember=~second,
            return_to_first=second,
            next_x=np.sqrt(after / now) + gain * noise_x,
            next_out=gain * noise_out,
        )

    def start(self, noise: jax.Array, table: Mapping[str, Any]) -> State:
        """The state before the first call."""
        del table
        return State(noise, jnp.zeros((3, *noise.shape), noise.dtype), noise)

    def step(self, row: Row, state: State, output: jax.Array, noise: Any = None) -> State:
        """The state after a call of the network."""
        del noise
        known = jnp.concatenate([output[None], state.history])
        mixed = jnp.einsum("k,k...->...", row["weights"], known, precision="highest")
        # A where instead of a product: 0 * inf would poison the next sample.
        assert state.first is not None  # set by start
        x = jnp.where(row["return_to_first"] > 0, state.first, state.sample)
        history = jnp.where(row["remember"] > 0, known[:3], state.history)
        return State(row["next_x"] * x + row["next_out"] * mixed, history, state.first)


_ADAMS_BASHFORTH = (
    (1.0, 0.0, 0.0, 0.0),
    (3 / 2, -1 / 2, 0.0, 0.0),
    (23 / 12, -16 / 12, 5 / 12, 0.0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
