"""StyleGAN3 and StyleGAN-XL against float64 references written here, layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.nets import resample_filters, stylegan3
from common.nets.stylegan3 import StyleGan3, stylegan3_layers, stylegan_xl_layers
from common.porting import PortingError

pytestmark = pytest.mark.parity
random = np.random.default_rng(0)


def kaiser_beta(taps, width):
    attenuation = 2.285 * (taps - 1) * np.pi * width + 7.95
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation > 21:
        return 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    return 0.0


def lowpass(taps, cutoff, half_width, rate):
    """A sinc under a Kaiser window."""
    if taps == 1:
        return np.ones(1)
    t = np.arange(taps) - (taps - 1) / 2
    window = np.kaiser(taps, kaiser_beta(taps, 2 * half_width / (rate / 2)))
    kernel = np.sinc(2 * cutoff / rate * t) * window
    return kernel / kernel.sum()


def bessel(x):
    """J1 by its integral, 1/pi int_0^pi cos(t - x sin t) dt."""
    t = (np.arange(4000) + 0.5) * np.pi / 4000
    return np.cos(t - np.multiply.outer(x, np.sin(t))).mean(-1)


def radial(taps, cutoff, half_width, rate):
    t = (np.arange(taps) - (taps - 1) / 2) / rate
    r = np.sqrt(t[:, None] ** 2 + t[None] ** 2)
    window = np.kaiser(taps, kaiser_beta(taps, 2 * half_width / (rate / 2)))
    kernel = bessel(2 * np.pi * cutoff * r) / (np.pi * r) * window[:, None] * window[None]
    return kernel / kernel.sum()


def fir(x, kernel):
    """A valid two-dimensional filter of one map, written out."""
    n, m = kernel.shape
    rows, columns = x.shape[0] - n + 1, x.shape[1] - m + 1
    result = np.zeros((rows, columns))
    for i in range(n):
        for j in range(m):
            result += kernel[i, j] * x[i : i + rows, j : j + columns]
    return result


def reference_layer(spec, p, x, w):
    """One layer on one image `[s, s, channels]` with weights modulated for it, float64."""
    style = w @ np.float64(p["affine"]["kernel"]) / np.sqrt(len(w)) + p["affine"]["bias"]
    kernel = np.float64(p["kernel"])
    gain = 1 / np.sqrt(np.float64(p["magnitude_ema"]))
    if spec.colours:
        weights = kernel * (style / np.sqrt(spec.in_channels * spec.kernel**2))[:, None]
    else:
        kernel = kernel / np.sqrt((kernel**2).mean((0, 1, 2)))
        weights = kernel * (style / np.sqrt((style**2).mean()))[:, None]
        weights = weights / np.sqrt((weights**2).sum((0, 1, 2)) + 1e-8)
    pad = spec.kernel - 1
    x = np.pad(np.float64(x) * gain, ((pad, pad), (pad, pad), (0, 0)))
    maps = []
    for out in range(spec.channels):
        y = sum(fir(x[:, :, c], weights[:, :, c, out]) for c in range(spec.in_channels))
        y = y + np.float64(p["bias"])[out]
        spread = np.zeros([n * spec.up for n in y.shape])
        spread[:: spec.up, :: spec.up] = y
        low, high = spec.padding
        spread = np.pad(spread, (max(low, 0), max(high, 0)))
        if low < 0:
            spread = spread[-low:, -low:]
        if high < 0:
            spread = spread[:high, :high]
        up = lowpass(spec.up_taps, spec.in_cutoff, spec.in_half_width, spec.inner_rate)
        y = fir(spread, np.outer(up, up) * spec.up**2)
        if not spec.colours:
            y = np.where(y > 0, y, 0.2 * y) * np.sqrt(2)
        y = np.clip(y, -256, 256)
        band = (spec.down_taps, spec.cutoff, spec.half_width, spec.inner_rate)
        down = radial(*band) if spec.radial and spec.down_taps > 1 else lowpass(*band)
        down = down if down.ndim == 2 else np.outer(down, down)
        maps.append(fir(y, down)[:: spec.down, :: spec.down])
    return np.stack(maps, -1)


def reference_input(spec, p, w):
    """The Fourier features of one image, one position at a time, float64."""
    first = spec[0]
    t = w @ np.float64(p["affine"]["kernel"]) / np.sqrt(len(w)) + p["affine"]["bias"]
    c, s, right, down = t / np.hypot(t[0], t[1])
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    move = np.array([[1, 0, -right], [0, 1, -down], [0, 0, 1]])
    whole = turn @ move @ np.float64(p["transform"])
    result = np.zeros((first.in_size, first.in_size, first.in_channels))
    for row in range(first.in_size):
        for column in range(first.in_size):
            at = (np.array([column, row]) + 0.5 - first.in_size / 2) / first.in_rate
            for channel in range(first.in_channels):
                f = np.float64(p["freqs"])[channel]
                turned = f @ whole[:2, :2]
                phase = np.float64(p["phases"])[channel] + f @ whole[:2, 2]
                beyond = (np.hypot(*turned) - first.in_cutoff) / (
                    first.in_rate / 2 - first.in_cutoff)
                value = np.sin(2 * np.pi * (turned @ at + phase)) * np.clip(1 - beyond, 0, 1)
                result[row, column, channel] = value
    return result @ np.float64(p["kernel"]) / np.sqrt(first.in_channels)


def randomised(shapes):
    """Random parameters; the running magnitude is positive."""

    def leaf(path, shape):
        name = path[-1].key
        values = random.normal(size=shape.shape)
        if name == "magnitude_ema":
            values = np.asarray(1.7)
        if name == "freqs":
            values = values * 1.5
        if [p.key for p in path][-2:] == ["affine", "bias"]:
            values = values * 0.3 + 1
        return np.asarray(values, np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


CONFIGS = {
    "t": dict(base=32, most=3, layers=4),
    "r": dict(base=32, most=3, layers=4, kernel=1, radial=True),
}


@pytest.mark.parametrize("config", CONFIGS)
def test_every_layer(config):
    layers = stylegan3_layers(16, **CONFIGS[config])
    module = StyleGan3(layers, latent=5, style=6)
    z = random.normal(size=(2, 5)).astype(np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), z)["params"]
    params = randomised(shapes)
    image, taps = jax.jit(lambda p, z: module.apply({"params": p}, z, psi=0.7))(params, z)
    assert {layer.radial for layer in layers} == ({False} if config == "t" else {False, True})
    for index in range(2):
        x = np.float64(z[index]) / np.sqrt((np.float64(z[index]) ** 2).mean() + 1e-8)
        for name in ("fc0", "fc1"):
            x = 0.01 * (x @ np.float64(params[name]["kernel"]) / np.sqrt(len(x))
                        + params[name]["bias"])
            x = np.where(x > 0, x, 0.2 * x) * np.sqrt(2)
        w = params["w_avg"] + 0.7 * (x - params["w_avg"])
        expected = reference_input(layers, params["input"], w)
        np.testing.assert_allclose(taps["input"][index], expected, atol=2e-5)
        for layer in layers:
            expected = reference_layer(layer, params[layer.name], expected, w)
            assert taps[layer.name].shape[1:] == (layer.size, layer.size, layer.channels)
            scale = np.abs(expected).max()
            np.testing.assert_allclose(taps[layer.name][index] / scale, expected / scale, atol=1e-5)
        np.testing.assert_allclose(image[index], expected / 4, rtol=1e-4, atol=1e-4)
    one = jax.jit(lambda p, w: module.apply({"params": p}, w, method="synthesise")[0])
    mean = np.tile(params["w_avg"], (1, len(layers) + 1, 1))
    np.testing.assert_allclose(one(params, mean), one(params, mean[:, 0]), atol=1e-5)


def test_classes_are_embedded():
    layers = stylegan3_layers(16, base=32, most=2, layers=4)
    module = StyleGan3(layers, latent=4, style=6, classes=3, embedding=5)
    z, label = random.normal(size=(2, 4)).astype(np.float32), np.array([2, 0])
    shapes = jax.eval_shape(module.init, jax.random.key(0), z, label)["params"]
    params = randomised(shapes)
    found = module.apply({"params": params}, z, label, method="styles")

    def active(x, p, rate):
        x = rate * (x @ np.float64(p["kernel"]) / np.sqrt(x.shape[1]) + p["bias"])
        return np.where(x > 0, x, 0.2 * x) * np.sqrt(2)

    def normal(x):
        return x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-8)

    y = active(np.float64(params["embed"])[label], params["embed_proj"], 1.0)
    x = np.concatenate([normal(np.float64(z)), normal(y)], 1)
    for name in ("fc0", "fc1"):
        x = active(x, params[name], 0.01)
    np.testing.assert_allclose(found, x, rtol=2e-5, atol=1e-8)
    mean = module.apply({"params": params}, label, method="mean")
    np.testing.assert_array_equal(mean, params["w_avg"][label])
    with pytest.raises(ValueError, match="of 3 classes needs a label"):
        module.apply({"params": params}, z, method="styles")


def test_filters():
    band = (12, 2.0, 1.3, 16.0)
    np.testing.assert_allclose(resample_filters.kaiser_lowpass(*band), lowpass(*band), atol=1e-12)
    np.testing.assert_allclose(resample_filters.radial_lowpass(*band), radial(*band), atol=1e-8)
    odd = resample_filters.radial_lowpass(5, 2.0, 1.3, 16.0)
    assert np.isfinite(odd).all() and odd.argmax() == 12


XL_256 = (
    [f"L{i}_36_1024" for i in (*range(8), 9)] + [f"L{i}_52_1024" for i in range(10, 15)]
    + [f"L{i}_84_1024" for i in range(15, 20)]
    + ["L20_148_1024", "L21_148_861", "L22_148_724", "L23_148_609", "L24_148_609"]
    + ["L25_276_512", "L26_276_431", "L27_276_362", "L28_276_304", "L29_276_256"]
    + ["L30_256_256", "L31_256_3"]
)  # fmt: skip


def test_published_layers():
    """Names, sizes and channels as in the released StyleGAN-XL of 256 pixels."""
    assert [layer.name for layer in stylegan_xl_layers(256)] == XL_256
    stem = [layer.name for layer in stylegan_xl_layers(16)]
    assert stem == [f"L{i}_36_1024" for i in range(9)] + ["L9_16_1024", "L10_16_3"]
    counts = {size: len(stylegan_xl_layers(size)) for size in (16, 32, 64, 128, 256, 512)}
    assert counts == {16: 11, 32: 16, 64: 21, 128: 26, 256: 31, 512: 36}
    with pytest.raises(ValueError, match="of 48 pixels; sizes are 16 times powers of two"):
        stylegan_xl_layers(48)
    for size, units in ((512, 10973), (1024, 9893)):
        layers = stylegan3_layers(size, base=65536, most=1024, kernel=1, radial=True)
        assert layers[0].in_channels + sum(layer.channels for layer in layers) == units
        assert layers[0].in_size == 36 and layers[-1].size == size


def test_parameters_of_the_published_stylegan_xl():
    module = StyleGan3(stylegan_xl_layers(256), latent=64, classes=1000)
    z = jax.ShapeDtypeStruct((1, 64), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), z, label)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert round(count / 1e6, 1) == pytest.approx(233.4, abs=1.0)


def test_official_names():
    module = StyleGan3(stylegan3_layers(16, base=32, most=2, layers=4), latent=4, style=6)
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 4), np.float32))["params"]
    params = randomised(shapes)
    tensors = official_tensors(params)
    tensors["synthesis.L0_36_2.up_filter"] = np.zeros(12, np.float32)
    loaded = stylegan3.from_tensors(module, tensors)["params"]
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    other = StyleGan3(stylegan3_layers(16, base=32, most=4, layers=4), latent=4, style=6)
    with pytest.raises(PortingError, match="L0_36_2/kernel"):
        stylegan3.from_tensors(other, tensors)


def official_tensors(params):
    """The parameters by the names of the released pickles."""
    found = {"mapping.w_avg": params["w_avg"]}
    for name, group in params.items():
        if name.startswith("fc") or name == "embed_proj":
            found[f"mapping.{name}.weight"] = group["kernel"].T
            found[f"mapping.{name}.bias"] = group["bias"]
        elif name == "input" or name.startswith("L"):
            for key, value in group.items():
                if key == "affine":
                    found[f"synthesis.{name}.affine.weight"] = value["kernel"].T
                    found[f"synthesis.{name}.affine.bias"] = value["bias"]
                elif key == "kernel":
                    moved = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
                    found[f"synthesis.{name}.weight"] = moved
                else:
                    found[f"synthesis.{name}.{key}"] = value
    return found
