"""UNet, autoencoder and text encoders of all three generations equal diffusers' and transformers'.

All have random weights; errors are the largest ones, relative to the largest value.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2w.diffusion import component_config, pretrained
from w2w.diffusion.autoencoder import Autoencoder
from w2w.diffusion.layers import apply
from w2w.diffusion.sampling import guided, sample
from w2w.diffusion.schedulers import DDIM, PNDM
from w2w.diffusion.text import TextEncoder
from w2w.diffusion.unet import UNet

torch = pytest.importorskip("torch", reason="torch is the oracle of parity tests (extra: test)")
pytest.importorskip("diffusers", reason="the oracle of these tests (extra: test)")
pytest.importorskip("transformers", reason="the oracle of these tests (extra: test)")
from tests.parity import tiny_diffusion as tiny  # noqa: E402

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4


def assert_close(found, expected, tolerance=TOLERANCE):
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    error = np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()
    print(f"relative max error {error:.1e}")  # pytest -rP
    assert error <= tolerance


def cosine(found, expected):
    value = (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected)
    print(f"cosine {value:.6f}")  # pytest -rP
    return value


def channels_last(tensor):
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def channels_first(array):
    return torch.from_numpy(np.asarray(array)).permute(0, 3, 1, 2)


def inputs(oracle, seed=0):
    """Channels-last noisy latents, timesteps, text and, for SDXL, pooled text and sizes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 8, 8, 4)).astype(np.float32)
    times = np.array([17, 901], np.int32)
    text = rng.normal(size=(2, 5, oracle.config.cross_attention_dim)).astype(np.float32)
    if oracle.config.addition_embed_type is None:
        return x, times, text
    pooled = rng.normal(size=(2, 10)).astype(np.float32)
    sizes = np.array([[64, 48, 0, 8, 64, 64], [32, 32, 4, 0, 64, 48]], np.float32)
    embedded = oracle.config.projection_class_embeddings_input_dim - pooled.shape[1]
    return x, times, text, pooled, sizes[:, : embedded // oracle.config.addition_time_embed_dim]


def torch_unet(oracle, x, times, text, pooled=None, sizes=None):
    added = None
    if pooled is not None:
        added = {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(sizes)}
    out = oracle(
        channels_first(x),
        torch.from_numpy(np.asarray(times)),
        torch.from_numpy(text),
        added_cond_kwargs=added,
    ).sample
    return channels_last(out)


@functools.cache
def both_unets(kind):
    oracle = tiny.unet(kind)
    config = component_config.unet_config(oracle.config, 5 if kind == "refiner" else 6)
    return oracle, config, pretrained.unet_params(tiny.state(oracle), config)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "refiner"])
def test_unet(kind):
    oracle, config, params = both_unets(kind)
    arguments = inputs(oracle)
    with torch.no_grad():
        expected = torch_unet(oracle, *arguments)

    def run(dtype, *arguments):
        return UNet(config, dtype).apply({"params": params}, *arguments)

    with jax.default_matmul_precision("highest"):
        assert_close(jax.jit(functools.partial(run, None))(*arguments), expected)
    if kind in ("sd1", "sdxl"):
        half = np.asarray(jax.jit(functools.partial(run, jnp.bfloat16))(*arguments))
        assert half.dtype == np.float32
        assert cosine(half, expected) >= 0.999
        assert np.abs(half - expected).max() > 0  # bfloat16 was really used


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "DDIMScheduler"])
def test_a_whole_trajectory(scheduler):
    """50 steps with classifier-free guidance."""
    import diffusers

    settings = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    if scheduler == "PNDMScheduler":
        theirs = diffusers.PNDMScheduler(**settings, skip_prk_steps=True, steps_offset=1)
        ours = PNDM()
    else:
        theirs = diffusers.DDIMScheduler(
            **settings, clip_sample=False, set_alpha_to_one=False, steps_offset=1
        )
        ours = DDIM(offset=1, final_is_clean=False)
    oracle, config, params = both_unets("sd1")
    x, _, text = inputs(oracle)
    theirs.set_timesteps(50)
    expected, guidance = channels_first(x[:1]), 3.0
    calls = 0
    with torch.no_grad():
        for t in theirs.timesteps:
            twice = torch.cat([expected, expected])
            out = oracle(twice, t, torch.from_numpy(text)).sample
            expected = theirs.step(out[1:] + guidance * (out[:1] - out[1:]), t, expected)
            expected = expected.prev_sample
            calls += 1
    assert calls == (51 if scheduler == "PNDMScheduler" else 50)

    @jax.jit
    def run(params, x):
        def predict(x, t, text):
            return UNet(config).apply({"params": params}, x, jnp.full((len(x),), t), text)

        return sample(guided(predict, text[:1], text[1:], guidance), x, ours, 50)

    with jax.default_matmul_precision("highest"):
        assert_close(run(params, x[:1]), channels_last(expected))


