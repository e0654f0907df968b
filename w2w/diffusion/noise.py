"""The discrete noising process of DDPM: schedules of noise, targets of training, timesteps.

``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e`` with ``e`` standard normal and ``abar_t`` the
product of ``1 - beta_s`` for ``s <= t``, ``t`` in 0 .. N - 1 (Ho et al., "Denoising Diffusion
Probabilistic Models", 2020, eq. 4). A network predicts the noise ``e`` ("epsilon") or the velocity
``v = sqrt(abar_t) e - sqrt(1 - abar_t) x_0`` ("v_prediction"; Salimans and Ho, "Progressive
Distillation", 2022, appendix D).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

PREDICTIONS = ("epsilon", "v_prediction")


@dataclasses.dataclass(frozen=True)
class NoiseProcess:
    """How much noise each timestep has, and what the network predicts.

    Attributes:
      steps: number N of training timesteps.
      schedule: of the betas: "linear" from ``beta_start`` to ``beta_end``, "scaled_linear" (linear
        in their square roots), or "squaredcos_cap_v2" (Nichol and Dhariwal, 2021, eq. 17).
      beta_start: first beta of the linear schedules.
      beta_end: last beta of the linear schedules.
      prediction: "epsilon" or "v_prediction".
      zero_terminal_snr: rescale so that the last timestep is pure noise (Lin et al., "Common
        Diffusion Noise Schedules and Sample Steps Are Flawed", 2024, algorithm 1).
      betas: given instead of a schedule; None for the schedule.

    The defaults are Stable Diffusion's.
    """

    steps: int = 1000
    schedule: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction: str = "epsilon"
    zero_terminal_snr: bool = False
    betas: tuple[float, ...] | None = None

    def __post_init__(self):
        if self.prediction not in PREDICTIONS:
            raise ValueError(
                f"prediction_type {self.prediction!r} is not supported; expected one of "
                f"{', '.join(PREDICTIONS)}"
            )
        if self.betas is not None and len(self.betas) != self.steps:
            raise ValueError(f"{len(self.betas)} betas for {self.steps} timesteps")
        self.abar  # noqa: B018 - an unknown schedule is an error here, not at first use

    @functools.cached_property
    def abar(self) -> np.ndarray:
        """``abar_t``, float64 ``[steps]``, decreasing."""
        betas = _betas(self) if self.betas is None else np.asarray(self.betas, np.float64)
        abar = np.cumprod(1.0 - betas)
        if self.zero_terminal_snr:
            root = np.sqrt(abar)
            abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        return abar

    def add_noise(self, clean: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
        """``x_t`` of ``clean`` and ``noise [batch, ...]`` at ``timesteps``, int ``[batch]``."""
        signal, sigma = self._roots(timesteps, clean)
        return signal * clean + sigma * noise

    def target(self, clean: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
        """What the network should predict: the noise, or the velocity."""
        if self.prediction == "epsilon":
            return noise
        signal, sigma = self._roots(timesteps, clean)
        return signal * noise - sigma * clean

    def _roots(self, timesteps: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
        """``sqrt(abar)`` and ``sqrt(1 - abar)`` shaped for broadcasting to ``like``."""
        shape = timesteps.shape + (1,) * (like.ndim - timesteps.ndim)
        tables = np.sqrt(self.abar), np.sqrt(1.0 - self.abar)
        signal, sigma = (jnp.asarray(x, like.dtype)[timesteps].reshape(shape) for x in tables)
        return signal, sigma

    def to_clean(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients ``(a, b)`` of ``x_0 = a x_t + b output``, float64, at timesteps ``t``."""
        signal, sigma = np.sqrt(self.abar[t]), np.sqrt(1.0 - self.abar[t])
        if self.prediction == "v_prediction":
            return signal, -sigma
        if np.any(signal == 0.0):
            raise ValueError("a timestep without signal (zero_terminal_snr) needs v_prediction")
        return 1.0 / signal, -sigma / signal

    def to_noise(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients ``(a, b)`` of ``e = a x_t + b output``, float64, at timesteps ``t``."""
        if self.prediction == "epsilon":
            return np.zeros(np.shape(t)), np.ones(np.shape(t))
        return np.sqrt(1.0 - self.abar[t]), np.sqrt(self.abar[t])


def _betas(process: NoiseProcess) -> np.ndarray:
    start, end, n = process.beta_start, process.beta_end, process.steps
    if process.schedule == "linear":
        return np.linspace(start, end, n)
    if process.schedule == "scaled_linear":
        return np.linspace(math.sqrt(start), math.sqrt(end), n) ** 2
    if process.schedule == "squaredcos_cap_v2":
        grid = np.arange(n + 1) / n
        signal = np.cos((grid + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1.0 - signal[1:] / signal[:-1], 0.999)
    raise ValueError(
        f"beta_schedule {process.schedule!r} is not supported; expected linear, scaled_linear or "
        "squaredcos_cap_v2"
    )


def spaced(total: int, count: int, spacing: str, offset: int = 0) -> np.ndarray:
    """``count`` timesteps out of ``total``, descending, int64 (Lin et al., 2024, table 2).

    Args:
      total: number of training timesteps.
      count: number of timesteps to choose.
      spacing: "leading" (multiples of ``total // count``, plus ``offset``), "linspace" (both ends
        included) or "trailing" (from the last one down).
      offset: of the leading timesteps.

    Raises:
      ValueError: an unknown spacing, or a count out of range.
    """
    if not 1 <= count <= total:
        raise ValueError(f"{count} sampling steps of {total} training timesteps")
    chosen: np.ndarray
    if spacing == "leading":
        chosen = np.arange(count)[::-1] * (total // count) + offset
    elif spacing == "linspace":
        chosen = np.linspace(0, total - 1, count).round()[::-1]
    elif spacing == "trailing":
        chosen = np.round(np.arange(total, 0, -total / count)) - 1
    else:
        raise ValueError(
            f"timestep_spacing {spacing!r} is not supported; expected leading, linspace or trailing"
        )
    chosen = chosen.astype(np.int64)
    if chosen.max() >= total:
        raise ValueError(f"timestep {chosen.max()} (offset {offset}) of {total} training timesteps")
    return chosen
