"""Tests of the fit loop in one process: convergence, logging, stops, hooks, resume, overhead."""

import os
import signal
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common import loop, rng
from common.checkpoint import Checkpointer
from common.pipeline import train_iterator
from common.sharding import make_mesh
from common.train_state import TrainState
from common.writer import Writer, read_jsonl

TARGET = np.array([1.0, -2.0, 3.0], np.float32)


def _source(count=32):
    x = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    return {"x": x, "y": x @ TARGET}


def _init(tx=None):
    return TrainState.create({"w": jnp.zeros(3)}, tx or optax.sgd(0.1), ema_decay=0.9)


def make_step(noise=0.0):
    """Least squares; `noise` perturbs the inputs, so that results depend on the step's key."""

    def step(state, batch, key):
        x = batch["x"] + noise * jax.random.normal(key, batch["x"].shape)

        def loss_fn(params):
            return jnp.mean((x @ params["w"] - batch["y"]) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads), {"loss": loss, "w0": state.params["w"][0]}

    return step


@pytest.fixture
def folder(tmp_path):
    """Opens writers and checkpointers in a folder and closes them afterwards."""

    class Folder:
        path = tmp_path
        opened: list = []

        def writer(self, name="run"):
            self.opened.append(Writer(tmp_path / name))
            return self.opened[-1]

        def checkpointer(self, name="run", **options):
            self.opened.append(Checkpointer(tmp_path / name / "checkpoints", **options))
            return self.opened[-1]

        def records(self, name="run"):
            return read_jsonl(tmp_path / name / "metrics.jsonl")

    result = Folder()
    result.opened = []
    yield result
    for item in result.opened:
        item.close()


def _fit(num_steps=20, step=None, state=None, batches="default", **options):
    if isinstance(batches, str):
        batches = train_iterator(_source(), 8, seed=1)
    return loop.fit(
        _init() if state is None else state,
        step or make_step(noise=0.1),
        batches,
        num_steps=num_steps,
        key=jax.random.key(0),
        **options,
    )


def _equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_converges_to_the_closed_form(folder):
    state = _fit(300, make_step(), writer=folder.writer())
    np.testing.assert_allclose(state.params["w"], TARGET, atol=1e-4)
    losses = [record["loss"] for record in folder.records()]
    assert losses[0] > 1.0 > 1e-6 > losses[-1]


def test_records_are_those_of_their_own_step(folder):
    seen = []

    def step(state, batch, key):
        del batch
        return {"n": state["n"] + 1}, {"loss": state["n"], "draw": jax.random.uniform(key)}

    loop.fit(
        {"n": jnp.zeros(())},
        step,
        None,
        num_steps=12,
        key=jax.random.key(4),
        writer=folder.writer(),
        log_every=5,
        hooks=[(4, lambda state, done: seen.append((done, float(state["n"]))))],
        name="count",
    )
    records = folder.records()
    assert [(r["phase"], r["step"], r["loss"]) for r in records] == [
        ("count", 0, 0.0),
        ("count", 5, 5.0),
        ("count", 10, 10.0),
        ("count", 11, 11.0),
    ]
    for record in records:
        key = rng.at_step(jax.random.key(4), "count", record["step"])
        assert record["draw"] == float(jax.random.uniform(key))
    assert all("steps_per_second" in record for record in records[1:])
    assert seen == [(4, 4.0), (8, 8.0), (12, 12.0)]


def test_metrics_are_read_one_step_late():
    events = []

    class Batches:
        def __next__(self):
            events.append("batch")
            return {"x": np.zeros((2, 3), np.float32), "y": np.zeros(2, np.float32)}

    original = loop._check_finite
    loop._check_finite = lambda step, loss: (events.append(step), original(step, loss))
    try:
        _fit(3, batches=Batches())
    finally:
        loop._check_finite = original
    # Step 0 is looked at only after step 1 was given its batch and started, and so on.
    assert events == ["batch", "batch", 0, "batch", 1, 2]


def test_one_trace_over_fits_and_donation():
    step = chex.assert_max_traces(make_step(), n=1)
    tx = optax.sgd(0.1)
    state = _init(tx)
    leaves = jax.tree.leaves(state)
    _fit(5, step, state)
    assert all(leaf.is_deleted() for leaf in leaves)
    _fit(7, step, _init(tx))  # the same function again: neither traced nor compiled again


