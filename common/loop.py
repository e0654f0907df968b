"""The fit loop: a jitted step with donated state, resumable to the bit.

Python runs one step ahead of the devices: the metrics read in iteration N are those of step N-1,
so logging and the finite check never wait for the step that was just started.
"""

import logging
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from common import distributed, rng
from common.checkpoint import Checkpointer
from common.sharding import REPLICATED, Rules, path_name, place, shard_batch, shardings_for
from common.writer import Writer

PyTree = Any
StepFn = Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, Mapping[str, jax.Array]]]
logger = logging.getLogger(__name__)

# Jitted steps by step function, so that fitting twice with one function compiles once.
_JITTED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class NonFiniteLoss(RuntimeError):  # noqa: N818 - the name says what happened
    """The loss (or a parameter) is not finite; checkpoints of earlier steps are kept.

    Attributes:
        step: step, counted from 0, whose loss is not finite.
        value: the first value that is not finite.
    """

    def __init__(self, step: int, value: float, detail: str = ""):
        super().__init__(f"loss is {value} at step {step}{detail}")
        self.step = step
        self.value = value


class Preempted(RuntimeError):  # noqa: N818 - the name says what happened
    """The run was asked to stop (SIGTERM) and has saved its state where it has a checkpointer.

    Attributes:
        step: number of steps done.
        saved: whether the state was saved.
    """

    def __init__(self, step: int, saved: bool = True):
        super().__init__(f"after {step} steps, state {'saved' if saved else 'not saved'}")
        self.step = step
        self.saved = saved


