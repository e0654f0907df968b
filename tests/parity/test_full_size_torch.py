"""The UNet of Stable Diffusion 1.5 at its full size equals diffusers', with random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2w.diffusion import component_config, pretrained
from w2w.diffusion.unet import UNet, count_parameters

torch = pytest.importorskip("torch", reason="torch is the oracle of parity tests (extra: test)")
diffusers = pytest.importorskip("diffusers", reason="the oracle of this test (extra: test)")
from tests.parity import tiny_diffusion as tiny  # noqa: E402

# Deselected by default: 12 GB of memory and minutes of one core. Run with `-m full_size`.
pytestmark = [pytest.mark.parity, pytest.mark.full_size, pytest.mark.full_compile]


def test_sd15_unet_at_full_size():
    torch.manual_seed(0)
    with tiny.quiet():
        oracle = diffusers.UNet2DConditionModel(cross_attention_dim=768, sample_size=64).eval()
    config = component_config.unet_config(oracle.config)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 16, 16, 4)).astype(np.float32)
    text = rng.normal(size=(1, 77, 768)).astype(np.float32)
    times = np.array([501], np.int32)
    with torch.no_grad():
        out = oracle(
            torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(times), torch.from_numpy(text)
        ).sample
    expected = out.permute(0, 2, 3, 1).numpy()
    params = pretrained.unet_params(tiny.state(oracle), config)
    del oracle
    assert count_parameters(params) == 859_520_964
    with jax.default_matmul_precision("highest"):
        found = jax.jit(UNet(config).apply)({"params": params}, x, times, text)
    error = np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()
    assert error <= 1e-4, error
    half = np.asarray(jax.jit(UNet(config, jnp.bfloat16).apply)({"params": params}, x, times, text))
    cosine = (half * expected).sum() / np.linalg.norm(half) / np.linalg.norm(expected)
    assert cosine >= 0.999 and np.abs(half - expected).max() > 1e-4 * np.abs(expected).max(), cosine
