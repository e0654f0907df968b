"""A diffusion network that knows how to denoise one picture exactly, and adapters that change it.

Its only layer gives the clean latents; noise or velocity follow in closed form. The picture of an
adapter is then known without sampling, and a photograph of it has loss zero there.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2w import lora
from w2w.diffusion.noise import NoiseProcess

SHAPE, WIDTH = (4, 4, 2), 6
LORA = lora.LoraConfig(rank=1, alpha=4.0, targets=("to_v",))


def process(prediction="epsilon"):
    """Few and mild steps: Stable Diffusion's first weigh 1,000 times as much as its last."""
    return NoiseProcess(20, "linear", beta_start=0.2, beta_end=0.4, prediction=prediction)


class Oracle(nn.Module):
    """Predicts noise or velocity as if the clean latents were those of its layer."""

    process: NoiseProcess

    @nn.compact
    def __call__(self, x, timesteps, features):
        clean = nn.Dense(x[0].size, use_bias=False, name="to_v")(features).reshape(x.shape)
        abar = jnp.asarray(self.process.abar, jnp.float32)[timesteps][:, None, None, None]
        if self.process.prediction == "epsilon":
            return (x - jnp.sqrt(abar) * clean) / jnp.sqrt(1 - abar)
        return (jnp.sqrt(abar) * x - clean) / jnp.sqrt(1 - abar)


def network(prediction="epsilon"):
    """(apply function, parameters, features [1, WIDTH] of the prompt)."""
    oracle = Oracle(process(prediction))
    features = jax.random.normal(jax.random.key(1), (1, WIDTH))
    params = oracle.init(jax.random.key(0), jnp.zeros((1, *SHAPE)), jnp.zeros(1, int), features)

    def apply_fn(params, x, timesteps, condition):
        return oracle.apply({"params": params}, x, timesteps, condition)

    return apply_fn, params["params"], features


def picture(params, features, adapter):
    """Latents [h, w, c] that the network knows with the adapter."""
    return (features @ lora.apply(params, adapter, LORA)["to_v"]["kernel"]).reshape(SHAPE)


class Stops:
    """A writer that fails at a step, as a killed process does."""

    def __init__(self, at):
        self.at = at

    def begin(self, phase, step):
        self.first = step

    def scalars(self, step, values):
        if step == self.at:
            raise KeyboardInterrupt
