"""Noise schedules, samplers, guidance and delayed injection against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2w.diffusion import flow, sampling, scheduler_config
from w2w.diffusion.noise import NoiseProcess, spaced
from w2w.diffusion.schedulers import DDIM, DDPM, PNDM
from w2w.diffusion.sigma_schedulers import DPMSolverPP, Euler

SCHEDULERS = [DDPM(), DDIM(), PNDM(), Euler(), DPMSolverPP()]


def test_constants_of_stable_diffusion():
    abar = NoiseProcess().abar
    assert f"{abar[0]:.8f} {abar[999]:.8f}" == "0.99915000 0.00466010"
    np.testing.assert_allclose(abar[0], 0.99914998, atol=2e-8)


def test_plms_calls():
    times = PNDM().table(50)["timestep"]
    assert len(times) == 51
    assert list(times[:4]) == [981, 961, 961, 941] and times[-1] == 1
    assert np.all(np.diff(times[2:]) == -20)
    ddim = DDIM(offset=1).table(50)["timestep"]
    assert len(ddim) == 50 and (ddim[0], ddim[-1]) == (981, 1)


def test_edited_calls():
    found = [sampling.edited_calls(PNDM(), 50, t) for t in (1000, 981, 800, 700, 600, 400, 0)]
    assert found == [51, 51, 40, 35, 30, 20, 0]


def test_the_sampler_calls_the_edited_weights_as_often():
    """They are the last ones of the 51 calls; the ones before have the original weights."""
    weights = []

    def denoise(weight, x, t):
        jax.debug.callback(lambda weight: weights.append(int(weight)), weight, ordered=True)
        return x

    @jax.jit
    def run(threshold):
        denoiser = sampling.delayed(denoise, 0, 1, threshold)
        return sampling.sample(denoiser, jnp.ones((1, 1)), PNDM(), 50)

    for threshold, edited in ((981, 51), (800, 40), (700, 35), (600, 30), (400, 20), (0.5, 0)):
        weights.clear()
        run(float(threshold))
        jax.effects_barrier()
        assert weights == [0] * (51 - edited) + [1] * edited, threshold


@pytest.mark.parametrize("steps", [2, 50])
def test_the_network_is_traced_once_for_all_steps(steps):
    """Compile time does not grow with the steps."""
    traced = []

    def denoise(x, t, *more):
        traced.append(t)
        return x

    latents = jnp.zeros((1, 2, 2, 1))
    for scheduler in SCHEDULERS:
        sample = functools.partial(sampling.sample, denoise, scheduler=scheduler, steps=steps)
        jax.eval_shape(sample, latents, key=jax.random.key(0))
    jax.eval_shape(lambda x: flow.sample(denoise, x, steps), latents)
    assert len(traced) == len(SCHEDULERS) + 1


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", [DDPM, DDIM, PNDM, Euler, DPMSolverPP])
def test_an_exact_network_gives_the_clean_sample(kind, prediction):
    """With the true prediction for one known image, every sampler ends at that image."""
    process = NoiseProcess(prediction=prediction)
    scheduler = kind(process)
    clean = jax.random.normal(jax.random.key(0), (1, 3, 3, 2))
    abar = jnp.asarray(process.abar, jnp.float32)

    def denoise(x, t):
        signal, sigma = (jnp.interp(t, jnp.arange(1000.0), f) for f in (abar**0.5, (1 - abar)**0.5))
        noise = (x - signal * clean) / sigma
        return noise if prediction == "epsilon" else signal * noise - sigma * clean

    x = sampling.sample(
        denoise, jax.random.normal(jax.random.key(1), clean.shape), scheduler, 20, jax.random.key(2)
    )
    # Samplers that end at the first timestep's noise level keep a little noise.
    np.testing.assert_allclose(x, clean, atol=0.15)


def test_injection_switches_once_and_is_exact_at_the_ends():
    scheduler, latents = PNDM(), jax.random.normal(jax.random.key(0), (1, 2, 2, 4))
    matrices = jax.random.normal(jax.random.key(1), (2, 4, 4)) / 4
    original, edited = ({"w": m} for m in matrices)

    def denoise(weights, x, t):
        return jnp.tanh(jnp.matmul(x, weights["w"])) * (1 + t / 1000)

    @jax.jit
    def switched(threshold):
        return sampling.sample(
            sampling.delayed(denoise, original, edited, threshold), latents, scheduler, 50
        )

    def constant(weights):
        return jax.jit(
            lambda: sampling.sample(lambda x, t: denoise(weights, x, t), latents, scheduler, 50)
        )()

    np.testing.assert_array_equal(switched(981), switched(1000))
    np.testing.assert_array_equal(switched(1000), constant(edited))
    np.testing.assert_array_equal(switched(0), constant(original))
    assert jnp.abs(switched(500) - switched(1000)).max() > 1e-3
    assert jnp.abs(switched(500) - switched(0)).max() > 1e-3


def test_guidance_is_the_formula_in_one_batch():
    shapes = []

    def predict(x, t, condition):
        shapes.append(x.shape)
        return x * t + condition["c"]

    x = jnp.ones((2, 3))
    c, n = {"c": jnp.full((2, 3), 5.0)}, {"c": jnp.full((2, 3), -1.0)}
    t = jnp.asarray(2.0)
    np.testing.assert_allclose(sampling.guided(predict, c, n, 3.0)(x, t), 2 + -1 + 3 * 6)
    np.testing.assert_allclose(sampling.guided(predict, c, None, 3.0)(x, t), 7.0)
    assert shapes == [(4, 3), (2, 3)]


def test_bad_schedules_are_refused():
    for make in (
        lambda: NoiseProcess(schedule="sigmoid"),
        lambda: NoiseProcess(prediction="sample"),
        lambda: NoiseProcess(betas=(0.1,)),
        lambda: spaced(1000, 1001, "leading"),
        lambda: spaced(1000, 10, "even"),
        lambda: DPMSolverPP(order=3),
        lambda: DDIM(NoiseProcess(zero_terminal_snr=True), "trailing").table(5),
        lambda: sampling.sample(lambda x, t: x, jnp.zeros((1, 2)), DDPM(), 2),
    ):
        with pytest.raises(ValueError):
            make()


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"_class_name": "HeunDiscreteScheduler"}, "HeunDiscreteScheduler"),
        ({"_class_name": "PNDMScheduler"}, "skip_prk_steps"),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, "thresholding"),
        ({"_class_name": "DDIMScheduler", "new_key": 3}, "new_key"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned"}, "variance_type"),
        ({"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True}, "use_beta_sigmas"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
            "algorithm_type",
        ),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "laplace"}, "laplace"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "sample"}, "prediction_type"),
    ],
)
def test_what_a_configuration_asks_in_vain_is_named(config, named):
    with pytest.raises(ValueError, match=named):
        scheduler_config.from_config(config)


def test_keys_of_other_schedulers_are_ignored():
    """Files keep the keys of the class they were converted from."""
    found = scheduler_config.from_config(
        {"_class_name": "DDIMScheduler", "skip_prk_steps": True, "clip_sample": False,
         "_diffusers_version": "0.6.0", "something_off": None}
    )
    assert found == DDIM(NoiseProcess(schedule="linear", beta_start=1e-4, beta_end=0.02))