@pytest.mark.parametrize("devices", [1, 4])
def test_one_compilation_on_a_mesh(devices):
    step = make_step()
    mesh = make_mesh(devices=jax.devices()[:devices])
    _fit(3, step, mesh=mesh)
    (update,) = loop._JITTED[step].values()
    assert update._cache_size() == 1


def test_weak_types_are_traced_once():
    step = chex.assert_max_traces(
        lambda s, b, k: ({"x": 0.5 * jnp.cos(1.0)}, {"loss": s["x"]}), n=1
    )
    state = _fit(3, step, {"x": 1.0}, None)
    assert not state["x"].weak_type


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(folder, bad):
    def step(state, batch, key):
        state, metrics = make_step()(state, batch, key)
        poison = jnp.where(state.step == 8, bad, 0.0)  # step 7, counted from 0
        params = jax.tree.map(lambda x: x + poison, state.params)
        return state.replace(params=params), {"loss": metrics["loss"] + poison}

    checkpointer = folder.checkpointer()
    with pytest.raises(loop.NonFiniteLoss, match="at step 7") as stopped:
        _fit(20, step, checkpointer=checkpointer, checkpoint_every=4, writer=folder.writer())
    assert stopped.value.step == 7
    np.testing.assert_equal(stopped.value.value, bad)
    # The state after step 7 was due to be saved (8 steps done) and was not.
    restored, done = checkpointer.restore_latest(_init())
    assert done == 4
    _equal(restored, _fit(4, make_step()))


def test_non_finite_parameters_are_not_saved(folder):
    def step(state, batch, key):
        state, metrics = make_step()(state, batch, key)
        poison = jnp.where(state.step == 8, jnp.nan, 0.0)
        return state.replace(params=jax.tree.map(lambda x: x + poison, state.params)), metrics

    checkpointer = folder.checkpointer()
    with pytest.raises(loop.NonFiniteLoss, match="step 7: the updated parameters are not finite"):
        _fit(20, step, checkpointer=checkpointer, checkpoint_every=4)
    assert checkpointer.latest_step == 4


def test_every_member_of_a_population_is_checked_and_the_mean_logged(folder):
    def step(state, batch, key):
        del batch, key
        loss = jnp.arange(4.0).at[2].set(jnp.where(state["n"] == 3, jnp.nan, 2.0))
        return {"n": state["n"] + 1}, {"loss": loss}

    with pytest.raises(loop.NonFiniteLoss, match=r"nan at step 3 \(entry 2 of 4, 1 not finite\)"):
        _fit(9, step, {"n": jnp.zeros(())}, None, writer=folder.writer(), log_every=1)
    assert [record["loss"] for record in folder.records()] == [1.5, 1.5, 1.5]


