"""Schedulers from the ``scheduler_config.json`` of a diffusers folder.

A key that diffusers' class does not have changes nothing there and is ignored if another class has
it (files keep the keys of the class they were converted from). A key of the class that is not
supported at its value is an error that names it.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from w2w.diffusion.noise import NoiseProcess
from w2w.diffusion.schedulers import DDIM, DDPM, PNDM, Scheduler
from w2w.diffusion.sigma_schedulers import DPMSolverPP, Euler

Config = Mapping[str, Any]

_NOISE_KEYS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
}
_CLIP_KEYS = {"clip_sample": True, "clip_sample_range": 1.0}
_LEADING = {"timestep_spacing": "leading"}
_LINSPACE = {"timestep_spacing": "linspace"}
_SNR = {"rescale_betas_zero_snr": False}
_SIGMA_KEYS = {"use_karras_sigmas": False, "final_sigmas_type": "zero"}

# Keys that are used, with diffusers' values where a file has none.
DEFAULTS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {
        **_NOISE_KEYS, **_CLIP_KEYS, **_LEADING, **_SNR, "variance_type": "fixed_small",
    },
    "DDIMScheduler": {**_NOISE_KEYS, **_CLIP_KEYS, **_LEADING, **_SNR, "set_alpha_to_one": True},
    "PNDMScheduler": {
        **_NOISE_KEYS, **_LEADING, "set_alpha_to_one": False, "skip_prk_steps": False,
    },
    "EulerDiscreteScheduler": {**_NOISE_KEYS, **_LINSPACE, **_SNR, **_SIGMA_KEYS},
    "DPMSolverMultistepScheduler": {
        **_NOISE_KEYS,
        **_LINSPACE,
        **_SNR,
        **_SIGMA_KEYS,
        "solver_order": 2,
        "solver_type": "midpoint",
        "algorithm_type": "dpmsolver++",
        "lower_order_final": True,
        "euler_at_final": False,
    },
}

_THRESHOLDING = {
    "thresholding": (False,),
    "dynamic_thresholding_ratio": None,
    "sample_max_value": None,
}
_OTHER_SIGMAS = {"use_exponential_sigmas": (False, None), "use_beta_sigmas": (False, None)}

# Keys that are not used, with the values at which they change nothing; None for any value, where
# another key decides whether they are looked at.
ACCEPTED: dict[str, dict[str, tuple | None]] = {
    "DDPMScheduler": _THRESHOLDING,
    "DDIMScheduler": _THRESHOLDING,
    "PNDMScheduler": {},
    "EulerDiscreteScheduler": {
        **_OTHER_SIGMAS,
        "sigma_min": (None,),
        "sigma_max": (None,),
        "interpolation_type": ("linear",),
        "timestep_type": ("discrete",),
    },
    "DPMSolverMultistepScheduler": {
        **_THRESHOLDING,
        **_OTHER_SIGMAS,
        "use_lu_lambdas": (False, None),
        "use_flow_sigmas": (False, None),
        "flow_shift": None,
        "lambda_min_clipped": (None, -math.inf, "-Infinity", "-inf"),
        "variance_type": (None,),
        "use_dynamic_shifting": (False,),
        "time_shift_type": None,
    },
}


def from_config(config: Config) -> Scheduler:
    """The scheduler of a diffusers configuration.

    Raises:
      ValueError: an unknown ``_class_name``, or a key or value that is not supported.
    """
    name = config.get("_class_name")
    if name not in _MAKERS:
        raise ValueError(
            f"scheduler class {name!r} is not supported; expected one of {', '.join(_MAKERS)}"
        )
    known = {key for keys in (*DEFAULTS.values(), *ACCEPTED.values()) for key in keys}
    for key, value in config.items():
        accepted = ACCEPTED[name].get(key, None)
        if key.startswith("_") or key in DEFAULTS[name]:
            continue
        if key in ACCEPTED[name]:
            supported = accepted is None or value in accepted
        else:
            supported = key in known or value in (None, False)
        if not supported:
            raise ValueError(f"{name}: {key} = {value!r} is not supported")
    values = {**DEFAULTS[name], **{k: v for k, v in config.items() if k in DEFAULTS[name]}}
    return _MAKERS[name](values, _process(values))


def _process(values: Config) -> NoiseProcess:
    betas = values["trained_betas"]
    return NoiseProcess(
        steps=values["num_train_timesteps"],
        schedule=values["beta_schedule"],
        beta_start=values["beta_start"],
        beta_end=values["beta_end"],
        prediction=values["prediction_type"],
        zero_terminal_snr=bool(values.get("rescale_betas_zero_snr")),
        betas=None if betas is None else tuple(betas),
    )


def _clip(values: Config) -> float | None:
    return float(values["clip_sample_range"]) if values["clip_sample"] else None


def _ddpm(values: Config, process: NoiseProcess) -> Scheduler:
    kind = values["variance_type"]
    if kind not in ("fixed_small", "fixed_small_log", "fixed_large"):
        raise ValueError(f"DDPMScheduler: variance_type = {kind!r} is not supported")
    return DDPM(
        process,
        values["timestep_spacing"],
        values["steps_offset"],
        _clip(values),
        kind == "fixed_large",
    )


def _ddim(values: Config, process: NoiseProcess) -> Scheduler:
    return DDIM(
        process,
        values["timestep_spacing"],
        values["steps_offset"],
        values["set_alpha_to_one"],
        _clip(values),
    )


def _pndm(values: Config, process: NoiseProcess) -> Scheduler:
    if not values["skip_prk_steps"]:
        raise ValueError(
            "PNDMScheduler: skip_prk_steps = False (Runge-Kutta warm-up) is not supported"
        )
    return PNDM(
        process, values["timestep_spacing"], values["steps_offset"], values["set_alpha_to_one"]
    )


def _euler(values: Config, process: NoiseProcess) -> Scheduler:
    return Euler(
        process,
        values["timestep_spacing"],
        values["steps_offset"],
        bool(values["use_karras_sigmas"]),
        values["final_sigmas_type"],
    )


def _dpm(values: Config, process: NoiseProcess) -> Scheduler:
    if values["algorithm_type"] != "dpmsolver++":
        raise ValueError(
            f"DPMSolverMultistepScheduler: algorithm_type = {values['algorithm_type']!r} is not "
            "supported; expected dpmsolver++"
        )
    return DPMSolverPP(
        process,
        values["timestep_spacing"],
        values["steps_offset"],
        values["solver_order"],
        values["solver_type"],
        bool(values["lower_order_final"]),
        bool(values["euler_at_final"]),
        bool(values["use_karras_sigmas"]),
        values["final_sigmas_type"],
    )


_MAKERS: dict[str, Callable[[Config, NoiseProcess], Scheduler]] = {
    "DDPMScheduler": _ddpm,
    "DDIMScheduler": _ddim,
    "PNDMScheduler": _pndm,
    "EulerDiscreteScheduler": _euler,
    "DPMSolverMultistepScheduler": _dpm,
}
