"""Mining beside a straight PyTorch port of the published algorithm, on the same tensors.

    python benchmarks/rosetta_mining.py [--pair dcgan-lite0] [--images 8] [--threads 2]
    python benchmarks/rosetta_mining.py --pair biggan-resnet50 --images 2 [--device cuda]

Both sides get the activations of one batch as arrays of their own layout and add its scores to
their tables; forward passes and passes for statistics are not timed. The port standardises both
maps, enlarges both to the larger size with `torch.nn.functional.interpolate`, and takes the cosine
over batch and positions of all pairs of units, layer by layer, as the published code does.

Rows: `published port` (score of the published code), `reference` (the same score here), `exact`
(Pearson, all sums). Each runs in a process of its own, so that the peak memory is its own:
`memory` is the growth of the process's peak over its size before the first batch. `processor` is
the time of all threads, which other programs beside it disturb less than the wall clock. `floor` is
the operations of the products alone, 2 units units cells images on the smaller of both grids, at
the rate that this machine reaches for one large float32 product of matrices. `agree` is the largest
difference of this side's reference score from the port's. On a GPU (`--device cuda`; JAX takes its
default device) `memory` is that of the GPU, and all products are float32 without TensorFloat-32.

Shapes are those of the networks; values are random, rectified where the network rectifies.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timing

# (name, size, channels) of each tap; BigGAN's by size, 53 layers in 7 groups of the same cells.
DCGAN = [("block0", 4, 512), ("block1", 8, 256), ("block2", 16, 128), ("block3", 32, 64)]
LITE0 = [(f"block{i}", size, channels) for i, (size, channels) in enumerate(
    [(112, 16)] + [(56, 24)] * 2 + [(28, 40)] * 2 + [(14, 80)] * 3 + [(14, 112)] * 3
    + [(7, 192)] * 4 + [(7, 320)])]  # fmt: skip
BIGGAN = [(f"size{size}", size, channels) for size, channels in
          [(4, 4096), (8, 7168), (16, 4096), (32, 3584), (64, 2944), (128, 1024), (256, 384)]]
RESNET50 = [("layer1", 56, 256), ("layer2", 28, 512), ("layer3", 14, 1024), ("layer4", 7, 2048)]
PAIRS = {"dcgan-lite0": (DCGAN, LITE0), "biggan-resnet50": (BIGGAN, RESNET50)}
SIDES = ("published port", "reference", "exact")


def activations(taps: list, images: int, seed: int) -> dict[str, np.ndarray]:
    """Random maps `[images, size, size, channels]`."""
    random = np.random.default_rng(seed)
    return {
        name: np.maximum(random.standard_normal((images, size, size, channels), np.float32), -0.5)
        for name, size, channels in taps
    }


def published_port(rows: dict, columns: dict, options):
    """The published algorithm in PyTorch: a function that scores a batch, and its table."""
    import torch
    import torch.nn.functional as F

    timing.tensor_float(False)  # as here, where the products ask for the highest precision
    sides = [
        [torch.tensor(x, device=options.device).permute(0, 3, 1, 2).contiguous()
         for x in maps.values()]
        for maps in (rows, columns)
    ]
    means = [[x.double().mean((0, 2, 3)).float() for x in side] for side in sides]
    deviations = [[x.transpose(0, 1).flatten(1).std(1) for x in side] for side in sides]
    counts = [sum(x.shape[1] for x in side) for side in sides]
    table = torch.zeros(counts, device=options.device)

    def standardised(side: int, layer: int):
        shape = (1, -1, 1, 1)
        mean, deviation = means[side][layer], deviations[side][layer]
        return (sides[side][layer] - mean.view(shape)) / (deviation.view(shape) + 1e-5)

    def batch() -> None:
        top = 0
        others = [standardised(1, j) for j in range(len(sides[1]))]
        for i in range(len(sides[0])):
            a, left = standardised(0, i), 0
            for b in others:
                size = [max(a.shape[2], b.shape[2])] * 2
                big_a, big_b = (
                    F.interpolate(x, size=size, mode="bilinear", align_corners=False)
                    for x in (a, b)
                )
                inner = torch.einsum("aixy,ajxy->ij", big_a, big_b)
                norm = torch.sqrt(
                    torch.einsum("aixy->i", big_a**2)[:, None]
                    * torch.einsum("ajxy->j", big_b**2)[None]
                )
                score = torch.nan_to_num(inner / norm)
                table[top : top + a.shape[1], left : left + b.shape[1]] += score
                left += b.shape[1]
            top += a.shape[1]
        timing.wait(options.device)

    return batch, lambda batches: (table / batches).cpu().numpy()


def exact(rows: dict, columns: dict, options):
    """Pearson's sums: a function that adds a batch."""
    import jax

    from rosetta import mining, tables
    from rosetta.units import Layout

    plan = mining.Plan((Layout.of("a", rows), Layout.of("b", columns)), (("a", "b"),))
    maps = jax.device_put({"a": rows, "b": columns})
    update = mining.make_update(plan)
    state = [mining.init(plan, maps)]

    def batch() -> None:
        state[0] = update(state[0], maps)
        jax.block_until_ready(state[0])

    return batch, lambda _: tables.correlations(plan, state[0], ("a", "b"))


