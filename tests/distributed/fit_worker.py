"""One process of a small multi-process training run, for test_two_processes.py.

`fit_worker.py FOLDER DEVICES STEPS [COORDINATOR NUM_PROCESSES PROCESS_ID]` trains through
`common.loop.fit` with the checkpoints and the log in FOLDER and writes FOLDER/final.npz.
"""

import os
import pathlib
import sys
import time

sys.modules["torch"] = None  # tensorboardX would import it, for a third of the time of a start

import jax  # noqa: E402
import numpy as np  # noqa: E402

from common import distributed  # noqa: E402


def main(folder: pathlib.Path, num_steps: int, pause: float) -> None:
    import jax.numpy as jnp
    import optax

    from common import loop
    from common.checkpoint import Checkpointer
    from common.pipeline import eval_batches, train_iterator
    from common.sharding import init_sharded, make_mesh, shard_batch
    from common.train_state import TrainState
    from common.writer import Writer

    devices = jax.device_count()
    mesh = make_mesh(fsdp=2 if devices > 1 else 1)
    rules = (("/b$", ()), ("/a$", (None, "fsdp")))
    rng = np.random.default_rng(0)
    source = {
        "x": rng.normal(size=(50, 4)).astype(np.float32),
        "y": rng.normal(size=50).astype(np.float32),
    }
    tx = optax.sgd(0.05, momentum=0.9)

    def init(key):
        params = {"a": 0.5 * jax.random.normal(key, (4, 8)), "b": jnp.full((8,), 0.3)}
        return TrainState.create(params, tx, ema_decay=0.9)

    def predict(params, x):
        return jnp.tanh(x @ params["a"]) @ params["b"]

    def step(state, batch, key):
        x = batch["x"] + 0.3 * jax.random.normal(key, batch["x"].shape)

        def loss_fn(params):
            errors = (predict(params, x) - batch["y"]) ** 2
            return jnp.mean(errors), errors

        (_, errors), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return state.apply_gradients(grads), {"loss": errors}  # an array split over processes

    def transform(example, generator):
        noise = generator.normal(size=4).astype(np.float32)
        return {"x": example["x"] + 0.1 * noise, "y": example["y"]}

    def announce(state, done):
        del state
        print(f"step {done}", flush=True)
        time.sleep(pause)

    writer = Writer(folder)
    checkpointer = Checkpointer(folder / "checkpoints")
    try:
        state = loop.fit(
            init_sharded(init, mesh, rules, jax.random.key(1)),
            step,
            train_iterator(source, 8, seed=2, transform=transform),
            num_steps=num_steps,
            key=jax.random.key(0),
            mesh=mesh,
            rules=rules,
            writer=writer,
            checkpointer=checkpointer,
            checkpoint_every=5,
            log_every=1,
            hooks=[(1, announce)],
        )
    except loop.Preempted as stop:
        print(f"preempted at {stop.step}", flush=True)
        writer.close()
        checkpointer.close()
        distributed.barrier("preempted")
        sys.exit(143)
    assert len(state.params["a"].sharding.device_set) == devices

    @jax.jit
    def evaluate(params, batch):
        errors = (predict(params, batch["x"]) - batch["y"]) ** 2
        return jnp.sum(errors * batch["_mask"]), jnp.sum(batch["_mask"])

    sums = [evaluate(state.params, shard_batch(b, mesh)) for b in eval_batches(source, 12)]
    total, count = (sum(float(value) for value in column) for column in zip(*sums, strict=True))
    whole = jax.jit(lambda s: s, out_shardings=jax.NamedSharding(mesh, jax.P()))(state)
    leaves = {f"{index}": np.asarray(x) for index, x in enumerate(jax.tree.leaves(whole))}
    if distributed.is_main():
        np.savez(folder / "final.npz", evaluation=total / count, count=count, **leaves)
    writer.close()
    checkpointer.close()
    distributed.barrier("done")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
    if len(sys.argv) > 4:
        distributed.initialize(sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
    main(pathlib.Path(sys.argv[1]), int(sys.argv[3]), float(os.environ.get("STEP_PAUSE", "0")))
