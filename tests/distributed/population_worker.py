"""One process of a small population, for test_population.py.

`population_worker.py FOLDER [COORDINATOR NUM_PROCESSES PROCESS_ID]` trains five adapters of the
tests' face model in groups of two, in a stage of all processes; process 0 alone then writes
FOLDER/final.npz.
"""

import pathlib
import sys

import jax
import numpy as np
from ml_collections import ConfigDict

from common import distributed, stages, storage


def stand_in(*static):
    """A step that is quick to compile; what is tested is who trains which models."""

    def one(state, latents, key, shared):
        noise = jax.random.normal(jax.random.fold_in(key, state.step))
        grads = jax.tree.map(lambda leaf: leaf - latents.mean() + noise, state.params)
        return state.apply_gradients(grads), latents.mean()

    return jax.jit(jax.vmap(one, in_axes=(0, 0, None, None)))


def main(folder: pathlib.Path) -> None:
    from tests.w2w import small
    from w2w import build, context, generate, train

    train.compiled_population_step = stand_in
    tree = small.params()
    ctx = context.Context(
        small.MODEL, tree, small.LORA, small.layout(tree), small.shared(tree), generate.Drawing()
    )
    adapter = {k: v for k, v in small.recipe().__dict__.items() if k != "schedule"}
    config = ConfigDict(dict(seed=1, adapter={**adapter, "group": 2}))
    config.adapter.update(time_mean=0.0, time_std=1.0, num_steps=3)
    frames = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16)).astype(np.uint8)

    def populate(settings, inputs, out):
        vectors = build.fit_adapters(ctx, frames, settings, out / "groups", together=True)
        if distributed.is_main():
            storage.save_arrays(out / "adapters.safetensors", {"vectors": vectors})

    def collect(settings, inputs, out):
        print(f"collected by process {jax.process_index()}", flush=True)
        found, _ = storage.load_arrays(inputs["populate"] / "adapters.safetensors")
        np.savez(folder / "final.npz", **found)

    pipeline = stages.Pipeline(folder)
    pipeline.stage("populate", populate, config)
    pipeline.stage("collect", collect, {}, ("populate",), everywhere=False)


if __name__ == "__main__":
    path, *cluster = sys.argv[1:]
    jax.config.update("jax_platforms", "cpu")
    if cluster:
        distributed.initialize(cluster[0], *map(int, cluster[1:]))
    main(pathlib.Path(path))
