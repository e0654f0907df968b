"""LoRA transform: layout of SD 1.5, exact flattening, merged against unmerged, gauge fixing."""

import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2w import lora

WIDTHS = {"self": 24, "text": 12, "mlp": 17}


class Attention(nn.Module):
    """Single-head attention with the layer names of diffusers."""

    @nn.compact
    def __call__(self, x, context=None):
        context = x if context is None else context
        width = x.shape[-1]
        q = nn.Dense(width, use_bias=False, name="to_q")(x)
        k = nn.Dense(width, use_bias=False, name="to_k")(context)
        v = nn.Dense(width, use_bias=False, name="to_v")(context)
        weights = jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2) / width**0.5)
        return nn.Dense(width, name="to_out_0")(weights @ v)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, text):
        x = x + Attention(name="attn1")(x)
        x = x + Attention(name="attn2")(x, text)
        return x + nn.Dense(x.shape[-1], name="net_2")(nn.gelu(nn.Dense(WIDTHS["mlp"])(x)))


class Network(nn.Module):
    """Two transformer blocks, the second optionally rematerialised, behind one convolution."""

    remat: bool = False

    @nn.compact
    def __call__(self, x, text):
        x = nn.Conv(WIDTHS["self"], (3,), name="conv_in")(x)
        x = Block(name="down_blocks_0")(x, text)
        block = nn.remat(Block) if self.remat else Block
        return block(name="up_blocks_10")(x, text)


def call(params, x, text, remat=False):
    return Network(remat).apply({"params": params}, x, text)


jitted_call = jax.jit(call, static_argnames="remat")


