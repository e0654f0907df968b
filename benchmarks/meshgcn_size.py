"""Training step of the largest networks on one device: time, memory, scans a second.

    python benchmarks/meshgcn_size.py [--template fsaverage] [--batch 16] [--routes gather bcsr]

The network of configs/meshgcn.py:paper on both hemispheres and the 14 subcortical bodies as one
graph, with six coordinates a vertex; the scans are synthetic people. A step is the gradient of the
loss of a batch and AdamW, as in `meshgcn.train`. Memory is what the compiled program needs:
temporary buffers and arguments. With --epochs, a whole trial (`meshgcn.train.fit_trials`: splits,
standardisation, validation, scores of all scans) is run after it.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing

from configs import meshgcn as meshgcn_config
from meshgcn import context, models, train


def step_of(net, optimiser):
    """One training step, jitted; the state is donated."""

    def loss_of(params, stats, x, label, key, hierarchy):
        variables, rngs = {"params": params, **stats}, {"dropout": key}
        settings = dict(train=True, rngs=rngs, mutable=list(stats))
        logits, new = net.apply(variables, x, hierarchy, **settings)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        return losses.mean(), dict(new)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, x, label, key, hierarchy):
        params, stats, moments = state
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, stats), grads = gradient(params, stats, x, label, key, hierarchy)
        updates, moments = optimiser.update(grads, moments, params)
        return (optax.apply_updates(params, updates), stats, moments), loss

    return step


def measure(net, x, label, hierarchy, steps):
    """(parameters, seconds to compile, seconds of the fastest and the median step, bytes)."""
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.3))
    variables = dict(jax.jit(net.init)(jax.random.key(0), x[:1], hierarchy))
    params, stats = variables.pop("params"), variables
    state = (params, stats, optimiser.init(params))
    keys = jax.random.split(jax.random.key(1), steps + 2)
    start = time.perf_counter()
    compiled = step_of(net, optimiser).lower(state, x, label, keys[0], hierarchy).compile()
    compiling = time.perf_counter() - start
    memory = compiled.memory_analysis()
    size = models.count_parameters(params)
    taken = []
    for key in keys:
        start = time.perf_counter()
        state, loss = compiled(state, x, label, key, hierarchy)
        value = float(loss)
        taken.append(time.perf_counter() - start)
        if not np.isfinite(value):
            raise SystemExit(f"loss {value}")
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    return size, compiling, min(taken[2:]), float(np.median(taken[2:])), needed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--template", default="fsaverage")
    parser.add_argument("--cortex_only", action="store_true")
    parser.add_argument("--features", default="xyz")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--routes", nargs="+", default=["gather"], choices=("gather", "bcsr"))
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument(
        "--subjects", type=int, default=0, help="default: one batch; three to train"
    )
    options = parser.parse_args()
    timing.prepare()
    config = meshgcn_config.get_config("paper")
    config.mesh.template, config.mesh.subcortex = options.template, not options.cortex_only
    config.cohort.features, config.cohort.people.repeated = options.features, 0.0
    config.cohort.people.subjects = options.subjects or options.batch * (3 if options.epochs else 1)
    config.train.batch = config.train.eval_batch = options.batch
    config.train.epochs, config.operators.route = max(options.epochs, 1), options.routes[0]

    start = time.perf_counter()
    brain, net = context.template_of(config), context.network(config, "residual")
    hierarchy = context.operators(config, "residual")
    print(f"template and operators: {time.perf_counter() - start:.1f} s", flush=True)
    start = time.perf_counter()
    found = context.scans(config, context.Condition("additive", 0.2))
    print(f"{len(found.x)} synthetic scans: {time.perf_counter() - start:.1f} s", flush=True)
    sizes = ", ".join(f"{operator.shape[0] if options.routes[0] == 'bcsr' else operator.rows:,}"
                      for operator in hierarchy.convolutions)  # fmt: skip
    print(
        f"{jax.devices()[0].device_kind}, {options.template}, {len(brain.mesh.structures)} "
        f"structures, {len(brain.mesh):,} vertices (levels {sizes}), {found.x.shape[2]} features"
    )
    mean, deviation = found.x.mean(axis=0), found.x.std(axis=0)
    batch = (found.x[: options.batch] - mean) / np.maximum(deviation, 1e-3)
    x, label = jnp.asarray(batch), jnp.asarray(found.label[: options.batch])
    timing.my_turn()
    print("| route | parameters | batch | compile, s | step, ms (median) | scans/s | memory, GB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for route in options.routes:
        config.operators.route = route
        hierarchy = context.operators(config, "residual")
        try:
            size, compiling, best, middle, needed = measure(net, x, label, hierarchy, options.steps)
        except jax.errors.JaxRuntimeError as error:  # out of memory, most likely
            print(f"| {route} | | {options.batch} | {' '.join(str(error).split())[:160]} |")
            continue
        print(
            f"| {route} | {size:,} | {options.batch} | {compiling:.1f} | {1000 * best:.1f} "
            f"({1000 * middle:.1f}) | {options.batch / best:.1f} | {needed / 1e9:.2f} |",
            flush=True,
        )
    if options.epochs:
        config.operators.route = options.routes[0]
        roles = context.roles_of(config, found, 1)
        settings = (net, context.recipe(config, "residual"), np.array([0]), roles)
        hierarchy = context.operators(config, "residual")
        for what in ("with compilation", "compiled"):
            start = time.perf_counter()
            fitted = train.fit_trials(*settings, found.label[None], jnp.asarray(found.x), hierarchy)
            print(
                f"trial of {options.epochs} epochs of {(roles == 0).sum()} scans, {what}: "
                f"{time.perf_counter() - start:.1f} s, training loss "
                f"{fitted.train_loss[0, 0]:.3f} to {fitted.train_loss[0, -1]:.3f}",
                flush=True,
            )
    statistics = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        print(f"peak of the device's memory: {statistics['peak_bytes_in_use'] / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
