"""Low-rank adaptation (LoRA) as a pure transform over the parameters of a flax network.

An *adapter* is a dictionary ``{module: {"a": [in, rank], "b": [rank, out]}}``. It adapts a dense
layer of kernel ``W [in, out]`` to ``W + multiplier * scale * a b`` (Hu et al., "LoRA", ICLR 2022,
eq. 3) with ``scale = alpha / rank``, or ``alpha / sqrt(rank)`` for rank-stabilised LoRA
(Kalajdzievski, 2023). Modules are named as in torch
(``down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q``), so that adapters and their flat
vectors equal those of PEFT; ``a`` and ``b`` are the transposes of PEFT's ``lora_A [rank, in]`` and
``lora_B [out, rank]``.

There are two ways to use an adapter. :func:`apply` gives merged parameters. :func:`adapted` leaves
the parameters alone and adds ``(x a) b`` to the output of each adapted layer: under ``jax.vmap``
over many adapters each base matmul stays one product with a shared weight, and only the two thin
products have a batch of weights.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.typing import ArrayLike

from w2w.lora_layout import (
    Adapter,
    Layout,
    LoraConfig,
    Params,
    flatten,
    flax_path,
    from_peft,
    target_modules,
    to_peft,
    torch_name,
    unflatten,
)

__all__ = [
    "Adapter",
    "Layout",
    "LoraConfig",
    "Params",
    "adapted",
    "apply",
    "canonicalise",
    "flatten",
    "flax_path",
    "from_peft",
    "init",
    "intercept",
    "merge",
    "target_modules",
    "to_peft",
    "torch_name",
    "unflatten",
]


def init(
    key: jax.Array,
    params: Params,
    config: LoraConfig,
    n: int | None = None,
    same_a: bool = True,
) -> Adapter:
    """A new adapter that changes nothing yet, or a population of ``n`` of them.

    As in PEFT, each entry of ``a`` is uniform in ``[-1/sqrt(in), 1/sqrt(in)]`` (Kaiming with
    ``a = sqrt(5)``) and ``b`` is zero.

    Args:
      key: random key.
      params: the ``params`` collection of the base network.
      config: names the targets and the rank.
      n: number of adapters; None for one without a leading axis.
      same_a: give all adapters of a population the same ``a``. They then keep a common gauge (see
        :func:`canonicalise`), which is what makes their vectors linearly comparable.

    Returns:
      ``{module: {"a": [in, rank], "b": [rank, out]}}``, with a leading ``[n]`` if ``n`` is given.
    """
    layout = Layout.from_params(params, config)

    def one(key):
        keys = jax.random.split(key, len(layout.modules))
        adapter = {}
        for module_key, (name, fan_in, fan_out) in zip(keys, layout.modules, strict=True):
            bound = 1 / math.sqrt(fan_in)
            a = jax.random.uniform(
                module_key, (fan_in, config.rank), jnp.float32, minval=-bound, maxval=bound
            )
            adapter[name] = {"a": a, "b": jnp.zeros((config.rank, fan_out), jnp.float32)}
        return adapter

    if n is None:
        return one(key)
    if same_a:
        return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], n, axis=0), one(key))
    return jax.vmap(one)(jax.random.split(key, n))


def apply(
    params: Params, adapter: Adapter, config: LoraConfig, multiplier: ArrayLike = 1.0
) -> dict[str, Any]:
    """Parameters with kernels ``W + multiplier * scale * a b``; differentiable.

    Raises:
      ValueError: the adapter does not fit the parameters or the configuration.
    """
    flat = dict(traverse_util.flatten_dict(params, sep="/"))
    for name, factors in adapter.items():
        path = _kernel_path(flat, name, factors, config)
        update = jnp.matmul(factors["a"], factors["b"], precision=jax.lax.Precision.HIGHEST)
        factor = jnp.asarray(multiplier, update.dtype) * config.scale
        flat[path] = flat[path] + (factor * update).astype(flat[path].dtype)
    return traverse_util.unflatten_dict(flat, sep="/")


def merge(
    params: Params, adapter: Adapter, config: LoraConfig, multiplier: float = 1.0
) -> dict[str, Any]:
    """Host copy of the parameters with the adapter merged in, for export.

    Like :func:`apply`, with float64 arithmetic and one rounding to each kernel's type at the end.
    """
    flat = {
        path: np.array(leaf) for path, leaf in traverse_util.flatten_dict(params, sep="/").items()
    }
    for name, factors in adapter.items():
        path = _kernel_path(flat, name, factors, config)
        a, b = (np.asarray(factors[k]).astype(np.float64) for k in ("a", "b"))
        merged = flat[path].astype(np.float64) + multiplier * config.scale * (a @ b)
        flat[path] = merged.astype(flat[path].dtype)
    return traverse_util.unflatten_dict(flat, sep="/")


def _kernel_path(
    flat: Mapping[str, Any], name: str, factors: Mapping[str, Any], config: LoraConfig
) -> str:
    """Path of the module's kernel, after comparing shapes."""
    path = f"{flax_path(name)}/kernel"
    if path not in flat:
        raise ValueError(f"the adapter has module {name}, but the parameters have no {path}")
    a, b, kernel = factors["a"].shape, factors["b"].shape, flat[path].shape
    if a != (kernel[0], config.rank) or b != (config.rank, kernel[-1]):
        raise ValueError(
            f"{name}: adapter factors {a} and {b} do not fit a kernel {kernel} at rank "
            f"{config.rank}"
        )
    return path


