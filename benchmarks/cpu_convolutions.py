"""Convolutions on a CPU with the compiler's defaults and with the flags of `common.xla_flags`.

    python benchmarks/cpu_convolutions.py

Each row is one layer: milliseconds of its forward pass and of its gradients with respect to images
and kernel, float32, best of seven. The compiler reads its flags once, so each column is a process.
"""

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from common import xla_flags

# Images, side, input and output channels, kernel, stride.
LAYERS = (
    (128, 14, 32, 64, 4, 2),
    (128, 14, 64, 64, 3, 1),
    (64, 8, 128, 128, 3, 1),
    (64, 8, 256, 256, 1, 1),
    (16, 64, 64, 64, 3, 1),
    (8, 112, 32, 64, 3, 1),
    (8, 224, 3, 32, 3, 2),
    (4, 32, 512, 512, 3, 1),
)


def convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, "SAME", dimension_numbers=names)


def energy(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return (convolution(x, kernel, stride) ** 2).sum()


def milliseconds(function: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    compiled = jax.jit(function)
    compiled(*arguments).block_until_ready()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        compiled(*arguments).block_until_ready()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def measure() -> None:
    """Prints three times a line for each layer."""
    for images, side, inputs, outputs, size, stride in LAYERS:
        layer = functools.partial(convolution, stride=stride)
        gradients = [jax.grad(functools.partial(energy, stride=stride), i) for i in (0, 1)]
        x, kernel = jnp.ones((images, side, side, inputs)), jnp.ones((size, size, inputs, outputs))
        print(*(milliseconds(f, x, kernel) for f in (layer, *gradients)))


def main() -> None:
    if sys.argv[1:] == ["--measure"]:
        measure()
        return
    given = os.environ.get("XLA_FLAGS", "")
    columns = []
    for flags in (given, xla_flags.with_cpu_flags(given)):
        command = [sys.executable, __file__, "--measure"]
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode:
            sys.exit(result.stderr)
        columns.append([[float(v) for v in line.split()] for line in result.stdout.splitlines()])
    print(f"jax {jax.__version__}; milliseconds, defaults -> flags: {xla_flags.with_cpu_flags('')}")
    print("| images, side, channels, kernel, stride | forward | images' gradient | kernel's |")
    print("|---|---|---|---|")
    for layer, before, after in zip(LAYERS, *columns, strict=True):
        images, side, inputs, outputs, size, stride = layer
        cells = " | ".join(f"{b:.1f} -> {a:.1f}" for b, a in zip(before, after, strict=True))
        print(f"| {images}, {side}, {inputs} -> {outputs}, {size}, {stride} | {cells} |")


if __name__ == "__main__":
    main()
