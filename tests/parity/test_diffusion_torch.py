"""UNet and text encoder equal diffusers' and transformers' with the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2w.diffusion import pretrained
from w2w.diffusion.text import TextConfig, TextEncoder
from w2w.diffusion.unet import UNet, UNetConfig

torch = pytest.importorskip("torch", reason="torch is the oracle of parity tests (extra: test)")


def randomised(module):
    """Every parameter random, so that none is hidden by a zero or one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def state(module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("layers", [1, 2])
def test_unet_equals_diffusers(layers):
    diffusers = pytest.importorskip("diffusers", reason="the oracle of this test (extra: test)")
    oracle = randomised(
        diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=3,
            out_channels=2,
            block_out_channels=(8, 16, 24),
            layers_per_block=layers,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=12,
            attention_head_dim=2,
            norm_num_groups=4,
        )
    )
    config = UNetConfig(3, 2, 1, (8, 16, 24), layers, (True, True, False), 2, 12, 4, 4)
    params = pretrained.unet_params(state(oracle), config)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    text = rng.normal(size=(2, 5, 12)).astype(np.float32)
    times = np.array([17.0, 901.0], np.float32)
    with torch.no_grad():
        expected = oracle(
            torch.tensor(image).permute(0, 3, 1, 2), torch.tensor(times), torch.tensor(text)
        ).sample.permute(0, 2, 3, 1)
    with jax.default_matmul_precision("highest"):
        found = UNet(config).apply({"params": params}, jnp.asarray(image), times, text)
    scale = float(expected.abs().max())
    assert np.abs(np.asarray(found) - expected.numpy()).max() <= 1e-4 * scale


def test_text_encoder_equals_transformers():
    transformers = pytest.importorskip(
        "transformers", reason="the oracle of this test (extra: test)"
    )
    oracle = randomised(
        transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=30,
                hidden_size=16,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=7,
                hidden_act="quick_gelu",
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=0,
            )
        )
    )
    config = TextConfig(30, 7, 16, 2, 4)
    params = pretrained.text_params(state(oracle), config)
    tokens = np.random.default_rng(0).integers(3, 30, (3, 7))
    with torch.no_grad():
        expected = oracle(torch.tensor(tokens)).last_hidden_state.numpy()
    with jax.default_matmul_precision("highest"):
        found = TextEncoder(config).apply({"params": params}, jnp.asarray(tokens))
    assert np.abs(np.asarray(found) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_missing_tensor_is_named():
    config = UNetConfig(3, 2, 1, (8, 16), 1, (True, False), 2, 12, 4, 4)
    with pytest.raises(ValueError, match="conv_in/kernel"):
        pretrained.unet_params({"conv_in.bias": np.zeros(8, np.float32)}, config)
