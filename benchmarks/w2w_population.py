"""Adapters per second: a population as one batch axis, against one adapter after another.

    python benchmarks/w2w_population.py [--adapters 24] [--steps 10] [--base PATH]

Both run the same jitted step of ``w2w.train`` on random latents with the shipped base model and
the recipe of ``configs/w2w.py``; they take turns, and the median of three rounds is printed.
Compilation is excluded. The floor is the base network's forward and backward operations at the
rate of a large float32 matrix product measured in the same run.
"""

import argparse
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import timing

from common import allocator
from configs import w2w as w2w_config
from w2w import context, lora, models, train


def seconds(function, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        result = function()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / repeats


def peak() -> float:
    """Floating-point operations per second of a large float32 product (2048 x 2048 on a CPU)."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (side, side))
    product = jax.jit(lambda x: x @ x)
    product(a).block_until_ready()
    return 2 * side**3 / seconds(lambda: product(a), 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, default=24)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--base", type=Path, default=models.SHIPPED_WEIGHTS)
    options = parser.parse_args()
    timing.prepare()
    config = w2w_config.get_config()
    recipe = context.adapter_recipe(config)
    lora_config = lora.LoraConfig(config.lora.rank, config.lora.alpha)
    model, params, _ = models.load(options.base)
    text = model.encode(params, model.tokenizer(["sks person", "person"]))
    rng = np.random.default_rng(0)

    def latents(*shape):
        return jnp.asarray(rng.normal(size=(*shape, *model.latent_shape)), jnp.float32)

    shared = train.Shared(params["unet"], text[:1], text[1:], latents(8))
    frames = latents(options.adapters, 5)
    step = jax.jit(train.make_population_step(model, lora_config, recipe))

    def run(count):
        states = train.init_population(jax.random.key(0), count, shared, lora_config, recipe)
        return lambda: step(states, frames[:count], jax.random.key(1), shared)

    together, alone = run(options.adapters), run(1)
    for function in (together, alone):
        jax.block_until_ready(function())
    images = options.adapters * (recipe.batch + recipe.class_batch)
    arguments = (params["unet"], latents(images), jnp.ones(images), train.repeat(text[:1], images))
    with jax.default_device(jax.devices("cpu")[0]):  # a GPU's compiler does not count
        shapes = jax.eval_shape(lambda *found: found, *arguments)
        forward = jax.jit(model.predict).lower(*shapes).compile()
    operations = 2 * forward.cost_analysis()["flops"]  # forward, and the gradient of activations
    timing.my_turn()
    rounds = [(seconds(together, options.steps), seconds(alone, options.steps)) for _ in range(3)]
    population = statistics.median(a for a, _ in rounds)
    single = statistics.median(b for _, b in rounds)
    rate = peak()
    print(f"device: {jax.devices()[0].device_kind}; matrix product: {rate / 1e9:.0f} GFLOP/s")
    print("| | seconds per step | adapters per second (of one step each) |\n|---|---|---|")
    count = options.adapters
    print(f"| {count} at once | {population:.4f} | {count / population:.1f} |")
    print(f"| one after another | {single:.4f} | {1 / single:.1f} |")
    floor = operations / rate
    print(f"| floor for {options.adapters} | {floor:.4f} | {options.adapters / floor:.1f} |")
    print(f"ratio: {options.adapters * single / population:.2f}")
    timing.print_memory()


if __name__ == "__main__":
    allocator.use_huge_pages()
    main()
