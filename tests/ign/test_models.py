"""The networks: shapes, independence of batch mates, the dense form of the bottleneck, labels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ign import models


def build(**changes):
    config = models.NetConfig(**{"width": 8, "latent": 12, **changes})
    net = models.build(config)
    return config, net, models.init(net, jax.random.key(0), config.shape, config.classes)


@pytest.mark.parametrize("kind", models.KINDS)
@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (64, 3)])
def test_shape_and_range(kind, size, channels):
    config, net, variables = build(kind=kind, size=size, channels=channels)
    x = jax.random.normal(jax.random.key(1), (2, *config.shape))
    y = net.apply(variables, x)
    assert y.shape == x.shape and float(jnp.abs(y).max()) <= 1
    assert {path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(variables)} == {"params"}


def test_patches_are_put_back_where_they_were_cut():
    """With identities for the layers between, the patch network returns tanh of its input."""
    config, net, variables = build(kind="patch", width=16, latent=16 * 49, hidden=16 * 49,
                                   norm="none")
    params = jax.tree.map(jnp.zeros_like, variables["params"])
    for layer in params.values():
        if layer["kernel"].ndim == 4:
            layer["kernel"] = layer["kernel"].at[1, 1].set(jnp.eye(16))
        else:
            layer["kernel"] = jnp.eye(16 * 49)
    x = jax.random.uniform(jax.random.key(0), (2, *config.shape))  # the rectifiers keep it
    np.testing.assert_allclose(net.apply({"params": params}, x), np.tanh(x), atol=1e-5)


@pytest.mark.parametrize("norm", models.NORMS)
def test_only_training_mode_batch_norm_mixes_the_batch(norm):
    config, net, variables = build(norm=norm)
    x = jax.random.normal(jax.random.key(1), (4, *config.shape))
    other = x.at[1:].add(1.0)
    training = {"train": True, "mutable": ["batch_stats"]}

    def change(**options):
        a, b = (net.apply(variables, v, **options) for v in (x, other))
        a, b = (v[0] if options else v for v in (a, b))
        return float(jnp.abs(a[0] - b[0]).max()) / float(jnp.abs(a[0]).max())

    assert change() < 1e-5
    assert (change(**training) < 1e-5) == config.independent
    assert config.independent == (norm != "batch")


def test_parameters_of_the_publication_and_of_the_mnist_layout():
    def count(**changes):
        config = models.NetConfig(norm="batch", width=64, **changes)
        net = models.Autoencoder(config)
        shapes = jax.eval_shape(lambda k: models.init(net, k, config.shape), jax.random.key(0))
        return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))

    # By hand: kernels, biases, and scale and bias of each norm; a dense layer that starts the
    # decoder has a bias for each of its 16 cells, a transposed convolution one for all.
    conv = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 64 + 128 + 256 + 512
    dense = 2 * 16 * 512 * 512 + 512 + 16 * 512
    up = 16 * (512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) + 256 + 128 + 64 + 3
    norms = 2 * (128 + 256 + 512 + 512 + 256 + 128 + 64)
    assert count(size=64, channels=3, latent=512) == conv + dense + up + norms
    assert count(size=28, latent=256) == pytest.approx(2.95e6, rel=0.01)


def test_bottleneck_equals_the_published_convolutions():
    """A dense layer on a 4 x 4 map is the 4 x 4 convolution without padding, and its transpose."""
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    kernel = jax.random.normal(jax.random.key(1), (4, 4, 3, 5))
    dense = x.reshape(2, -1) @ kernel.reshape(-1, 5)
    conv = nn.Conv(5, (4, 4), padding="VALID", use_bias=False)
    np.testing.assert_allclose(
        conv.apply({"params": {"kernel": kernel}}, x)[:, 0, 0], dense, rtol=1e-4, atol=1e-4
    )
    code = jax.random.normal(jax.random.key(2), (2, 1, 1, 5))
    up = nn.ConvTranspose(3, (4, 4), padding="VALID", use_bias=False)
    kernel = kernel.transpose(0, 1, 3, 2)
    spread = up.apply({"params": {"kernel": kernel}}, code)
    # conv_transpose does not turn the kernel: output (i, j) meets tap (3 - i, 3 - j).
    expected = jnp.einsum("bc,hwco->bhwo", code[:, 0, 0], kernel[::-1, ::-1])
    np.testing.assert_allclose(spread, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", models.KINDS)
def test_labels_change_the_result_and_are_demanded(kind):
    config, net, variables = build(kind=kind, classes=3)
    x = jax.random.normal(jax.random.key(1), (3, *config.shape))
    one, two = (net.apply(variables, x, jnp.full(3, label)) for label in (0, 1))
    assert float(jnp.abs(one - two).max()) > 1e-4
    with pytest.raises(ValueError, match="3 classes was called with labels None"):
        net.apply(variables, x)
    _, plain, plain_variables = build()
    with pytest.raises(ValueError, match="0 classes was called"):
        plain.apply(plain_variables, x, jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match="for a network of"):
        plain.apply(plain_variables, jnp.zeros((1, 32, 32, 1)))


def test_dropout_drops_whole_maps_in_training_only():
    config, net, variables = build(dropout=0.5)
    x = jax.random.normal(jax.random.key(1), (2, *config.shape))
    np.testing.assert_array_equal(net.apply(variables, x), net.apply(variables, x))
    rngs = [{"dropout": jax.random.key(i)} for i in (0, 1)]
    a, b = (net.apply(variables, x, train=True, rngs=r) for r in rngs)
    assert float(jnp.abs(a - b).max()) > 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 30}, "image size 30"),
        ({"kind": "unet"}, "kind of network 'unet'"),
        ({"kind": "patch", "norm": "batch"}, "norm 'batch' is of the published layout"),
        ({"norm": "layer"}, "norm 'layer'"),
        ({"width": 12}, "width 12 is no multiple of 8"),
        ({"output": "sigmoid"}, "output 'sigmoid'"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        models.NetConfig(**changes)
    with pytest.raises(ValueError, match="no conditional form"):
        models.Perceptron((4,)).init(jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1))


@pytest.mark.parametrize(("kind", "size", "members"), [
    ("patch", 28, 2), ("dcgan", 28, 0), ("dcgan", 64, 0)])
def test_convolutions_are_products_of_matrices_elsewhere(kind, size, members, same_on_accelerators):
    config, net, variables = build(kind=kind, size=size)
    rng = np.random.default_rng(0)  # biases start at zero, where nothing would be compared
    params = jax.tree.map(
        lambda p: rng.normal(size=(max(members, 1), *p.shape)).astype(np.float32) / 8,
        variables["params"])
    x = jax.random.normal(jax.random.key(0), (max(members, 1), 2, *config.shape))

    def outputs():
        def one(params, x):
            def loss(params):
                y = net.apply({"params": params}, x)
                return jnp.sin(y).sum(), y

            return jax.grad(loss, has_aux=True)(params)

        with jax.default_matmul_precision("highest"):
            if members:
                return jax.jit(jax.vmap(one))(params, x)
            return jax.jit(one)(*jax.tree.map(lambda leaf: leaf[0], (params, x)))

    same_on_accelerators(outputs)


def test_deeper_patch_networks_add_layers_to_what_they_are_given():
    config, net, variables = build(kind="patch", hidden=16, depth=3)
    params = variables["params"]
    assert {"encode_hidden", "encode_hidden1", "encode_hidden2", "decode_hidden2"} < set(params)
    x = jax.random.normal(jax.random.key(1), (2, *config.shape))
    zero = {n: jax.tree.map(jnp.zeros_like, p) if n[-1] in "12" and "hidden" in n else p
            for n, p in params.items()}
    shallow = models.build(models.NetConfig(**{**vars(config), "depth": 1}))
    same = {n: p for n, p in params.items() if not (n[-1] in "12" and "hidden" in n)}
    np.testing.assert_allclose(
        net.apply({"params": zero}, x), shallow.apply({"params": same}, x), atol=1e-6
    )
    assert np.abs(net.apply(variables, x) - shallow.apply({"params": same}, x)).max() > 1e-3


def test_a_linear_map_beside_the_hidden_layers():
    config, net, variables = build(kind="patch", hidden=16, linear=True, norm="none")
    params = variables["params"]
    assert set(params["encode_linear"]) == set(params["decode_linear"]) == {"kernel"}
    x = jax.random.normal(jax.random.key(1), (2, *config.shape))
    plain = models.build(models.NetConfig(**{**vars(config), "linear": False}))
    rest = {n: p for n, p in params.items() if not n.endswith("_linear")}
    without = params | {n: jax.tree.map(jnp.zeros_like, params[n]) for n in params.keys() - rest}
    found = net.apply({"params": without}, x)
    np.testing.assert_allclose(found, plain.apply({"params": rest}, x), atol=1e-6)
    assert np.abs(net.apply(variables, x) - found).max() > 1e-3
    # Without hidden layers the code is linear in the maps: the two halves add up.
    silent = params | {n: jax.tree.map(jnp.zeros_like, params[n])
                       for n in ("encode", "decode", "encode_hidden", "decode_hidden")}
    assert np.abs(net.apply({"params": silent}, x)).max() > 1e-3
