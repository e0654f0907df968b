"""The trials of the low-data comparison as one program, and one after another.

    python benchmarks/medical_low_data.py [--trials 8] [--steps 10] [--method acgan] [--rounds 3]

The same trials (their own images, seeds and networks) are trained four ways: all at once with
convolutions as matrix products (`vmap`, the default) and with ordinary ones, which become grouped
(`grouped`); one after another inside one program (`map`); and by a loop in Python that calls the
compiled program of one trial, as a script over seeds would. Batches lie on the device in all. They
take turns; the median of the rounds is printed, without compilation, and the largest difference of
the trained parameters.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import timing

from medical.acgan import methods, models, population

CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--method", default="acgan", choices=("cnn", "acgan", "wacgan_gpt"))
    parser.add_argument("--widths", type=int, nargs=3, default=(16, 32, 64))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    timing.prepare()
    method = methods.METHODS[options.method]
    generator = models.Generator(tuple(options.widths)[::-1], CLASSES)
    discriminator = models.Discriminator(tuple(options.widths), CLASSES)
    recipe = method.recipe(latent=64)
    schedule = population.Schedule(options.steps, options.steps, 50)
    batch = data(options.trials)
    state = jax.jit(lambda seeds: population.init(
        generator, discriminator, recipe, jnp.zeros((1, 28, 28, 1)), seeds, jax.random.key(0), 1)
    )(batch["trial"]["seed"])
    key = jax.random.key(1)
    products = generator.clone(products=True), discriminator.clone(products=True)
    plain = generator, discriminator
    programs = {name: jax.jit(population.make_chunk(*nets, method, recipe, schedule, mode))
                for name, nets, mode in (("vmap", products, "vmap"), ("grouped", plain, "vmap"),
                                         ("map", plain, "map"))}
    single = programs["map"]

    def one(index: int) -> population.Population:
        pick = slice(index, index + 1)
        part = {**batch, "trial": jax.tree.map(lambda leaf: leaf[pick], batch["trial"])}
        return single(jax.tree.map(lambda leaf: leaf[pick], state), part, key)[0]

    def loop() -> population.Population:
        parts = [one(index) for index in range(options.trials)]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    runs = {name: lambda program=program: program(state, batch, key)[0]
            for name, program in programs.items()}
    runs["loop"] = loop
    times: dict[str, list[float]] = {name: [] for name in runs}
    results = {}
    for turn in range(options.rounds + 1):
        if turn == 1:
            timing.my_turn()
        for name, run in runs.items():
            start = time.perf_counter()
            results[name] = jax.block_until_ready(run())
            if turn:  # the first compiles
                times[name].append(time.perf_counter() - start)
    print(f"{options.trials} trials of {options.method}, {options.steps} steps of 50 images and a "
          f"validation, jax {jax.__version__} on {jax.devices()[0].device_kind}")
    print(f"{'':7} {'seconds':>9} {'trial steps, 1/s':>17} {'difference':>11}")
    for name, values in times.items():
        seconds = statistics.median(values)
        apart = max(jax.tree.leaves(jax.tree.map(
            lambda a, b: float(jnp.abs(a - b).max()), results[name].params,
            results["loop"].params)))
        rate = options.trials * options.steps / seconds
        print(f"{name:7} {seconds:9.2f} {rate:17.1f} {apart:11.1e}")
    timing.print_memory()


def data(trials: int) -> dict:
    """Noise images: 20 of each class for each trial, and 200 for validation."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (1000, 28, 28, 1), np.uint8)
    rows = np.stack([random.permutation(1000)[: 20 * CLASSES] for _ in range(trials)])
    labels = jnp.asarray(np.arange(1000) % CLASSES, jnp.int32)
    return {
        "trial": {"rows": jnp.asarray(rows, jnp.int32),
                  "count": jnp.full(trials, 20 * CLASSES, jnp.int32),
                  "seed": jnp.arange(trials, dtype=jnp.int32),
                  "per_class": jnp.full(trials, 20, jnp.int32)},
        "shared": {"images": jnp.asarray(images), "labels": labels,
                   "valid_images": jnp.asarray(images[:200]), "valid_labels": labels[:200]},
        "frozen": None}


if __name__ == "__main__":
    main()
