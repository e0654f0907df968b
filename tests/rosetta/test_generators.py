"""Generators of the paper at small sizes: latent spaces, edits in the pass, NVIDIA's pickles."""

import io
import pickle
import sys
import types

import jax
import numpy as np
import pytest
import torch

from common.nets import biggan, stylegan2, stylegan3
from common.porting import PortingError
from common.restricted_pickle import PickleError, RefusedGlobal
from rosetta import inversion
from rosetta.edits import change_units
from rosetta.inversion import Settings, Weights
from rosetta.zoo import generators, nvidia
from tests.parity.test_stylegan3_reference import official_tensors

random = np.random.default_rng(0)


def small_stylegan2():
    module = stylegan2.StyleGan2(16, 12, 2, 8, 64)
    variables = module.init(jax.random.key(0), np.zeros((1, 12), np.float32))
    params = dict(variables["params"])
    params["mean_latent"] = random.normal(size=12).astype(np.float32)
    return module, {"params": params}


def small_biggan():
    module = biggan.BigGan(((0, 16, 16), (1, 16, 8), (1, 8, 4)), 8, 6, 5, 1)
    z, classes = np.zeros((1, 6), np.float32), np.zeros((1, 5), np.float32)
    return module, dict(module.init(jax.random.key(0), z, classes))


def small_stylegan3():
    layers = stylegan3.stylegan3_layers(16, base=32, most=3, layers=4)
    module = stylegan3.StyleGan3(layers, latent=5, style=6)
    return module, dict(module.init(jax.random.key(0), np.zeros((1, 5), np.float32)))


SMALL = {
    "stylegan2": lambda: generators.stylegan2_generator(*small_stylegan2(), "g"),
    "stylegan2 w+": lambda: generators.stylegan2_generator(*small_stylegan2(), "g", space="w+"),
    "biggan": lambda: generators.biggan_deep(*small_biggan(), "g", 3),
    "stylegan3": lambda: generators.stylegan3_generator(*small_stylegan3(), "g"),
}