def fit(
    state: PyTree,
    step_fn: StepFn,
    batches: Any,
    *,
    num_steps: int,
    key: jax.Array,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    writer: Writer | None = None,
    checkpointer: Checkpointer | None = None,
    config: Mapping[str, Any] | None = None,
    log_every: int = 50,
    checkpoint_every: int = 0,
    hooks: Sequence[tuple[int, Callable[[PyTree, int], None]]] = (),
    name: str = "train",
    progress: bool | None = None,
) -> PyTree:
    """Runs steps 0 .. num_steps-1 (or from the newest checkpoint on) and returns the final state.

    Args:
        state: initial state, a pytree of arrays. It is donated: do not use it afterwards.
        step_fn: pure `(state, batch, key) -> (state, metrics)`. The new state has the structure,
            shapes and dtypes of the old one; `metrics["loss"]` is a scalar, or an array for a
            population of models, all of whose entries must stay finite.
        batches: an iterator of pytrees of host arrays (with `get_state`/`set_state`, as grain's, it
            is saved with the checkpoint; without, a resumed run draws and discards the batches that
            were used before), an iterable, a callable `step -> batch`, or None (batch is None).
            With a mesh, each process gives its part of the global batch.
        num_steps: number of steps of the whole run, including those of an interrupted one.
        key: typed random key; step n gets `rng.at_step(key, name, n)`.
        mesh: device mesh; None runs on the default device.
        rules: sharding rules over state paths (such as "params/dense/kernel"); replicated if None.
        writer: receives the metrics of every `log_every`-th step and of the last one.
        checkpointer: resumes from it, and saves to it.
        config: stored in the checkpoints.
        log_every: steps between records.
        checkpoint_every: steps between checkpoints; 0 saves at the end and on preemption only.
        hooks: `(every, function)`; `function(state, steps_done)` is called after each `every`
            steps. It must not keep the state: the next step donates it.
        name: name of the phase in the logs and of its random stream.
        progress: progress bar on stderr; by default where stderr is a terminal.

    Raises:
        NonFiniteLoss: the loss is not finite; the last good checkpoint is kept.
        Preempted: SIGTERM arrived; the state was saved if there is a checkpointer.
        ValueError: the data ended early, metrics lack "loss", or the step changes the state's form.
    """
    if num_steps < 0 or log_every < 1 or checkpoint_every < 0:
        raise ValueError(
            "num_steps and checkpoint_every must not be negative and log_every must be positive,"
            f" got {num_steps=}, {checkpoint_every=}, {log_every=}"
        )
    if mesh is None and jax.process_count() > 1:
        raise ValueError(f"fit of '{name}' runs in {jax.process_count()} processes: give it a mesh")
    stream = rng.stream(key, name)
    state, stream, shardings = _place(state, stream, mesh, rules)
    update = _jit_update(step_fn, shardings)
    next_batch, iterator = _batch_source(batches)

    start = 0
    if checkpointer is not None:
        found = checkpointer.restore_latest(state, iterator)
        if found is not None:
            state, start = found
            if iterator is None and batches is not None:
                _skip(next_batch, batches, min(start, num_steps))
    if writer is not None:
        writer.begin(name, start)
    if start >= num_steps:
        return state

    main = jax.process_index() == 0
    show = main and (sys.stderr.isatty() if progress is None else progress)
    pending: tuple[int, Mapping[str, jax.Array]] | None = None
    clock: tuple[int, float] | None = None  # set after the first step, which compiles
    checked = False

    def finish_pending() -> None:
        """Checks and logs the step whose metrics have not been looked at yet."""
        nonlocal pending, clock
        if pending is None:
            return
        step, metrics = pending
        pending = None
        _check_finite(step, metrics["loss"])
        now = time.perf_counter()
        if step % log_every == 0 or step == num_steps - 1:
            values = {metric: np.asarray(value) for metric, value in metrics.items()}
            if clock is not None:
                values["steps_per_second"] = np.asarray((step - clock[0]) / (now - clock[1]))
            clock = (step, now)
            if writer is not None:
                writer.scalars(step, values)
            bar.set_postfix(loss=f"{float(np.mean(values['loss'])):.4g}", refresh=False)
        elif clock is None:
            clock = (step, now)

    def save(done: int) -> None:
        """Saves a state that is known to be good."""
        finish_pending()
        _check_params(done, state)
        if checkpointer is not None:
            checkpointer.save(done, state, iterator, config)

    bar = tqdm(total=num_steps, initial=start, desc=name, disable=not show, dynamic_ncols=True)
    try:
        with distributed.preemption_notice() as preempted:
            for step in range(start, num_steps):
                batch = next_batch(step)
                if mesh is not None and batch is not None:
                    batch = shard_batch(batch, mesh)
                if not checked:
                    _check_step(update, state, batch, stream)
                    checked = True
                state, metrics = update(state, batch, stream, np.uint32(step))
                finish_pending()
                pending = (step, metrics)
                bar.update()
                done = step + 1
                for every, function in hooks:
                    if done % every == 0:
                        function(state, done)
                stop = preempted(done)
                if stop or done == num_steps or (checkpoint_every and done % checkpoint_every == 0):
                    save(done)
                if stop and done < num_steps:
                    raise Preempted(done, saved=checkpointer is not None)
    finally:
        bar.close()
        if checkpointer is not None:
            checkpointer.wait()
    return state


def _place(
    state: PyTree, stream: jax.Array, mesh: Mesh | None, rules: Rules | None
) -> tuple[PyTree, jax.Array, tuple | None]:
    """Returns state and stream key as strongly typed arrays on their devices, and the shardings."""
    state = jax.tree.map(_strong, state)
    if mesh is None:
        return state, stream, None
    shardings = shardings_for(state, mesh, REPLICATED if rules is None else rules)
    replicated = NamedSharding(mesh, PartitionSpec())
    return place(state, shardings), place(stream, replicated), (shardings, replicated)


def _strong(leaf: Any) -> jax.Array:
    """Returns an array without weak type: with one, the second step would be traced again."""
    if isinstance(leaf, jax.Array) and not leaf.weak_type:
        return leaf
    return jnp.asarray(leaf, dtype=jnp.result_type(leaf))