@pytest.fixture(scope="module")
def base():
    """Parameters and one batch of inputs."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, 7, 5))
    text = jax.random.normal(keys[1], (3, 4, WIDTHS["text"]))
    return jax.jit(Network().init)(keys[2], x, text)["params"], x, text


def random_adapter(key, layout, scale=0.3):
    return lora.unflatten(scale * jax.random.normal(key, (layout.size,)), layout)


def make(params, rank=1, alpha=27.0, key=7, **kwargs):
    config = lora.LoraConfig(rank, alpha, **kwargs)
    layout = lora.Layout.from_params(params, config)
    return config, layout, random_adapter(jax.random.key(key), layout, 0.3 / config.scale**0.5)


def stable_diffusion_modules(text_width, blocks):
    """Adapted modules ``(name, in, out)`` of transformer ``blocks`` ``{name: width}``."""
    return tuple(
        (f"{name}.attn{i}.{layer}", text_width if (i, layer) == (2, "to_v") else width, width)
        for name, width in blocks.items()
        for i in (1, 2)
        for layer in ("to_q", "to_v")
    )


def unet_blocks(down, mid, up):
    """Names and widths of transformer blocks from ``(width, attentions, depth)`` by block."""
    stages = [(f"down_blocks.{i}", *stage) for i, stage in down.items()]
    stages += [("mid_block", *mid)]
    stages += [(f"up_blocks.{i}", *stage) for i, stage in up.items()]
    return {
        f"{stage}.attentions.{i}.transformer_blocks.{j}": width
        for stage, width, attentions, depth in stages
        for i in range(attentions)
        for j in range(depth)
    }


SD_BLOCKS = unet_blocks(
    {0: (320, 2, 1), 1: (640, 2, 1), 2: (1280, 2, 1)},
    (1280, 1, 1),
    {1: (1280, 3, 1), 2: (640, 3, 1), 3: (320, 3, 1)},
)
SDXL_BLOCKS = unet_blocks(
    {1: (640, 2, 2), 2: (1280, 2, 10)}, (1280, 1, 10), {0: (1280, 3, 10), 1: (640, 3, 2)}
)


def test_layout_of_stable_diffusion_15():
    """The published vectors of 99,648 values: order, offsets and digest of the key list."""
    modules = stable_diffusion_modules(768, SD_BLOCKS)
    layout = lora.Layout(modules[::-1], rank=1)
    assert (len(layout.modules), len(layout.names), layout.size) == (64, 128, 99_648)
    assert layout.names[0] == (
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    )
    assert layout.shapes[0] == (1, 320)
    assert layout.names[-1] == (
        "base_model.model.up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_v.lora_B.weight"
    )
    assert layout.shapes[-1] == (320, 1)
    starts = {}
    for name, offset in zip(layout.names, layout.offsets, strict=True):
        starts.setdefault(name.split(".transformer_blocks")[0], offset)
    assert list(starts.values()) == [
        0, 3008, 6016, 11264, 16512, 26240, 35968, 45696,
        55424, 65152, 74880, 80128, 85376, 90624, 93632, 96640,
    ]  # fmt: skip
    assert layout.sha256 == "71c04e30d94d3cb81ba19216f5818168e14bdac5534441b2de6a4c9bc7df2af7"
    assert hash(layout) == hash(lora.Layout(modules, rank=1))


@pytest.mark.parametrize(
    ("text_width", "blocks", "modules", "values"),
    [(1024, SD_BLOCKS, 64, 103_744), (2048, SDXL_BLOCKS, 280, 725_760)],
    ids=["sd21", "sdxl"],
)
def test_layout_sizes_of_other_bases(text_width, blocks, modules, values):
    layout = lora.Layout(stable_diffusion_modules(text_width, blocks), rank=1)
    assert (len(layout.modules), layout.size) == (modules, values)


@pytest.mark.parametrize(
    ("flax", "torch"),
    [
        (
            "down_blocks_1/attentions_0/transformer_blocks_0/attn1/to_q",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        ("mid_block/attentions_0/transformer_blocks_0/attn2/to_out_0",
         "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"),
        ("time_embedding/linear_1", "time_embedding.linear_1"),
        ("up_blocks_10/ff/net_0_proj", "up_blocks.10.ff.net.0.proj"),
        ("ff/net_2", "ff.net.2"),
        ("resnets_1/conv1", "resnets.1.conv1"),
    ],
)  # fmt: skip
def test_names_of_modules(flax, torch):
    assert lora.torch_name(flax) == torch
    assert lora.flax_path(torch) == flax


def test_targets(base):
    """Default targets in PEFT key order (10 before 2, as text), and errors that name the regex."""
    params, _, _ = base
    expected = [
        f"{block}.{attention}.{layer}"
        for block in ("down_blocks.0", "up_blocks.10")
        for attention in ("attn1", "attn2")
        for layer in ("to_q", "to_v")
    ]
    assert list(lora.target_modules(params, lora.LoraConfig())) == expected
    with pytest.raises(ValueError, match=re.escape("'.*to_x' matches none")):
        lora.target_modules(params, lora.LoraConfig(targets=(".*to_q", ".*to_x")))
    with pytest.raises(ValueError, match="conv_in has a kernel of shape"):
        lora.target_modules(params, lora.LoraConfig(targets=("conv_in",)))
    assert lora.target_modules(params, lora.LoraConfig(targets=(r".*\.to_out\.0",)))


def test_order_of_numbered_blocks_is_textual():
    modules = [(f"blocks.{i}.to_q", 2, 2) for i in (2, 10, 1)]
    assert [m[0] for m in lora.Layout(tuple(modules), 1).modules] == [
        "blocks.1.to_q",
        "blocks.10.to_q",
        "blocks.2.to_q",
    ]


@pytest.mark.parametrize("rank", [1, 4])
def test_flatten_is_exactly_inverted(base, rank):
    params, _, _ = base
    _, layout, adapter = make(params, rank)
    vector = jax.jit(lora.flatten, static_argnums=1)(adapter, layout)
    chex.assert_trees_all_equal(lora.unflatten(vector, layout), adapter)
    other = jax.random.normal(jax.random.key(3), (5, layout.size))
    there = jax.vmap(lambda v: lora.unflatten(v, layout))(other)
    np.testing.assert_array_equal(jax.vmap(lambda a: lora.flatten(a, layout))(there), other)
    # C order of lora_A [rank, in], then lora_B [out, rank].
    name, fan_in, fan_out = layout.modules[0]
    a, b = np.asarray(adapter[name]["a"]), np.asarray(adapter[name]["b"])
    np.testing.assert_array_equal(vector[: rank * fan_in], a.T.ravel())
    np.testing.assert_array_equal(vector[rank * fan_in :][: rank * fan_out], b.T.ravel())


def test_flatten_refuses_other_layouts(base):
    params, _, _ = base
    _, layout, adapter = make(params, rank=2)
    _, other, _ = make(params, rank=1)
    with pytest.raises(ValueError, match="does not have the layout"):
        lora.flatten(adapter, other)
    with pytest.raises(ValueError, match=rf"\({layout.size},\), got \({layout.size - 1},\)"):
        lora.unflatten(jnp.zeros(layout.size - 1), layout)
    tensors = lora.to_peft(adapter, layout)
    tensors.pop(layout.names[3])
    with pytest.raises(ValueError, match=f"{re.escape(layout.names[3])}: shape absent"):
        lora.from_peft(tensors, layout)


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
    adapter = lora.init(jax.random.key(0), params, config)
    for name, factors in adapter.items():
        bound = factors["a"].shape[0] ** -0.5
        largest = float(jnp.abs(factors["a"]).max())
        assert 0.9 * bound < largest <= bound, name
        np.testing.assert_allclose(factors["a"].std(), bound / 3**0.5, rtol=0.15)
        assert not factors["b"].any()
    same = lora.init(jax.random.key(0), params, config, n=3)
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[2], same), adapter)
    different = lora.init(jax.random.key(0), params, config, n=3, same_a=False)
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
        np.testing.assert_allclose(*outputs, atol=1e-5)
        np.testing.assert_allclose(*gradients, atol=1e-5 * float(jnp.abs(gradients[1]).max()))
        exported = lora.merge(params, adapter, config, multiplier)
        np.testing.assert_allclose(outputs[0], jitted_call(exported, x, text), atol=1e-5)
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
        np.testing.assert_allclose(got, reference, atol=1e-6 if rank == 1 else 4e-6)

    for name, factors in canonical(adapter).items():
        a, b = factors["a"], factors["b"]
        np.testing.assert_allclose(a @ b, adapter[name]["a"] @ adapter[name]["b"], atol=1e-6)
        singular = np.linalg.svd(np.asarray(adapter[name]["a"] @ adapter[name]["b"]))[1][:rank]
        np.testing.assert_allclose(a.T @ a, np.diag(singular), atol=2e-6)
        np.testing.assert_allclose(b @ b.T, np.diag(singular), atol=2e-6)
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