@pytest.mark.parametrize("name", SMALL)
def test_edits_inside_the_pass(name):
    generator = SMALL[name]()
    z = generator.sample(jax.random.key(1), 2)
    image, maps = jax.jit(generator.apply)(generator.params, z)
    layout = generator.layout()
    same, found = generator.apply_edited(generator.params, z, lambda tap, x: x)
    np.testing.assert_allclose(same, image, atol=1e-5)
    assert set(found) == set(maps)
    for unit in (0, len(layout) // 2, len(layout) - 1):
        tap, channel = layout.find(unit)
        edit = change_units(layout, {unit: 0.0}, {unit: 0.5})
        changed, after = generator.apply_edited(generator.params, z, edit)
        np.testing.assert_allclose(after[layout.taps[tap]][..., channel], 0.5, atol=1e-5)
        # BigGAN's last channels are cut off, and attention is off at the start of training.
        assert unit > 0 or np.abs(changed - image).max() > 1e-6


def test_spaces_of_latents():
    """The same image from z, from its style, and from a style for each layer."""
    module, variables = small_stylegan2()
    made = {
        space: generators.stylegan2_generator(module, variables, "g", 0.7, space)
        for space in ("z", "w", "w+")
    }
    latents = {space: g.sample(jax.random.key(2), 3) for space, g in made.items()}
    assert [latents[s].shape for s in made] == [(3, 12), (3, 12), (3, 6, 12)]
    assert [g.mean.shape for g in made.values()] == [(12,), (12,), (6, 12)]
    images = {s: jax.jit(g.apply)(g.params, latents[s])[0] for s, g in made.items()}
    np.testing.assert_allclose(images["w"], images["z"], atol=2e-5)
    np.testing.assert_allclose(images["w+"], images["z"], atol=2e-5)
    with pytest.raises(ValueError, match=r"spaces are z, w and w\+, not 'S'"):
        generators.stylegan2_generator(module, variables, "g", space="S")


@pytest.mark.parametrize("space", ["w", "w+"])
@pytest.mark.usefixtures("standard_promotion")  # optax.adam: 1 - decay**count
def test_inversion_in_styles(space):
    generator = generators.stylegan2_generator(*small_stylegan2(), "g", 0.7, space)
    truth = generator.sample(jax.random.key(3), 2)
    images, _ = jax.jit(generator.apply)(generator.params, truth)
    start = generator.sample(jax.random.key(4), 2)
    found = inversion.invert(
        generator, start, (), images, Weights.of(2, activation=0.0, pixel=1.0, prior=1e-4),
        Settings(60, 0.05, (0.9, 0.999)),
    )  # fmt: skip
    assert found.latents.shape == truth.shape
    assert (found.losses[-1] < 0.3 * found.losses[0]).all()


@pytest.mark.parametrize("label", [None, 1])
def test_spaces_of_stylegan3(label):
    """As above, with and without classes, whose mean styles differ."""
    module, variables = small_stylegan3()
    if label is not None:
        module = module.copy(classes=3, embedding=4)
        z = np.zeros((1, 5), np.float32)
        variables = dict(module.init(jax.random.key(0), z, np.zeros(1, np.int32)))
    params = dict(variables["params"])
    params["w_avg"] = random.normal(size=params["w_avg"].shape).astype(np.float32)
    made = {
        space: generators.stylegan3_generator(
            module, {"params": params}, "g", label, 0.7, space=space
        )
        for space in generators.SPACES
    }
    latents = {space: g.sample(jax.random.key(2), 2) for space, g in made.items()}
    rows = 1 + len(module.layers)
    assert [latents[s].shape for s in made] == [(2, 5), (2, 6), (2, rows, 6)]
    assert [g.mean.shape for g in made.values()] == [(5,), (6,), (rows, 6)]
    images = {s: jax.jit(g.apply)(g.params, latents[s])[0] for s, g in made.items()}
    for space in ("w", "w+"):
        np.testing.assert_allclose(images[space], images["z"], atol=2e-5)
    middle = params["w_avg"] if label is None else params["w_avg"][label]
    np.testing.assert_allclose(made["w"].mean, middle)
    with pytest.raises(ValueError, match=r"spaces are z, w and w\+, not 'S'"):
        generators.stylegan3_generator(module, variables, "g", label, space="S")


def test_margins_are_cropped():
    module, variables = small_stylegan3()
    whole = generators.stylegan3_generator(module, variables, "g").layout()
    inner = generators.stylegan3_generator(module, variables, "g", crop=True).layout()
    for tap, before, after in zip(whole.taps, whole.sizes, inner.sizes, strict=True):
        assert after == (before - 20 if before > 16 else before), tap
    with pytest.raises(ValueError, match="class 2 of 0"):
        generators.stylegan3_generator(module, variables, "g", label=2)


class EasyDict(dict):
    pass


def reconstruct(meta):
    raise AssertionError("the file was executed")


@pytest.fixture
def official(monkeypatch):
    """A function that pickles tensors as the official code does, and what it would import."""
    persistence = types.ModuleType("torch_utils.persistence")
    persistence._reconstruct_persistent_obj = reconstruct
    util = types.ModuleType("dnnlib.util")
    util.EasyDict = EasyDict
    for module in ("torch_utils", "dnnlib"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", persistence)
    monkeypatch.setitem(sys.modules, "dnnlib.util", util)
    monkeypatch.setattr(EasyDict, "__module__", "dnnlib.util")
    monkeypatch.setattr(reconstruct, "__module__", "torch_utils.persistence")
    monkeypatch.setattr(reconstruct, "__qualname__", "_reconstruct_persistent_obj")
    monkeypatch.setattr(reconstruct, "__name__", "_reconstruct_persistent_obj")

    class Net(torch.nn.Module):
        def __reduce__(self):
            meta = EasyDict(type="class", module_src="raise SystemExit", class_name="Net")
            meta["state"] = dict(self.__dict__)
            return reconstruct, (meta,), None

    def network(tensors):
        root = Net()
        for name, array in tensors.items():
            *path, last = name.split(".")
            part = root
            for step in path:
                if step not in part._modules:
                    part.add_module(step, torch.nn.Embedding(1, 1) if step == "embed" else Net())
                part = part._modules[step]
            tensor = torch.from_numpy(np.array(array))
            if last == "weight":
                part._parameters[last] = torch.nn.Parameter(tensor)
            else:
                part.register_buffer(last, tensor)
        return root

    def write(path, tensors, **more):
        with open(path, "wb") as file:
            pickle.dump({"G": None, "D": None, "G_ema": network(tensors), **more}, file)
        return path

    return write


def test_stylegan3_pickles(official, tmp_path, monkeypatch):
    module, variables = small_stylegan3()
    tensors = official_tensors(variables["params"])
    path = official(tmp_path / "g.pkl", tensors, training_set_kwargs=EasyDict(size=3))
    found = nvidia.read_generator(path)
    assert set(found) == set(tensors)
    jax.tree.map(np.testing.assert_array_equal, found, tensors)
    loaded = stylegan3.from_tensors(module, found)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    with pytest.raises(PortingError, match="targets not filled"):
        generators.load_stylegan_xl(path, 16, 3)
    with pytest.raises(ValueError, match="configurations t and r, not 's'"):
        generators.load_stylegan3(path, 256, "s")


def test_stylegan2_official_names(official, tmp_path):
    module, variables = small_stylegan2()
    params = jax.device_get(variables["params"])
    tensors = {"mapping.w_avg": params["mean_latent"], "synthesis.b4.const": None}
    tensors["synthesis.b4.const"] = params["constant"][0].transpose(2, 0, 1)
    for index in range(2):
        group = params[f"style{index + 1}"]
        tensors[f"mapping.fc{index}.weight"] = group["kernel"].T
        tensors[f"mapping.fc{index}.bias"] = group["bias"]
    names = {"conv1": "b4.conv1", "to_rgb1": "b4.torgb"}
    for level, size in enumerate((8, 16)):
        names |= {f"convs.{2 * level}": f"b{size}.conv0", f"convs.{2 * level + 1}":
                  f"b{size}.conv1", f"to_rgbs.{level}": f"b{size}.torgb"}  # fmt: skip
    noise = iter(range(5))
    for own, name in names.items():
        group, prefix = params[own], f"synthesis.{name}"
        kernel = group["kernel"].transpose(3, 2, 0, 1)
        tensors[f"{prefix}.weight"] = kernel[:, :, ::-1, ::-1] if "conv0" in name else kernel
        tensors[f"{prefix}.bias"] = group["bias"]
        tensors[f"{prefix}.affine.weight"] = group["modulation"]["kernel"].T
        tensors[f"{prefix}.affine.bias"] = group["modulation"]["bias"]
        if "torgb" not in name:
            tensors[f"{prefix}.noise_const"] = params[f"noise{next(noise)}"][0, :, :, 0]
            tensors[f"{prefix}.noise_strength"] = group["noise_strength"].reshape(())
            tensors[f"{prefix}.resample_filter"] = np.ones((4, 4), np.float32)
    found, mean = nvidia.official_to_rosinality(
        nvidia.read_generator(official(tmp_path / "g.pkl", tensors))
    )
    loaded = stylegan2.from_tensors(module, found, mean)
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], params)
    with pytest.raises(PortingError, match="synthesis.b4.conv2.weight"):
        stylegan2.from_tensors(module, {**found, "synthesis.b4.conv2.weight": mean}, mean)


class Evil:
    def __reduce__(self):
        return eval, ("1 / 0",)


def test_nothing_else_is_read(tmp_path):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"G_ema": Evil()}))
    with pytest.raises(RefusedGlobal, match="evil.pkl: refused: the pickle asks for 'builtins.ev"):
        nvidia.read_generator(path)
    path.write_bytes(pickle.dumps({"G": 1}))
    with pytest.raises(PickleError, match=r"no network 'G_ema', but \['G'\]"):
        nvidia.read_generator(path)
    path.write_bytes(io.BytesIO(b"junk").getvalue())
    with pytest.raises(PickleError, match="evil.pkl: damaged pickle"):
        nvidia.read_generator(path)