@contextlib.contextmanager
def intercept(adapter: Adapter, config: LoraConfig, multiplier: ArrayLike = 1.0) -> Iterator[None]:
    """Within this context, adapted ``nn.Dense`` layers add ``multiplier * scale * (x a) b``.

    Works under jit, vmap, grad and ``nn.remat``. What is called inside must not be jitted itself
    (nor use ``nn.jit`` or ``nn.scan``): a function that keeps the trace of an earlier call would
    keep its adapter, too. Put the context and the call inside ``jax.jit`` together. Contexts can be
    nested: the updates add up.

    Raises:
      ValueError: on leaving, if a module of the adapter was never called.
    """
    unused = set(adapter)

    def interceptor(call, args, kwargs, context):
        y = call(*args, **kwargs)
        module = context.module
        if context.method_name != "__call__" or not isinstance(module, nn.Dense):
            return y
        name = torch_name("/".join(module.path))
        if name not in adapter:
            return y
        a, b = adapter[name]["a"], adapter[name]["b"]
        if a.shape[-1] != config.rank:
            raise ValueError(f"{name}: adapter rank {a.shape[-1]}, configured {config.rank}")
        unused.discard(name)
        matmul = functools.partial(jnp.matmul, precision=module.precision)
        x = args[0] if args else kwargs["inputs"]
        update = matmul(matmul(x.astype(y.dtype), a.astype(y.dtype)), b.astype(y.dtype))
        return y + (jnp.asarray(multiplier, jnp.float32) * config.scale).astype(y.dtype) * update

    with nn.intercept_methods(interceptor):
        yield
    if unused:
        raise ValueError(
            f"adapter modules that the network never called: {sorted(unused)}; either it has no "
            "such modules, or a jitted function inside reused the trace of an earlier call"
        )


def adapted(
    apply_fn: Callable[..., Any],
    params: Any,
    adapter: Adapter,
    config: LoraConfig,
    multiplier: ArrayLike = 1.0,
) -> Callable[..., Any]:
    """The network with the adapter, unmerged.

    ``adapted(apply_fn, params, ...)(x)`` equals ``apply_fn(apply(params, ...), x)``.

    Args:
      apply_fn: called as ``apply_fn(params, *args, **kwargs)``; applies a linen network whose
        module paths are those of the adapter.
      params: passed through to ``apply_fn``; under vmap over adapters leave it unbatched.
      adapter: the adapter.
      config: gives the scale.
      multiplier: extra factor, may be traced; 0 is the base network exactly.

    Raises:
      TypeError: ``apply_fn`` is jitted, see :func:`intercept`; jit the result instead.
    """
    if hasattr(apply_fn, "lower") and hasattr(apply_fn, "trace"):
        raise TypeError("apply_fn is a jitted function; pass the plain one and jit around adapted")

    def call(*args, **kwargs):
        with intercept(adapter, config, multiplier):
            return apply_fn(params, *args, **kwargs)

    return call


def canonicalise(adapter: Adapter) -> Adapter:
    """The same update in a canonical gauge.

    ``a b`` does not change under ``(a G, G^-1 b)`` for invertible ``G``, so adapters trained from
    different initial values cannot be compared entry by entry. With the singular value
    decomposition ``a b = U S V^T`` of each module, the canonical factors are ``U sqrt(S)`` and
    ``sqrt(S) V^T``, largest singular value first, with the largest entry of each column of ``U``
    positive. Singular values below the rounding error are set to zero. Equal singular values leave
    a rotation undetermined.
    """
    return {name: dict(zip("ab", _balance(**f), strict=True)) for name, f in adapter.items()}


def _balance(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Balanced factors of ``a [in, r]`` times ``b [r, out]`` by an SVD of size r."""
    matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    q_a, r_a = jnp.linalg.qr(a)
    q_b, r_b = jnp.linalg.qr(b.T)
    u, s, vt = jnp.linalg.svd(matmul(r_a, r_b.T), full_matrices=False)
    tolerance = max(a.shape[0], b.shape[1]) * jnp.finfo(s.dtype).eps
    root = jnp.sqrt(jnp.where(s > tolerance * s[0], s, 0))
    left, right = matmul(q_a, u), matmul(vt, q_b.T)
    largest = jnp.argmax(jnp.abs(left), axis=0)
    sign = jnp.where(jnp.take_along_axis(left, largest[None], axis=0) < 0, -1, 1)
    root = sign.astype(s.dtype) * root[None]
    return left * root, root.T * right
