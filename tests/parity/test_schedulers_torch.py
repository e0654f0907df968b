"""Every scheduler equals diffusers', step by step, from the same configuration."""

import inspect
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from w2w.diffusion import scheduler_config
from w2w.diffusion.noise import NoiseProcess

torch = pytest.importorskip("torch", reason="torch is the oracle of parity tests (extra: test)")
diffusers = pytest.importorskip("diffusers", reason="the oracle of this test (extra: test)")

pytestmark = [
    pytest.mark.parity,
    # diffusers turns torch tensors into arrays with NumPy 2's new keyword unmet
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

SD = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
V = dict(prediction_type="v_prediction")
ZERO = dict(rescale_betas_zero_snr=True, timestep_spacing="trailing", **V)
CASES = [
    ("DDPMScheduler", dict(**SD, clip_sample=False), 7),
    ("DDPMScheduler", dict(beta_schedule="squaredcos_cap_v2", variance_type="fixed_large"), 7),
    ("DDPMScheduler", dict(**SD, **ZERO, clip_sample=False), 7),
    ("DDPMScheduler", dict(variance_type="fixed_small_log", steps_offset=1), 5),
    ("DDIMScheduler", dict(**SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1), 50),
    ("DDIMScheduler", dict(beta_schedule="linear", clip_sample_range=0.8), 7),
    ("DDIMScheduler", dict(**SD, **ZERO, clip_sample=False), 7),
    ("DDIMScheduler", dict(**SD, **V, timestep_spacing="linspace", clip_sample=False), 7),
    ("PNDMScheduler", dict(**SD, skip_prk_steps=True, steps_offset=1), 50),
    ("PNDMScheduler", dict(**SD, **V, skip_prk_steps=True, set_alpha_to_one=True), 7),
    ("PNDMScheduler", dict(**SD, skip_prk_steps=True), 1),
    ("PNDMScheduler", dict(**SD, skip_prk_steps=True, timestep_spacing="trailing"), 3),
    ("EulerDiscreteScheduler", dict(**SD, steps_offset=1, timestep_spacing="leading"), 7),
    ("EulerDiscreteScheduler", dict(**SD, **V, final_sigmas_type="sigma_min"), 7),
    ("EulerDiscreteScheduler", dict(**SD, use_karras_sigmas=True), 7),
    ("EulerDiscreteScheduler", dict(**SD, **ZERO), 7),
    ("DPMSolverMultistepScheduler", dict(**SD), 20),
    ("DPMSolverMultistepScheduler", dict(**SD, **V, solver_type="heun"), 7),
    ("DPMSolverMultistepScheduler", dict(**SD, solver_order=1, timestep_spacing="leading"), 7),
    ("DPMSolverMultistepScheduler", dict(**SD, use_karras_sigmas=True, steps_offset=1), 7),
    ("DPMSolverMultistepScheduler", dict(**SD, **ZERO, lower_order_final=False), 7),
    ("DPMSolverMultistepScheduler", dict(**SD, final_sigmas_type="sigma_min"), 16),
    (
        "DPMSolverMultistepScheduler",
        dict(beta_schedule="squaredcos_cap_v2", euler_at_final=True, final_sigmas_type="sigma_min"),
        16,
    ),
]


def configured(name, settings):
    """(oracle, ours) from the same file contents."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and diffusers about themselves
        oracle = getattr(diffusers, name)(**settings)
    return oracle, scheduler_config.from_config({"_class_name": name, **settings})


@pytest.mark.parametrize(("name", "settings", "steps"), CASES)
def test_each_step_equals_diffusers(name, settings, steps):
    oracle, ours = configured(name, settings)
    oracle.set_timesteps(steps)
    table = ours.table(steps)
    times = oracle.timesteps.numpy().astype(np.float32)
    # Fractional times of Karras sigmas are interpolated in float32 there.
    np.testing.assert_allclose(table["timestep"], times, rtol=1e-5, atol=1e-3)
    rng = np.random.default_rng(0)
    shape = (2, 3, 3, 1)
    noise = rng.normal(size=shape).astype(np.float32)
    state = ours.start(jnp.asarray(noise), table)
    theirs = torch.from_numpy(noise) * oracle.init_noise_sigma
    np.testing.assert_allclose(state.sample, theirs, rtol=1e-4)
    for i, t in enumerate(oracle.timesteps):
        row = {key: jnp.asarray(value[i]) for key, value in table.items()}
        seen = oracle.scale_model_input(theirs, t)
        np.testing.assert_allclose(state.sample * row["input_scale"], seen, rtol=1e-4, atol=1e-4)
        output = rng.normal(size=shape).astype(np.float32)
        drawn = None
        arguments = {}
        if ours.stochastic:
            arguments["generator"] = torch.Generator().manual_seed(i)
            same = torch.Generator().manual_seed(i)
            drawn = jnp.asarray(torch.randn(shape, generator=same).numpy())
        theirs = oracle.step(torch.from_numpy(output), t, theirs, **arguments).prev_sample
        state = ours.step(row, state, jnp.asarray(output), drawn)
        scale = max(1.0, float(theirs.abs().max()))
        assert np.abs(np.asarray(state.sample) - theirs.numpy()).max() <= 1e-4 * scale, i


def test_ddim_with_noise_equals_diffusers():
    oracle, ours = configured("DDIMScheduler", dict(**SD, clip_sample=False))
    ours = type(ours)(ours.process, ours.spacing, ours.offset, ours.final_is_clean, None, eta=0.7)
    oracle.set_timesteps(5)
    table, rng = ours.table(5), np.random.default_rng(0)
    sample = rng.normal(size=(1, 2, 2, 1)).astype(np.float32)
    state, theirs = ours.start(jnp.asarray(sample), table), torch.from_numpy(sample)
    for i, t in enumerate(oracle.timesteps):
        output, noise = (rng.normal(size=sample.shape).astype(np.float32) for _ in range(2))
        theirs = oracle.step(
            torch.from_numpy(output), t, theirs, eta=0.7, variance_noise=torch.from_numpy(noise)
        ).prev_sample
        row = {key: jnp.asarray(value[i]) for key, value in table.items()}
        state = ours.step(row, state, jnp.asarray(output), jnp.asarray(noise))
        np.testing.assert_allclose(state.sample, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [SD, dict(**SD, **V), dict(beta_schedule="squaredcos_cap_v2")])
def test_noising_and_targets_equal_diffusers(settings):
    oracle, ours = configured("DDPMScheduler", settings)
    rng = np.random.default_rng(0)
    clean, noise = rng.normal(size=(2, 4, 3, 3, 2)).astype(np.float32)
    t = np.array([0, 1, 500, 999], np.int32)
    args = (torch.from_numpy(clean), torch.from_numpy(noise), torch.from_numpy(t).long())
    process: NoiseProcess = ours.process
    np.testing.assert_allclose(process.add_noise(clean, noise, t), oracle.add_noise(*args),
                               rtol=1e-4, atol=1e-5)
    wanted = args[1] if process.prediction == "epsilon" else oracle.get_velocity(*args)
    np.testing.assert_allclose(process.target(clean, noise, t), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", scheduler_config.DEFAULTS)
def test_every_key_of_diffusers_is_known(name):
    """Otherwise a new key could change diffusers' steps and not ours."""
    keys = inspect.signature(getattr(diffusers, name).__init__).parameters.keys() - {"self"}
    assert keys == scheduler_config.DEFAULTS[name].keys() | scheduler_config.ACCEPTED[name].keys()
    for key, value in scheduler_config.DEFAULTS[name].items():
        default = inspect.signature(getattr(diffusers, name).__init__).parameters[key].default
        assert value == default, key
