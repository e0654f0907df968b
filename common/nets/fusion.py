"""A limit to fusion on CPUs: arrays that several operations need are computed once."""

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

__all__ = ["gradient_once", "once"]


def once(x: jax.Array) -> jax.Array:
    """`x`; on a CPU it is written to memory before anything reads it.

    XLA's CPU compiler computes elementwise operations anew within each operation that reads their
    result. Where that is a transposition, as convolutions and matrix products in a gradient need
    them, the inputs are then read in an order that suits neither, which takes several times as
    long. `jax.lax.optimization_barrier` is no help: it is gone before operations are fused. A
    function that may not be inlined is a border that stays.

    Meant for gradients written by hand: the gradient of `once` itself has no such border.
    """
    if jax.default_backend() != "cpu":
        return x
    with set_xla_metadata(inlineable="false"):
        return _same(x)


@jax.custom_vjp
def gradient_once(x: jax.Array) -> jax.Array:
    """`x`, whose gradient is `once` of it: for layers whose gradient JAX writes."""
    return x


gradient_once.defvjp(lambda x: (x, None), lambda _, slope: (once(slope),))


@jax.jit
def _same(x: jax.Array) -> jax.Array:
    return x * jnp.ones((), x.dtype)  # something, or JAX leaves the function out