def reference(rows: dict, columns: dict, options):
    """The published score: a function that adds a batch."""
    import jax

    from rosetta import mining
    from rosetta import reference as published
    from rosetta.units import Layout

    plan = mining.Plan((Layout.of("a", rows), Layout.of("b", columns)), (("a", "b"),))
    maps = jax.device_put({"a": rows, "b": columns})
    measured = published.stats(plan, published.init_stats(plan), maps)
    state = [published.init_score(plan)]

    def batch() -> None:
        state[0] = published.score(plan, state[0], measured, maps)
        jax.block_until_ready(state[0])

    return batch, lambda _: published.table(plan, state[0], ("a", "b"))


def operations(pair: tuple, images: int) -> float:
    """Of the products of all pairs of units on the smaller grid."""
    return sum(
        2.0 * a * b * min(s, t) ** 2 * images for _, s, a in pair[0] for _, t, b in pair[1]
    )


def rate(threads: int) -> float:
    """Operations a second of a float32 product of matrices, best of five."""
    import jax
    import jax.numpy as jnp

    side = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.asarray(np.random.default_rng(0).standard_normal((side, side), np.float32))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
    times = []
    for _ in range(6):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2.0 * side**3 / min(times[1:])


def measure(options) -> dict:
    """One side, in this process."""
    rows, columns = (
        activations(taps, options.images, seed) for seed, taps in enumerate(PAIRS[options.pair])
    )
    timing.prepare(options.device, options.threads)
    if options.side == "floor":
        timing.my_turn()
        return {"rate": rate(options.threads)}
    side = {"published port": published_port, "reference": reference, "exact": exact}
    batch, table = side[options.side](rows, columns, options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    batch()
    timing.my_turn()
    times, processor = [], []
    for _ in range(options.repeats):
        start, used = time.perf_counter(), time.process_time()
        batch()
        times.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = (after - before) / 2**20
    if options.device != "cpu":
        memory = timing.peaks(options.device)["torch" if options.side == SIDES[0] else "JAX"]
    if options.table:
        np.save(options.table, table(1 + options.repeats))
    return {
        "seconds": statistics.median(times),
        "processor": statistics.median(processor),
        "memory": memory,
    }


def child(options, side: str, table: str = "") -> dict:
    """Measures one side in another process."""
    command = [
        sys.executable, __file__, f"--pair={options.pair}", f"--images={options.images}",
        f"--threads={options.threads}", f"--repeats={options.repeats}", f"--side={side}",
        f"--device={options.device}",
        f"--table={table}",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    found = subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=PAIRS, default="dcgan-lite0")
    parser.add_argument("--images", type=int, default=8, help="of a batch")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--repeats", type=int, default=3)
    timing.add_device(parser)
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    parser.add_argument("--table", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options)))
        return
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for side in SIDES:
            path = str(Path(folder, f"{side.replace(' ', '_')}.npy"))
            found[side] = child(options, side, path)
            if side != "exact":
                tables[side] = np.load(path)
    speed = child(options, "floor")["rate"]
    floor = operations(PAIRS[options.pair], options.images) / speed
    print(f"{options.pair}, {options.images} images a batch, median of {options.repeats}; "
          f"torch on {options.device}")
    print(f"{'':16} {'s a batch':>10} {'images/s':>9} {'speed-up':>9} {'processor':>10} "
          f"{'speed-up':>9} {'memory':>9}")
    base, cpu = (found["published port"][key] for key in ("seconds", "processor"))
    for side, value in found.items():
        print(
            f"{side:16} {value['seconds']:10.4f} {options.images / value['seconds']:9.2f} "
            f"{base / value['seconds']:8.1f}x {value['processor']:10.3f} "
            f"{cpu / value['processor']:8.1f}x {value['memory']:6.2f} GB"
        )
    print(f"{'floor':16} {floor:10.4f} {options.images / floor:9.2f} {base / floor:8.1f}x "
          f"  at {speed / 1e9:.0f} GFLOP/s")
    difference = np.abs(tables["published port"] - tables["reference"]).max()
    print(f"agree within {difference:.1e}")


if __name__ == "__main__":
    main()
