"""Tests of checkpoints: round trips, mismatches, damaged and half-written files."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common.checkpoint import Checkpointer, CheckpointMismatchError
from common.pipeline import train_iterator
from common.sharding import make_mesh, shardings_for
from common.train_state import TrainState


@pytest.fixture
def open_checkpointer(tmp_path):
    opened = []

    def make(**options):
        opened.append(Checkpointer(tmp_path / "checkpoints", **options))
        return opened[-1]

    yield make
    for checkpointer in opened:
        checkpointer.close()


def _equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("async_", [True, False])
def test_round_trip(open_checkpointer, async_):
    checkpointer = open_checkpointer(async_=async_)
    assert checkpointer.restore_latest({"w": jnp.zeros(2)}) is None
    tx = optax.sgd(0.1, momentum=0.9)
    params = {"dense": {"kernel": jnp.full((2, 3), 1.5), "half": jnp.ones(4, jnp.bfloat16)}}
    state = TrainState.create(params, tx, ema_decay=0.9)
    state = state.apply_gradients(jax.tree.map(jnp.ones_like, params))
    checkpointer.save(4, state, config={"rate": 0.1})
    template = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
    restored, step = checkpointer.restore_latest(template)
    assert step == checkpointer.latest_step == 4
    assert restored.tx is state.tx  # the static part comes from the template
    _equal(restored, state)
    assert checkpointer.read_config() == {"rate": 0.1}


def test_state_and_iterator_are_restored_together(open_checkpointer):
    source = {"x": np.arange(10)}
    iterator = train_iterator(source, 4, seed=0)
    [next(iterator) for _ in range(7)]
    checkpointer = open_checkpointer()
    checkpointer.save(7, {"w": jnp.ones(2)}, iterator)
    expected = [next(iterator)["x"].tolist() for _ in range(5)]
    fresh = train_iterator(source, 4, seed=0)
    checkpointer.restore_latest({"w": jnp.zeros(2)}, fresh)
    assert [next(fresh)["x"].tolist() for _ in range(5)] == expected


def test_asynchronous_save_survives_donation(open_checkpointer):
    checkpointer = open_checkpointer()
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    for step in range(1, 4):
        state = {"w": jnp.full((512, 1024), float(step))}
        checkpointer.save(step, state)
        for _ in range(5):  # the buffers are reused while the save is still writing
            state = overwrite(state)
        restored, _ = checkpointer.restore_latest({"w": jnp.zeros((512, 1024))})
        assert np.unique(restored["w"]).tolist() == [step]


def test_typed_keys_and_shardings(open_checkpointer):
    mesh = make_mesh(fsdp=2)
    state = {"key": jax.random.key(5), "w": jnp.arange(16.0).reshape(8, 2)}
    placed = jax.device_put(state, shardings_for(state, mesh, (("w", ("fsdp",)), (".*", ()))))
    checkpointer = open_checkpointer()
    checkpointer.save(1, placed)
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), placed
    )
    restored, _ = checkpointer.restore_latest(template)
    assert restored["w"].sharding == placed["w"].sharding
    assert restored["key"].sharding == placed["key"].sharding
    np.testing.assert_array_equal(restored["w"], state["w"])
    assert jnp.all(jax.random.key_data(restored["key"]) == jax.random.key_data(state["key"]))
    restored, _ = checkpointer.restore_latest(state)  # written by four devices, read by one
    assert restored["w"].sharding.device_set == {jax.devices()[0]}
    np.testing.assert_array_equal(restored["w"], state["w"])


def test_asynchronous_save_copies_host_arrays(open_checkpointer):
    checkpointer = open_checkpointer()
    array = np.ones((512, 1024), np.float32)
    checkpointer.save(1, {"w": array})
    array[:] = 2.0
    restored, _ = checkpointer.restore_latest({"w": jnp.zeros((512, 1024))})
    assert np.unique(restored["w"]).tolist() == [1.0]


def test_keeps_the_newest(open_checkpointer, tmp_path):
    checkpointer = open_checkpointer(keep=2)
    for step in (1, 2, 3, 4):
        checkpointer.save(step, {"w": jnp.ones(2) * step})
    checkpointer.save(4, {"w": jnp.zeros(2)})  # already saved: left as it is
    checkpointer.wait()
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"3", "4"}
    np.testing.assert_array_equal(checkpointer.restore_latest({"w": jnp.ones(2)})[0]["w"], 4.0)
    with pytest.raises(ValueError, match="keep must be at least 1"):
        open_checkpointer(keep=0)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"a": {"w": np.zeros((2, 4), np.float32)}}, r"'a/w' is \(2, 3\).*and \(2, 4\) float32"),
        (
            {"a": {"w": np.zeros((2, 3), np.int32)}},
            r"'a/w' is \(2, 3\) float32.*int32 in the state",
        ),
        ({"a": {"v": np.zeros((2, 3), np.float32)}}, r"'a/v' \(2, 3\) float32, which the checkpoi"),
        ({"a": {}}, r"has the leaf 'a/w' \(2, 3\) float32, which the state lacks"),
    ],
)
def test_mismatch_names_the_leaf(open_checkpointer, template, message):
    checkpointer = open_checkpointer()
    checkpointer.save(1, {"a": {"w": jnp.zeros((2, 3))}})
    with pytest.raises(CheckpointMismatchError, match=message):
        checkpointer.restore_latest(template)
    assert checkpointer.latest_step == 1  # a wrong template is no damage


def test_what_is_not_json_is_refused(open_checkpointer):
    class Iterator:
        def get_state(self):
            return {"position": object()}

    with pytest.raises(TypeError, match="state of the data iterator cannot be stored"):
        open_checkpointer().save(1, {"w": jnp.ones(2)}, Iterator())
    with pytest.raises(TypeError, match="config cannot be stored"):
        open_checkpointer().save(1, {"w": jnp.ones(2)}, config={"a": {1, 2}})


def test_missing_iterator_state_is_an_error(open_checkpointer):
    checkpointer = open_checkpointer()
    checkpointer.save(1, {"w": jnp.ones(2)})
    with pytest.raises(ValueError, match="holds no state of a data iterator"):
        checkpointer.restore_latest({"w": jnp.ones(2)}, train_iterator({"x": [1]}, 1, seed=0))


def _weights(step):
    return {"w": jax.random.normal(jax.random.key(step), (64, 64))}


def _save_two(open_checkpointer):
    checkpointer = open_checkpointer()
    for step in (10, 20):
        checkpointer.save(step, _weights(step))
    checkpointer.wait()


def _largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def _truncate(folder):
    path = _largest_file(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_bytes(folder):
    path = _largest_file(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 16] = bytes(16 * [0xA5])
    path.write_bytes(bytes(data))


def _drop_state(folder):
    for path in (folder / "state").rglob("*"):
        if path.is_file():
            path.unlink()


def _empty(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()


@pytest.mark.parametrize("damage", [_truncate, _flip_bytes, _drop_state, _empty])
def test_damaged_checkpoint_is_set_aside(open_checkpointer, tmp_path, caplog, damage):
    _save_two(open_checkpointer)
    damage(tmp_path / "checkpoints" / "20")
    checkpointer = open_checkpointer()
    with caplog.at_level(logging.WARNING, logger="common.checkpoint"):
        restored, step = checkpointer.restore_latest({"w": jnp.zeros((64, 64))})
    assert step == 10
    _equal(restored, _weights(10))
    assert "20 cannot be read" in caplog.text
    assert (tmp_path / "checkpoints" / "damaged-20").is_dir()
    checkpointer.save(20, _weights(21))  # the step can be saved again
    checkpointer.wait()
    restored, step = open_checkpointer().restore_latest({"w": jnp.zeros((64, 64))})
    assert step == 20
    _equal(restored, _weights(21))


def test_half_written_checkpoint_is_not_picked_up(open_checkpointer, tmp_path):
    _save_two(open_checkpointer)
    folder = tmp_path / "checkpoints"
    # What a kill before the final rename leaves behind.
    (folder / "20").rename(folder / "20.orbax-checkpoint-tmp")
    checkpointer = open_checkpointer()
    assert checkpointer.latest_step == 10
    assert checkpointer.restore_latest({"w": jnp.zeros((64, 64))})[1] == 10


def test_nothing_readable_is_an_error(open_checkpointer, tmp_path):
    _save_two(open_checkpointer)
    for step in ("10", "20"):
        _drop_state(tmp_path / "checkpoints" / step)
    with pytest.raises(RuntimeError, match=r"none of the checkpoints \[20, 10\] can be read"):
        open_checkpointer().restore_latest({"w": jnp.zeros((64, 64))})
