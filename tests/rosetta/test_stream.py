"""One pass from latents to sums: resumed, on several devices, and with the wrong file."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.sharding import make_mesh
from rosetta import mining, stream, tables
from rosetta.zoo.tapped import Generator, Tapped
from tests.rosetta.maps import brute_force


@pytest.fixture(scope="module")
def networks():
    random = np.random.default_rng(0)

    def weights(*shape):
        return random.normal(size=shape).astype(np.float32)

    def make(params, z):
        small = jnp.tanh(z @ params["a"]).reshape(-1, 4, 4, 5)
        large = jnp.repeat(jnp.repeat(small, 2, 1), 2, 2) @ params["b"]
        return jax.nn.sigmoid(large[..., :3]), {"small": small, "large": large}

    def see(params, images):
        return {"only": (images - 0.5) @ params}

    def sample(key, count):
        return jax.random.normal(key, (count, 6))

    params = {"a": weights(6, 80), "b": weights(5, 7)}
    generator = Generator("gan", make, params, ("small", "large"), sample)
    model = Tapped("net", see, weights(3, 4), ("only",))
    plan = mining.Plan((generator.layout(), model.layout(8)), (("gan", "net"),), 1)
    return plan, generator, (model,)


def test_equals_all_images_at_once(networks):
    plan, generator, models = networks
    state = stream.mine(plan, generator, models, 3, 4, seed=2)
    z = np.concatenate([stream.latents(generator, 2, i, 4) for i in range(3)])
    images, maps = generator.apply(generator.params, z)
    expected = brute_force(
        {tap: np.asarray(maps[tap]) for tap in generator.taps},
        jax.device_get(models[0].apply(models[0].params, images)),
    )
    table = tables.correlations(plan, state, ("gan", "net"))
    np.testing.assert_allclose(table, expected, atol=1e-5)
    assert int(state.images) == 12 and np.abs(table).max() > 0.3


def test_resumed_run_equals_an_uninterrupted_one(networks, tmp_path):
    whole = stream.mine(*networks, 3, 4, path=tmp_path / "a.safetensors")
    stream.mine(*networks, 1, 4, path=tmp_path / "b.safetensors")
    resumed = stream.mine(*networks, 3, 4, path=tmp_path / "b.safetensors")
    for state in (resumed, stream.load_state(tmp_path / "b.safetensors")):
        jax.tree.map(np.testing.assert_array_equal, state, whole)
    again = stream.mine(*networks, 3, 4, path=tmp_path / "b.safetensors")  # nothing left to do
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    with pytest.raises(ValueError, match="holds the sums of 3 batches, asked for are 2"):
        stream.mine(*networks, 2, 4, path=tmp_path / "b.safetensors")
    plan, generator, models = networks
    other = mining.Plan(plan.layouts, plan.pairs)
    with pytest.raises(ValueError, match="another plan: permuted/gan/net/4/8/high"):
        stream.mine(other, generator, models, 3, 4, path=tmp_path / "b.safetensors")


def test_devices_do_not_matter(networks, tmp_path):
    plan, generator, models = networks
    mesh = make_mesh()
    plain = mining.Plan(plan.layouts, plan.pairs)
    expected = stream.mine(plain, generator, models, 2, 8)
    path = tmp_path / "sums.safetensors"
    stream.mine(plain, generator, models, 1, 8, mesh=mesh, path=path)
    state = stream.mine(plain, generator, models, 2, 8, mesh=mesh, path=path)
    assert len(state.products["gan/net/8/8"].high.sharding.device_set) == 4
    first, second = (tables.correlations(plain, s, ("gan", "net")) for s in (expected, state))
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_sums_of_other_images_are_not_continued(networks, tmp_path):
    """The plan's shapes fit; another seed, batch size or other weights must not be mixed in."""
    plan, generator, models = networks
    path = tmp_path / "sums.safetensors"
    stream.mine(*networks, 1, 4, path=path)
    other = dataclasses.replace(models[0], params=models[0].params * np.float32(1.5))
    for wrong in ((models, 4, 1), (models, 8, 0), ((other,), 4, 0)):
        with pytest.raises(ValueError, match=r"sums.safetensors holds the sums of other images or"):
            stream.mine(plan, generator, wrong[0], 3, wrong[1], wrong[2], path)
    assert int(stream.mine(*networks, 2, 4, path=path).images) == 8
