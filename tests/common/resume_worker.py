"""A short training run in its own process, for the tests that kill it: `resume_worker.py FOLDER`.

It trains with everything a resumed run must get back: shuffled data with random transforms, noise
from the step's key, momentum, a moving average; asynchronous checkpoints after every second step.
"""

import pathlib
import sys
import time

sys.modules["torch"] = None  # tensorboardX would import it, for a third of the time of a start

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from common import loop  # noqa: E402
from common.checkpoint import Checkpointer  # noqa: E402
from common.pipeline import train_iterator  # noqa: E402
from common.train_state import TrainState  # noqa: E402
from common.writer import Writer  # noqa: E402

NUM_STEPS = 30


def train_step(state, batch, key):
    x = batch["x"] + 0.3 * jax.random.normal(key, batch["x"].shape)

    def loss_fn(params):
        return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"] - batch["y"]) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads), {"loss": loss}


def transform(example, generator):
    noise = generator.normal(size=4).astype(np.float32)
    return {"x": example["x"] + 0.1 * noise, "y": example["y"]}


def announce(state, done):
    del state
    print(f"step {done}", flush=True)
    time.sleep(0.01)  # so that a kill can fall between any two steps


def main(folder: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    source = {
        "x": rng.normal(size=(50, 4)).astype(np.float32),
        "y": rng.normal(size=50).astype(np.float32),
    }
    keys = jax.random.split(jax.random.key(1))
    params = {"a": jax.random.normal(keys[0], (4, 64)), "b": jax.random.normal(keys[1], (64,))}
    writer = Writer(folder)
    checkpointer = Checkpointer(folder / "checkpoints")
    state = loop.fit(
        TrainState.create(params, optax.sgd(0.01, momentum=0.9), ema_decay=0.99),
        train_step,
        train_iterator(source, 8, seed=2, transform=transform, threads=2),
        num_steps=NUM_STEPS,
        key=jax.random.key(0),
        writer=writer,
        checkpointer=checkpointer,
        checkpoint_every=2,
        log_every=1,
        hooks=[(1, announce)],
    )
    writer.close()
    checkpointer.close()
    leaves = {f"{index}": np.asarray(x) for index, x in enumerate(jax.tree.leaves(state))}
    np.savez(folder / "final.npz", **leaves)


if __name__ == "__main__":
    try:
        main(pathlib.Path(sys.argv[1]))
    except loop.Preempted:
        sys.exit(143)