def _jit_update(step_fn: StepFn, shardings: tuple | None) -> Any:
    """Returns the jitted, state-donating `(state, batch, stream, step) -> (state, metrics)`."""
    cache_key = None
    if shardings is not None:
        leaves, structure = jax.tree.flatten(shardings)
        cache_key = (structure, tuple(leaves))
    try:
        cache = _JITTED.setdefault(step_fn, {})
        held: Callable[[], StepFn | None] = weakref.ref(step_fn)
    except TypeError:  # not hashable or no weak references: compiled anew for each fit
        cache, held = {}, lambda: step_fn
    if cache_key in cache:
        return cache[cache_key]

    def update(state: PyTree, batch: PyTree, stream: jax.Array, step: jax.Array) -> tuple:
        function = held()
        assert function is not None  # fit holds it while it traces
        state, metrics = function(state, batch, jax.random.fold_in(stream, step))
        if "loss" not in metrics:
            raise ValueError(f"metrics of the step lack 'loss', they have {sorted(metrics)}")
        return jax.tree.map(_strong, state), dict(metrics)

    if shardings is None:
        cache[cache_key] = jax.jit(update, donate_argnums=0)
    else:
        cache[cache_key] = jax.jit(update, donate_argnums=0, out_shardings=shardings)
    return cache[cache_key]


def _check_step(update: Any, state: PyTree, batch: PyTree, stream: jax.Array) -> None:
    """Raises ValueError where the step would return a state of another form than it was given."""
    new, _ = update.eval_shape(state, batch, stream, np.uint32(0))
    before = {path_name(p): leaf for p, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}
    after = {path_name(p): leaf for p, leaf in jax.tree_util.tree_flatten_with_path(new)[0]}
    missing = sorted(before.keys() ^ after.keys())
    if missing:
        side = "loses" if missing[0] in before else "adds"
        raise ValueError(f"the step {side} the leaf '{missing[0]}' of the state")
    for path, old in before.items():
        if (old.shape, old.dtype) != (after[path].shape, after[path].dtype):
            raise ValueError(
                f"the step changes the leaf '{path}' of the state from {old.shape} {old.dtype} to"
                f" {after[path].shape} {after[path].dtype}"
            )


def _check_finite(step: int, loss: jax.Array) -> None:
    values = np.asarray(loss)
    if np.isfinite(values).all():
        return
    bad = np.flatnonzero(~np.isfinite(values))
    detail = f" (entry {bad[0]} of {values.size}, {bad.size} not finite)" if values.ndim else ""
    raise NonFiniteLoss(step, float(values.reshape(-1)[bad[0]]), detail)


@jax.jit
def _all_finite(tree: PyTree) -> jax.Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats] or [jnp.array(True)]))


def _check_params(done: int, state: PyTree) -> None:
    """Raises NonFiniteLoss if `state.params` is not finite: its last loss was, the next is not."""
    params = getattr(state, "params", None)
    if params is not None and not bool(_all_finite(params)):
        raise NonFiniteLoss(done - 1, float("nan"), ": the updated parameters are not finite")


def _batch_source(batches: Any) -> tuple[Callable[[int], PyTree], Any]:
    """Returns `step -> batch` and the iterator to be saved in checkpoints, if there is one."""
    if batches is None:
        return lambda step: None, None
    if not hasattr(batches, "__next__"):
        if callable(batches):
            return batches, None
        batches = iter(batches)

    def next_batch(step: int) -> PyTree:
        try:
            return next(batches)
        except StopIteration:
            raise ValueError(f"the data ended before step {step}") from None

    checkpointable = hasattr(batches, "get_state") and hasattr(batches, "set_state")
    return next_batch, batches if checkpointable else None


def _skip(next_batch: Callable[[int], PyTree], batches: Any, count: int) -> None:
    """Draws and discards the batches of the steps done before, where data come in a fixed order."""
    if callable(batches) and not isinstance(batches, Iterator):
        return
    logger.info("data iterator without state: drawing %d batches again to resume", count)
    for step in range(count):
        next_batch(step)
