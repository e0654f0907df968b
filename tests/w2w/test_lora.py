"""LoRA transform: merged against unmerged, populations, types, gauge fixing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.w2w import attention
from tests.w2w.attention import WIDTHS, call, inputs, make, random_adapter
from w2w import lora

pytestmark = pytest.mark.full_compile  # equal to a few roundings

jitted_call = jax.jit(call, static_argnames="remat")


@pytest.fixture(scope="module")
def base():
    """Parameters and one batch of inputs."""
    x, text = inputs()
    return jax.jit(attention.init)(x, text), x, text


def test_neutral_adapters_are_exact(base):
    """A fresh adapter, and any adapter at multiplier 0, leave the output bit for bit as it is."""
    params, x, text = base
    config, _, adapter = make(params)
    plain = call(params, x, text)
    fresh = lora.init(jax.random.key(0), params, config)
    for case, multiplier in ((fresh, 1.0), (adapter, 0.0)):
        got = lora.adapted(call, params, case, config, multiplier)(x, text)
        np.testing.assert_array_equal(got, plain)


def test_init_has_the_spread_of_peft(base):
    params, _, _ = base
    config = lora.LoraConfig(rank=8, alpha=27.0)
    init = jax.jit(lora.init, static_argnames=("config", "n", "same_a"))
    adapter = init(jax.random.key(0), params, config)
    for name, factors in adapter.items():
        bound = factors["a"].shape[0] ** -0.5
        largest = float(jnp.abs(factors["a"]).max())
        assert 0.9 * bound < largest <= bound, name
        np.testing.assert_allclose(factors["a"].std(), bound / 3**0.5, rtol=0.15)
        assert not factors["b"].any()
    same = init(jax.random.key(0), params, config, n=3)
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[2], same), adapter)
    different = init(jax.random.key(0), params, config, n=3, same_a=False)
    first = next(iter(different.values()))["a"]
    assert float(jnp.abs(first[0] - first[1]).max()) > 0.01


@pytest.mark.parametrize(
    ("rank", "rslora", "remat"), [(1, False, False), (4, False, False), (4, True, True)]
)
def test_unmerged_equals_merged(base, rank, rslora, remat):
    """Forward and gradient, for several multipliers; also after merging on the host."""
    params, x, text = base
    config, layout, adapter = make(params, rank, rslora=rslora)
    assert config.scale == pytest.approx(27 / (rank**0.5 if rslora else rank))

    def unmerged(adapter, multiplier):
        return lora.adapted(call, params, adapter, config, multiplier)(x, text, remat=remat)

    def merged(adapter, multiplier):
        return call(lora.apply(params, adapter, config, multiplier), x, text)

    @jax.jit
    def outputs_and_gradients(vector, multiplier):
        def loss(vector, forward):
            y = forward(lora.unflatten(vector, layout), multiplier)
            return jnp.mean(y**2), y

        pairs = [jax.grad(loss, has_aux=True)(vector, f) for f in (unmerged, merged)]
        return tuple(zip(*pairs, strict=True))

    plain = jitted_call(params, x, text)
    vector = lora.flatten(adapter, layout)
    for multiplier in (1.0, -0.5):
        gradients, outputs = outputs_and_gradients(vector, multiplier)
        near, steep = (1e-5 * float(jnp.abs(of[1]).max()) for of in (outputs, gradients))
        np.testing.assert_allclose(*outputs, atol=near)
        np.testing.assert_allclose(*gradients, atol=steep)
        exported = lora.merge(params, adapter, config, multiplier)
        np.testing.assert_allclose(outputs[0], jitted_call(exported, x, text), atol=near)
        assert float(jnp.abs(outputs[0] - plain).max()) > 0.1


def weight_batches(jaxpr, n, kernels):
    """Shapes ``[n, in, out]`` (in any order) of all intermediate values, also in inner jaxprs."""
    found = []
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            shape = variable.aval.shape
            if len(shape) == 3 and n in shape:
                rest = list(shape)
                rest.remove(n)
                if tuple(rest) in kernels or tuple(rest[::-1]) in kernels:
                    found.append(shape)
        for parameter in jax.tree.leaves(
            equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                found += weight_batches(inner, n, kernels)
    return found


def test_population_has_no_batch_of_weights(base):
    """vmap over adapters, forward and gradient, never forms ``[N, in, out]``; merging does."""
    params, _, _ = base
    config, layout, _ = make(params, rank=2)
    n = 11
    vectors = 0.1 * jax.random.normal(jax.random.key(1), (n, layout.size))
    x = jax.random.normal(jax.random.key(2), (n, 3, 7, 5))
    text = jax.random.normal(jax.random.key(3), (3, 4, WIDTHS["text"]))
    kernels = {m[1:] for m in layout.modules}

    def unmerged(vector, x):
        adapter = lora.unflatten(vector, layout)
        return jnp.mean(lora.adapted(call, params, adapter, config)(x, text, remat=True) ** 2)

    def merged(vector, x):
        parameters = lora.apply(params, lora.unflatten(vector, layout), config)
        return jnp.mean(call(parameters, x, text) ** 2)

    unmerged, merged = (jax.vmap(jax.value_and_grad(f)) for f in (unmerged, merged))
    assert weight_batches(jax.make_jaxpr(unmerged)(vectors, x).jaxpr, n, kernels) == []
    assert weight_batches(jax.make_jaxpr(merged)(vectors, x).jaxpr, n, kernels)
    got, wanted = jax.jit(lambda *args: (unmerged(*args), merged(*args)))(vectors, x)
    chex.assert_trees_all_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_contexts_add_up_and_unused_modules_are_errors(base):
    params, x, text = base
    config, layout, first = make(params)
    second = random_adapter(jax.random.key(8), layout, 0.05)
    both = lora.apply(lora.apply(params, first, config), second, config)
    with lora.intercept(first, config):
        got = lora.adapted(call, params, second, config)(x, text)
    np.testing.assert_allclose(got, call(both, x, text), atol=1e-5)
    stranger = {**first, "up_blocks.7.attn1.to_q": first["up_blocks.10.attn1.to_q"]}
    with pytest.raises(ValueError, match="never called.*up_blocks.7"):
        lora.adapted(call, params, stranger, config)(x, text)
    with pytest.raises(ValueError, match="up_blocks.7"):
        lora.apply(params, stranger, config)
    with pytest.raises(ValueError, match="at rank 2"):
        lora.apply(params, first, lora.LoraConfig(rank=2))
    with pytest.raises(ValueError, match="adapter rank 1, configured 2"):
        lora.adapted(call, params, first, lora.LoraConfig(rank=2))(x, text)


def test_jitted_functions_inside_are_errors(base):
    """They would go on using the adapter of their first call."""
    params, x, text = base
    config, _, adapter = make(params)
    with pytest.raises(TypeError, match="jitted"):
        lora.adapted(jitted_call, params, adapter, config)
    inner = jax.jit(lambda *args: call(*args))
    hidden = lora.adapted(lambda *args: inner(*args), params, adapter, config)
    hidden(x, text)
    with pytest.raises(ValueError, match="reused the trace"):
        hidden(x, text)


def test_half_precision_keeps_types(base):
    params, x, text = base
    config, _, adapter = make(params)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    merged = lora.merge(half, adapter, config)
    chex.assert_trees_all_equal_dtypes(merged, lora.apply(half, adapter, config), half)
    inputs = x.astype(jnp.bfloat16), text.astype(jnp.bfloat16)
    got = jax.jit(lora.adapted(call, half, adapter, config))(*inputs)
    assert got.dtype == jnp.bfloat16
    exact = jax.jit(lora.adapted(call, params, adapter, config))(x, text)
    np.testing.assert_allclose(got.astype(jnp.float32), exact, atol=0.1 * jnp.abs(exact).max())


@pytest.mark.parametrize("rank", [1, 4])
def test_canonical_gauge(base, rank):
    """Adapters of the same update in random gauges agree after canonicalisation, not before."""
    params, _, _ = base
    _, layout, adapter = make(params, rank, alpha=None)
    rng = np.random.default_rng(0)

    def change_gauge(factors):
        if rank == 1:
            gauge = np.full((1, 1), rng.choice([-1, 1]) * np.exp(rng.normal()))
        else:
            left, right = (np.linalg.qr(rng.normal(size=(rank, rank)))[0] for _ in range(2))
            gauge = (left * np.exp(0.5 * rng.normal(size=rank))) @ right
        a, b = (np.asarray(factors[k], np.float64) for k in ("a", "b"))
        a, b = a @ gauge, np.linalg.solve(gauge, b)
        return {"a": jnp.asarray(a, jnp.float32), "b": jnp.asarray(b, jnp.float32)}

    canonical = jax.jit(lora.canonicalise)
    raw = lora.flatten(adapter, layout)
    reference = lora.flatten(canonical(adapter), layout)
    for _ in range(5):
        other = {name: change_gauge(factors) for name, factors in adapter.items()}
        for name in adapter:
            np.testing.assert_allclose(
                other[name]["a"] @ other[name]["b"],
                adapter[name]["a"] @ adapter[name]["b"],
                atol=1e-6,
            )
        assert float(jnp.abs(lora.flatten(other, layout) - raw).max()) > 0.1
        got = lora.flatten(canonical(other), layout)
        # Roundings turn singular vectors by eps times the largest value over the smallest gap.
        np.testing.assert_allclose(got, reference, atol=1e-6 if rank == 1 else 2e-5)

    for name, factors in canonical(adapter).items():
        a, b = factors["a"], factors["b"]
        np.testing.assert_allclose(a @ b, adapter[name]["a"] @ adapter[name]["b"], atol=1e-6)
        singular = np.linalg.svd(np.asarray(adapter[name]["a"] @ adapter[name]["b"]))[1][:rank]
        np.testing.assert_allclose(a.T @ a, np.diag(singular), atol=3e-6 * singular[0])
        np.testing.assert_allclose(b @ b.T, np.diag(singular), atol=3e-6 * singular[0])
        assert (np.take_along_axis(a, np.abs(a).argmax(0)[None], 0) > 0).all()


def test_canonical_gauge_of_deficient_updates(base):
    """Zero and rank-deficient updates give zero columns, not amplified rounding errors."""
    params, _, _ = base
    config = lora.LoraConfig(rank=4)
    canonical = jax.jit(lora.canonicalise)
    fresh = canonical(lora.init(jax.random.key(0), params, config))
    chex.assert_trees_all_equal(fresh, jax.tree.map(jnp.zeros_like, fresh))
    _, _, adapter = make(params, rank=4, alpha=None)
    deficient = {
        name: {"a": f["a"].at[:, 3].set(f["a"][:, 0]), "b": f["b"]} for name, f in adapter.items()
    }
    for name, factors in canonical(deficient).items():
        assert not factors["a"][:, 3].any()
        product = deficient[name]["a"] @ deficient[name]["b"]
        np.testing.assert_allclose(factors["a"] @ factors["b"], product, atol=1e-6)


def test_bad_configurations():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        lora.LoraConfig(rank=0)
    with pytest.raises(ValueError, match="tuple of regexes, got 'to_q'"):
        lora.LoraConfig(targets="to_q")
