"""Tests of the mesh and of the sharding rules, on the four CPU devices of the test settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from common.sharding import (
    REPLICATED,
    init_sharded,
    make_mesh,
    shard_batch,
    shardings_for,
)


def _tree():
    return {
        "params": {"dense": {"kernel": np.zeros((8, 6)), "bias": np.zeros(6)}},
        "step": np.zeros((), np.int32),
    }


def test_mesh_axes_are_automatic():
    mesh = make_mesh(fsdp=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2}
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    assert dict(make_mesh(devices=jax.devices()[:3]).shape) == {"data": 3, "fsdp": 1}


def test_mesh_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match="fsdp=3 does not divide the 4 devices"):
        make_mesh(fsdp=3)
    with pytest.raises(ValueError, match="needs 6 devices, there are 4"):
        make_mesh(data=3, fsdp=2)
    with pytest.raises(ValueError, match="must be positive"):
        make_mesh(data=0)


def test_first_matching_rule_decides():
    rules = (("kernel$", ("fsdp", None)), ("dense", ()))
    shardings = shardings_for(_tree(), make_mesh(fsdp=2), rules)
    assert shardings["params"]["dense"]["kernel"].spec == PartitionSpec("fsdp", None)
    assert shardings["params"]["dense"]["bias"].spec == PartitionSpec()
    assert shardings["step"].spec == PartitionSpec()  # a scalar needs no rule


def test_unmatched_parameter_is_named():
    with pytest.raises(ValueError, match=r"no sharding rule matches .*'params/dense/bias'.*\(6,\)"):
        shardings_for(_tree(), make_mesh(), (("kernel", ()),))


def test_axis_that_does_not_divide_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"'params/dense/bias'.*size 4.*dimension 0 of size 6"):
        shardings_for(_tree(), make_mesh(data=1, fsdp=4), (("bias", ("fsdp",)), (".*", ())))
    with pytest.raises(ValueError, match=r"size 4 does not divide dimension 0 of size 6"):
        shardings_for(_tree(), make_mesh(fsdp=2), (("bias", (("data", "fsdp"),)), (".*", ())))


def test_spec_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="names 2 dimensions, the parameter has 1"):
        shardings_for(_tree(), make_mesh(), (("bias", (None, "fsdp")), (".*", ())))
    with pytest.raises(ValueError, match="names axis 'model'"):
        shardings_for(_tree(), make_mesh(), ((".*", ("model",)),))


def test_init_is_sharded_and_equals_the_unsharded_one():
    def init(key):
        return {"kernel": jax.random.normal(key, (8, 6)), "scale": jnp.ones(6)}

    rules = (("kernel", ("fsdp",)), (".*", ()))
    params = init_sharded(init, make_mesh(data=1, fsdp=4), rules, jax.random.key(3))
    assert {shard.data.shape for shard in params["kernel"].addressable_shards} == {(2, 6)}
    np.testing.assert_array_equal(params["kernel"], init(jax.random.key(3))["kernel"])


def test_batch_is_split_over_all_devices():
    mesh = make_mesh(fsdp=2)
    batch = {"x": np.arange(24.0, dtype=np.float32).reshape(8, 3)}
    sharded = shard_batch(batch, mesh)
    assert {shard.data.shape for shard in sharded["x"].addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(sharded["x"], batch["x"])
    assert shard_batch(sharded, mesh)["x"] is sharded["x"]


@pytest.mark.parametrize("array", [np.zeros((6, 2)), np.float32(1.0)])
def test_batch_that_does_not_divide_is_refused(array):
    with pytest.raises(ValueError, match=r"batch entry 'x'.*4 devices"):
        shard_batch({"x": array}, make_mesh())


def test_replicated_rule_matches_everything():
    shardings = jax.tree.leaves(shardings_for(_tree(), make_mesh(), REPLICATED))
    assert all(sharding.is_fully_replicated for sharding in shardings)
