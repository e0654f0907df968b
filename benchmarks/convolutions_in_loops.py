"""Steps of one convolution inside `lax.scan`, with the gradients of JAX and of `common.nets.conv`.

    python benchmarks/convolutions_in_loops.py

Milliseconds a step (both gradients and an update of image and kernel), float32, best of five runs
of the loop; beside them the same step outside of a loop.
"""

import time
from collections.abc import Callable
from typing import Any

from common import xla_flags

xla_flags.prepare()

import jax  # noqa: E402 - the flags come first
import jax.numpy as jnp  # noqa: E402

from common.nets import conv  # noqa: E402

# Images, side, channels, kernel, stride.
LAYERS = ((16, 16, 48, 3, 1), (16, 16, 48, 3, 2), (50, 14, 32, 4, 2), (32, 32, 32, 3, 1))
STEPS = 5


def make_step(function: Callable[..., jax.Array], stride: int) -> Callable[[Any], Any]:
    def energy(x: jax.Array, kernel: jax.Array) -> jax.Array:
        names = ("NHWC", "HWIO", "NHWC")
        y = function(x, kernel, (stride, stride), "SAME", dimension_numbers=names)
        return jnp.sum(y**2)

    def step(carry: Any) -> Any:
        slopes = jax.grad(energy, (0, 1))(*carry)
        return jax.tree.map(lambda a, b: a - 1e-6 * b, carry, slopes)

    return step


def milliseconds(function: Callable[[Any], Any], start: Any, steps: int) -> float:
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(start))
    times = []
    for _ in range(5):
        before = time.perf_counter()
        jax.block_until_ready(compiled(start))
        times.append(time.perf_counter() - before)
    return 1000 * min(times) / steps


def main() -> None:
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}; milliseconds a step")
    print("| images, side, channels, kernel, stride | alone | scan, JAX | scan, common.nets.conv |")
    print("|---|---|---|---|")
    for images, side, channels, size, stride in LAYERS:
        start = (jnp.ones((images, side, side, channels)),
                 jnp.full((size, size, channels, channels), 0.01))
        cells = [milliseconds(make_step(jax.lax.conv_general_dilated, stride), start, 1)]
        for function in (jax.lax.conv_general_dilated, conv.conv_general_dilated):
            step = make_step(function, stride)

            def loop(carry: Any, step: Callable[[Any], Any] = step) -> Any:
                return jax.lax.scan(lambda c, _: (step(c), None), carry, None, length=STEPS)[0]

            cells.append(milliseconds(loop, start, STEPS))
        row = " | ".join(f"{cell:.1f}" for cell in cells)
        print(f"| {images}, {side}, {channels}, {size}, {stride} | {row} |", flush=True)


if __name__ == "__main__":
    main()
