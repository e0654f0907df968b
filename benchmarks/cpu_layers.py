"""Layers of `common.nets` that are written for CPUs, beside the same layers of JAX and Flax.

    python benchmarks/cpu_layers.py

Milliseconds of the forward pass and of the gradients with respect to images and kernels, float32,
best of seven, with the flags of `common.xla_flags` for both. The results are compared, too.
"""

import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import xla_flags
from common.nets import conv, conv_transpose, pool

_NUMBERS = ("NHWC", "HWIO", "NHWC")
Layer = Callable[..., jax.Array]


def convolution(module: Any, stride: int, pad: int) -> Layer:
    return lambda x, kernel: module.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=_NUMBERS)


def transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_transpose(x, kernel, (2, 2), "VALID", dimension_numbers=_NUMBERS)


def ours_transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return conv_transpose.conv_transpose_2x(x, kernel, "VALID")


def layers() -> list[tuple[str, tuple[tuple[int, ...], ...], Layer, Layer]]:
    """Name, shapes of the arguments, and the layer there and here."""
    found: list = [
        (f"maximum of {k} x {k} every 2", ((16, 64, 64, channels),),
         lambda x, k=k: nn.max_pool(x, (k, k), (2, 2)),
         lambda x, k=k: pool.max_pool(x, (k, k), (2, 2)))
        for k, channels in ((2, 16), (3, 64))]
    found += [
        (f"convolution {k} x {k}, stride {s}, {c} to {f}", ((32, 64, 64, c), (k, k, c, f)),
         convolution(jax.lax, s, 1), convolution(conv, s, 1))
        for k, s, c, f in ((3, 1, 1, 16), (3, 1, 3, 16), (4, 2, 3, 32), (3, 1, 16, 32))]
    found.append(("convolution 3 x 3, pad 2, 64 to 48", ((16, 13, 13, 64), (3, 3, 64, 48)),
                  convolution(jax.lax, 1, 2), convolution(conv, 1, 2)))
    found += [
        (f"transposed {k} x {k}, {side} to {2 * side + k - 2}, {c} to {f}",
         ((16, side, side, c), (k, k, c, f)), transposed, ours_transposed)
        for k, side, c, f in ((5, 1, 768, 96), (5, 13, 64, 48), (8, 29, 48, 3), (4, 32, 64, 3))]
    return found


def gradients(function: Layer) -> Layer:
    """The gradients of a layer for a slope, its first argument."""
    return lambda slope, *arguments: jax.vjp(function, *arguments)[1](slope)


def milliseconds(function: Layer, *arguments: Any) -> float:
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(7):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def main() -> None:
    xla_flags.prepare()
    rng = np.random.default_rng(0)
    print(f"jax {jax.__version__}; milliseconds, there -> here")
    print("| layer | forward | gradients |\n|---|---|---|")
    for name, shapes, there, here in layers():
        arguments = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
        slope = jnp.asarray(rng.normal(size=there(*arguments).shape), jnp.float32)
        times = []
        for function in (there, here):
            times.append((milliseconds(function, *arguments),
                          milliseconds(gradients(function), slope, *arguments)))
        values = [jax.tree.leaves((f(*arguments), gradients(f)(slope, *arguments)))
                  for f in (there, here)]
        for a, b in zip(*values, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-3 * float(jnp.abs(a).max()))
        cells = " | ".join(f"{a:.1f} -> {b:.1f}" for a, b in zip(*times, strict=True))
        print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