@pytest.mark.parametrize("old_names", [False, True])
def test_autoencoder(old_names):
    oracle = tiny.vae()
    config, scale = component_config.autoencoder_config(oracle.config)
    assert scale == 0.13025
    tensors = tiny.state(oracle)
    if old_names:
        # The names of files from before diffusers 0.15.
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new, old in names.items():
            tensors = {name.replace(f".{new}.", f".{old}."): t for name, t in tensors.items()}
        assert any("proj_attn" in name for name in tensors)
    params = pretrained.autoencoder_params(tensors, config)
    if old_names:
        new = pretrained.autoencoder_params(tiny.state(oracle), config)
        jax.tree.map(np.testing.assert_array_equal, params, new)
        return
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
    latent = rng.normal(size=(2, 4, 4, 4)).astype(np.float32)
    with torch.no_grad():
        posterior = oracle.encode(channels_first(image)).latent_dist
        decoded = oracle.decode(channels_first(latent)).sample

    @functools.partial(jax.jit, static_argnums=0)
    def run(dtype, image, latent):
        vae = Autoencoder(config, dtype)
        encoded = apply(vae, params, image, method="encode")
        return *encoded, apply(vae, params, latent, method="decode")

    expected = [channels_last(x) for x in (posterior.mean, posterior.logvar, decoded)]
    with jax.default_matmul_precision("highest"):
        for found, wanted in zip(run(None, image, latent), expected, strict=True):
            assert_close(found, wanted)
    for half, wanted in zip(run(jnp.bfloat16, image, latent), expected, strict=True):
        assert cosine(np.asarray(half, np.float32), wanted) >= 0.999
        assert np.abs(np.asarray(half) - wanted).max() > 1e-4  # bfloat16 was really used


@pytest.mark.parametrize(
    "settings",
    [dict(), dict(hidden_act="gelu"), dict(projection=10, hidden_act="gelu"),
     dict(projection=10, eos_token_id=2)],
    ids=["sd1", "sd2", "sdxl", "old end token"],
)
def test_text_encoder(settings):
    oracle = tiny.text_encoder(**settings)
    config = component_config.text_config(oracle.config.to_dict(), "projection" in settings)
    params = pretrained.text_params(tiny.state(oracle), config)
    tokens = np.random.default_rng(0).integers(3, 60, (3, 11))
    tokens[:, 0], tokens[0, 5:], tokens[1, 7:], tokens[2, 10:] = 0, 1, 1, 1
    tokens[1, 3] = 59
    with torch.no_grad():
        out = oracle(torch.from_numpy(tokens), output_hidden_states=True)
    expected = [
        out.last_hidden_state,
        out.hidden_states[-2],
        out.text_embeds if "projection" in settings else out.pooler_output,
    ]
    with jax.default_matmul_precision("highest"):
        found = jax.jit(functools.partial(apply, TextEncoder(config), method="outputs"))(
            params, jnp.asarray(tokens, jnp.int32)
        )
    for value, wanted in zip(found, expected, strict=True):
        assert_close(value, wanted)
    if settings == {}:
        half = TextEncoder(config, jnp.bfloat16)
        value = np.asarray(apply(half, params, jnp.asarray(tokens, jnp.int32)), np.float32)
        assert cosine(value, expected[0].numpy()) >= 0.999


def test_missing_and_unexpected_tensors_are_both_listed():
    oracle, config, _ = both_unets("sd1")
    tensors = tiny.state(oracle)
    tensors["conv_in.wieght"] = tensors.pop("conv_in.weight")
    with pytest.raises(ValueError) as error:
        pretrained.unet_params(tensors, config)
    assert "conv_in/wieght" in str(error.value) and "conv_in/kernel" in str(error.value)