def test_population_under_vmap_equals_single_fits():
    tx = optax.sgd(0.1)
    starts = jnp.array([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    step = make_step()

    def population_step(states, batch, key):
        return jax.vmap(step, in_axes=(0, None, None))(states, batch, key)

    states = jax.vmap(lambda w: TrainState.create({"w": w}, tx, 0.9))(starts)
    states = _fit(10, population_step, states)
    for index in range(2):
        one = _fit(10, step, TrainState.create({"w": starts[index]}, tx, 0.9))
        member = jax.tree.map(lambda x, index=index: x[index], states)
        chex.assert_trees_all_close(member, one, rtol=1e-5)


@pytest.mark.parametrize("kind", ["grain", "callable", "generator", "list"])
def test_resume_equals_uninterrupted_bit_for_bit(folder, kind):
    def batches():
        if kind == "grain":
            return train_iterator(_source(), 8, seed=1)
        order = [np.random.default_rng(n).integers(0, 32, 8) for n in range(30)]
        taken = [{name: array[rows] for name, array in _source().items()} for rows in order]
        return {"callable": taken.__getitem__, "generator": iter(taken), "list": taken}[kind]

    step = make_step(noise=0.5)
    tx = optax.sgd(0.1, momentum=0.9)
    whole = _fit(
        30, step, _init(tx), batches(), writer=folder.writer("whole"), log_every=3,
        checkpointer=folder.checkpointer("whole"),
    )  # fmt: skip
    for num_steps in (7, 20, 30):
        parts = _fit(
            num_steps, step, _init(tx), batches(), writer=folder.writer("parts"), log_every=3,
            checkpointer=folder.checkpointer("parts"), checkpoint_every=5,
        )  # fmt: skip
    _equal(whole, parts)
    assert not np.array_equal(whole.params["w"], _init().params["w"])
    logged = {r["step"]: (r["loss"], r["w0"]) for r in folder.records("whole")}
    resumed = {r["step"]: (r["loss"], r["w0"]) for r in folder.records("parts")}
    assert {step: resumed[step] for step in logged} == logged


def test_finished_run_is_not_run_again(folder):
    first = _fit(5, checkpointer=folder.checkpointer())
    again = _fit(5, chex.assert_max_traces(make_step(), n=0), checkpointer=folder.checkpointer())
    _equal(first, again)


def test_sigterm_saves_and_the_resumed_run_equals_the_uninterrupted(folder):
    step = make_step(noise=0.5)
    whole = _fit(20, step)

    def interrupt(state, done):
        if done == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(loop.Preempted, match="after 6 steps, state saved") as stopped:
        _fit(20, step, checkpointer=folder.checkpointer(), hooks=[(1, interrupt)])
    assert stopped.value.step == 6
    assert signal.getsignal(signal.SIGTERM) is handler
    _equal(_fit(20, step, checkpointer=folder.checkpointer()), whole)
    with pytest.raises(loop.Preempted, match="state not saved"):
        _fit(20, step, hooks=[(1, interrupt)])


def test_sharded_fit_equals_one_device():
    tx = optax.sgd(0.1)

    def init():
        return TrainState.create({"w": jnp.zeros((8, 3))}, tx, ema_decay=0.9)

    def wide_step(state, batch, key):
        x = batch["x"] + 0.5 * jax.random.normal(key, batch["x"].shape)

        def loss_fn(params):
            return jnp.mean((x @ params["w"].T - jnp.repeat(batch["y"][:, None], 8, 1)) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads), {"loss": loss}

    wide_step = chex.assert_max_traces(wide_step, n=2)  # one for each of the two meshes
    one = _fit(15, wide_step, init())
    rules = (("params|ema|opt_state", ("fsdp",)),)
    four = _fit(15, wide_step, init(), mesh=make_mesh(fsdp=2), rules=rules)
    assert {shard.data.shape for shard in four.params["w"].addressable_shards} == {(4, 3)}
    chex.assert_trees_all_close(jax.device_get(four), jax.device_get(one), rtol=1e-6)


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="the data ended before step 2"):
        _fit(5, batches=iter([next(train_iterator(_source(), 8, seed=0))] * 2))
    with pytest.raises(ValueError, match=r"lack 'loss', they have \['error'\]"):
        _fit(2, lambda s, b, k: (s, {"error": s.params["w"][0]}))
    with pytest.raises(ValueError, match=r"leaf 'x' of the state from \(3,\) float32 to \(2,\)"):
        _fit(2, lambda s, b, k: ({"x": s["x"][:2]}, {"loss": s["x"][0]}), {"x": jnp.ones(3)}, None)
    with pytest.raises(ValueError, match="the step loses the leaf 'y' of the state"):
        _fit(2, lambda s, b, k: ({"x": s["x"]}, {"loss": s["x"]}), {"x": 1.0, "y": 2.0}, None)
    with pytest.raises(TypeError, match="typed key"):
        loop.fit({}, make_step(), None, num_steps=1, key=jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match="log_every must be positive.*log_every=0"):
        _fit(2, log_every=0)


def test_progress_bar(capsys):
    _fit(3, progress=True, name="faces")
    assert "faces: 100%" in capsys.readouterr().err
    _fit(3)  # stderr is no terminal here
    assert capsys.readouterr().err == ""


def test_overhead_per_step_is_small():
    def step(state, batch, key):
        del batch, key
        return state.replace(step=state.step + 1), {"loss": state.params["w"][0]}

    batch = {"x": np.zeros((2, 3), np.float32)}
    rates = []
    for _ in range(3):
        begin = time.perf_counter()
        _fit(2000, step, batches=lambda n: batch, log_every=10**6)
        rates.append(2000 / (time.perf_counter() - begin))
    # About 20,000 steps a second on an idle core; the best of three tolerates a loaded machine.
    assert max(rates) > 1000, rates
