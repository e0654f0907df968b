"""Networks of the user's own from a configuration, and checkpoint files by hub id."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from common import config as config_lib
from common.storage import load_json
from rosetta import context, experiment
from rosetta.zoo import files, own

MODULE = """
import jax
import jax.numpy as jnp
from rosetta.zoo.tapped import Generator, Tapped

def see(params, images):
    small = images.reshape(len(images), 8, 4, 8, 4, 3).mean((2, 4))
    return {"fine": images @ params, "coarse": small @ params}

def network(size):
    assert size == 32
    return Tapped("colours", see, jax.random.normal(jax.random.key(0), (3, 9)), ("coarse", "fine"))

def make(params, z):
    maps = jnp.tanh(z @ params).reshape(-1, 4, 4, 12)
    images = jnp.repeat(jnp.repeat(maps[..., :3], 8, 1), 8, 2)
    return (images + 1) / 2, {"blocks": maps}

def sample(key, count):
    return jax.random.normal(key, (count, 5))

def generator():
    params = jax.random.normal(jax.random.key(1), (5, 192))
    return Generator("tiles", make, params, ("blocks",), sample)

def number(size):
    return 3

def starred(size):
    return Tapped("a*", see, jnp.zeros((3, 9)), ("fine",))

constant = 1
"""


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(MODULE)
    return path


@pytest.mark.usefixtures("standard_promotion")  # optax.adam: 1 - decay**count
def test_a_run_of_own_networks(module, tmp_path):
    config = config_lib.load("configs/rosetta.py:smoke")
    config.mine.generator.network = f"{module}:generator"
    config.mine.models, config.mine.sizes = (f"{module}:network",), (32,)
    config.mine.images = 8
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, size in (("a.png", (40, 50, 3)), ("b.jpg", (64, 32, 3))):
        Image.fromarray(random.integers(0, 255, size, np.uint8)).save(folder / name)
    (folder / "c.png").write_bytes(b"not a picture")
    config.invert.update(dict(images=1, steps=2, pixel=0.0, folder=str(folder)))
    config.edit.update(dict(steps=2))
    experiment.run(config, tmp_path / "run")
    results = load_json(tmp_path / "run/results.json")
    assert results["units"] == {"tiles": 12, "colours": 18, "colours~0": 18}
    # Colours are mixtures of the generator's first three units.
    assert results["networks"]["colours"]["best_buddies"]["max_r"] > 0.6
    assert results["inversion"]["images"] == {"generated": 1, "yours": 2}
    report = (tmp_path / "run/report.html").read_text()
    assert "no pass with edited maps" in report and not (tmp_path / "run/units.png").exists()


def test_references(module):
    assert own.network(f"{module}:network", 32).layout(32).sizes == (8, 32)
    assert own.generator(f"{module}:generator").size == 32
    assert own.find("rosetta.zoo.shipped:load").__name__ == "load"
    first = own.fingerprint(f"{module}:network")
    assert len(first) == 64 and first == own.fingerprint(f"{module}:generator")
    module.write_text(MODULE + "#")
    assert own.fingerprint(f"{module}:network") != first
    for reference, message in (
        (f"{module}:net", "nets.py has no function 'net'"),
        (f"{module}:constant", "nets.py has no function 'constant'"),
        ("no.such:net", "no.such:net: no module 'no.such'"),
        ("none.py:net", "none.py:net: no file none.py"),
    ):
        with pytest.raises(ValueError, match=message):
            own.find(reference)
    with pytest.raises(ValueError, match="number returns a int, expected rosetta.zoo.tapped.Tap"):
        own.network(f"{module}:number", 32)
    with pytest.raises(ValueError, match="the name 'a.' is empty or has one of"):
        own.network(f"{module}:starred", 32)


def test_two_networks_of_one_name(module):
    config = config_lib.load("configs/rosetta.py:smoke")
    config.mine.generator.network = f"{module}:generator"
    config.mine.models = (f"{module}:network", f"{module}:network")
    config.mine.sizes = (32, 32)
    with pytest.raises(ValueError, match="networks of one name: .'tiles', 'colours', 'colours'"):
        context.zoo(config.mine)


def test_hub_ids(tmp_path, monkeypatch):
    """A file of the hub's cache, without a connection."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for owner, file in (("a", "model.safetensors"), ("b", "pytorch_model.bin"), ("c", "x/y.pth")):
        repository = tmp_path / f"models--{owner}--net"
        snapshot = repository / "snapshots" / ("0" * 40)
        (snapshot / file).parent.mkdir(parents=True)
        (snapshot / file).write_bytes(b"1")
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text("0" * 40)
    assert files.locate("a/net").name == "model.safetensors"
    assert files.locate("b/net").name == "pytorch_model.bin"
    assert files.locate("c/net:x/y.pth").read_bytes() == b"1"
    with pytest.raises(ConnectionError, match="'d/net' is no file, and the hub cannot be reached"):
        files.locate("d/net")
    with pytest.raises(ConnectionError, match="'a/net:other.bin' is no file, and the hub cannot"):
        files.locate("a/net:other.bin")
    with pytest.raises(FileNotFoundError, match="'weights' is no file, nor a hub id such as owner"):
        files.locate("weights")
    file = tmp_path / "here.bin"
    file.write_bytes(b"")
    assert files.locate(file) == file


def test_missing_files_of_the_hub_are_named(monkeypatch):
    """With a connection: the repository is there, the file is not."""
    import huggingface_hub.errors

    asked = []

    def none(repository, file):
        asked.append(file)
        raise huggingface_hub.errors.EntryNotFoundError(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", none)
    with pytest.raises(FileNotFoundError, match="owner/net of the hub has no model.saf"):
        files.locate("owner/net")
    assert asked == ["model.safetensors", "pytorch_model.bin"]


def test_twins_of_own_networks_differ(module):
    config = config_lib.load("configs/rosetta.py:smoke")
    config.mine.generator.network = f"{module}:generator"
    config.mine.models, config.mine.sizes = (f"{module}:network",), (32,)
    networks = context.zoo(ConfigDict({**config.mine, "seed": 0}))
    (twin,) = networks.twins["colours"]
    (model,) = networks.models
    assert twin.name == "colours~0"
    assert not np.array_equal(twin.params, model.params)
    np.testing.assert_array_equal(np.sort(jax.device_get(twin.params), None),
                                  np.sort(jax.device_get(model.params), None))  # fmt: skip
