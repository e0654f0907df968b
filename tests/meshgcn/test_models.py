"""Networks: symmetries, independence of batch mates, levels, heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meshgcn import hierarchy, models
from meshgcn.meshes import Mesh
from meshgcn.operators import multiply
from tests.meshgcn.shapes import icosphere, relabelled
from tests.meshgcn.small import operators, template

# Small networks: they take longer to compile than to run.


def x_of(count, features=2, seed=0):
    shape = (count, len(template().mesh), features)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def start(model, x, levels):
    """Fresh variables, with statistics that are not the initial ones."""
    variables = jax.jit(model.init)(jax.random.key(0), x[:1], levels)
    stats = jax.tree.map(lambda leaf: 1.5 * leaf + 0.1, variables.get("batch_stats", {}))
    return {"params": variables["params"], "batch_stats": stats}


LABELS = template().labels
SETTINGS = [
    {"stem": 2, "widths": (4,)},
    {"preact": True, "pooling": "max"},
    {"residual": False, "head": "pooled", "widths": (3, 16)},  # fewer can all be dead
    {"norm": "none", "hidden": 5},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_results_do_not_depend_on_batch_mates(settings):
    model = models.MeshNet(**{"widths": (3, 4), "terms": 2, **settings})
    assert model.levels == 2
    x = x_of(5)
    variables, run = start(model, x, operators()), jax.jit(model.apply)
    one = run(variables, x[:3], operators())
    other = run(variables, x[jnp.array([3, 0, 4])], operators())
    assert one.shape == (3, 2)
    assert np.abs(np.asarray(one[0] - one[1])).max() > 5e-5  # a mean over vertices is nearly equal
    np.testing.assert_allclose(other[1], one[0], atol=2e-6)


def test_renumbered_vertices_change_nothing():
    """The coarse vertices come first, so those may be exchanged among themselves, and the rest."""
    mesh = icosphere(2)
    random = np.random.default_rng(0)
    order = np.concatenate([random.permutation(42), 42 + random.permutation(120)])
    one = hierarchy.build(mesh, 1)
    other = hierarchy.build(relabelled(mesh, order), 1)
    model = models.MeshNet((3, 4), head="pooled")
    x = jnp.asarray(random.normal(size=(2, len(mesh), 1)), jnp.float32)
    variables, run = start(model, x, one), jax.jit(model.apply)
    expected = run(variables, x, one)
    np.testing.assert_allclose(run(variables, x[:, order], other), expected, atol=2e-6)


def test_rigid_motion_of_the_mesh_changes_nothing():
    mesh = icosphere(2)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    moved = Mesh(mesh.vertices @ turn.T + [5, -3, 2], mesh.faces, mesh.structures)
    one, other = hierarchy.build(mesh, 1), hierarchy.build(moved, 1)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_spirals_and_chebyshev_share_the_network():
    levels = operators(spiral_length=7)
    model = models.MeshNet((3, 4), terms=7)
    x = x_of(2)
    variables = start(model, x, levels)
    assert variables["params"]["block0"]["MeshConv_0"]["kernel"].shape == (7, 2, 3)
    assert jax.jit(model.apply)(variables, x, levels).shape == (2, 2)


def test_parameters_are_counted_as_by_hand():
    model = models.MeshNet((3, 4), terms=3, norm="none")
    params = start(model, x_of(1), operators())["params"]
    first = 3 * 2 * 3 + 3 + 3 * 3 * 3 + 3 + 2 * 3
    second = 3 * 3 * 4 + 4 + 3 * 4 * 4 + 4 + 3 * 4
    head = 2 * 42 * 4 * 2 + 2
    assert models.count_parameters(params) == first + second + head


def test_shortcut_is_a_real_one():
    """With the second convolution at zero a block is its shortcut."""
    block = models.ResBlock(2, 3, norm="none")
    x = x_of(3).transpose(1, 0, 2)
    operator = operators().convolutions[0]
    params = block.init(jax.random.key(0), x, operator, False)["params"]
    params["MeshConv_1"] = jax.tree.map(jnp.zeros_like, params["MeshConv_1"])
    found = block.apply({"params": params}, x, operator, False)
    np.testing.assert_array_equal(found, jnp.maximum(x, 0))


def test_a_linear_path_leads_to_the_means_of_regions():
    """With preactivation and the block's branch at zero the logits are affine in the features."""
    model = models.MeshNet((4,), terms=2, stem=3, head="regions", preact=True)
    x, levels = x_of(2), operators(1, labels=LABELS)
    variables = start(model, x, levels)
    block = variables["params"]["block1"]
    for name in ("MeshConv_0", "MeshConv_1"):
        block[name] = jax.tree.map(jnp.zeros_like, block[name])
    run = jax.jit(model.apply)
    plus, minus, zero = (run(variables, s * x, levels) for s in (1.0, -1.0, 0.0))
    assert np.abs(np.asarray(plus - minus)).max() > 1e-2
    np.testing.assert_allclose(plus + minus, 2 * zero, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_first_level_can_be_prepared(depth):
    """Logits and gradients are those of the whole network; two levels are pooled once each."""
    model = models.MeshNet((4, 3)[:depth], terms=3, stem=2, preact=True, head="flatten")
    levels = hierarchy.build(template().mesh, depth)
    x = x_of(3)
    variables = start(model, x, levels)
    assert model.linear_start(levels)
    ready = model.prepare(x, levels)
    assert ready.shape == (3, levels.convolutions[1].rows, 3 * 2)

    def loss(variables, x, **options):
        logits = model.apply(variables, x, levels, **options)
        return (logits * jnp.arange(1.0, 7.0).reshape(3, 2)).sum(), logits

    run = jax.jit(jax.grad(loss, has_aux=True), static_argnames="prepared")
    expected, logits = run(variables, x)
    found, same = run(variables, ready, prepared=True)
    assert np.abs(np.asarray(logits)).max() > 1e-2
    np.testing.assert_allclose(same, logits, atol=2e-5)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.parametrize("change", [{"preact": False}, {"stem": 0}, {"pooling": "max"}])
def test_what_does_not_start_linearly_is_not_prepared(change):
    model = models.MeshNet(**{"widths": (4,), "stem": 2, "preact": True, **change})
    assert not model.linear_start(operators())
    with pytest.raises(ValueError, match="linear start"):
        model.prepare(x_of(2), operators())
    with pytest.raises(ValueError, match="takes prepared"):
        model.init(jax.random.key(0), x_of(1), operators(), prepared=True)
    linear = models.MeshNet((4,), stem=2, preact=True)
    with pytest.raises(ValueError, match="probes and taps"):
        linear.init(jax.random.key(0), x_of(1), operators(), taps=[], prepared=True)


def test_dropout_is_of_training_only():
    model = models.MeshNet((3,), terms=1, dropout=0.5, hidden=8, norm="none")
    x = x_of(2)
    variables = start(model, x, operators(0))
    run = jax.jit(model.apply, static_argnames="train")
    still = [run(variables, x, operators(0), rngs={"dropout": jax.random.key(k)}) for k in (1, 2)]
    np.testing.assert_array_equal(*still)
    moved = [
        run(variables, x, operators(0), train=True, rngs={"dropout": jax.random.key(k)})
        for k in (1, 2)
    ]
    assert np.abs(np.asarray(moved[0] - moved[1])).max() > 1e-3


def test_means_over_regions_keep_where_things_are():
    levels = operators(1, labels=LABELS)
    for level, count in enumerate((324, 84)):
        matrix = levels.regions[level]
        ones = jax.jit(multiply)(matrix, jnp.ones((count, 1)))
        np.testing.assert_allclose(ones[:, 0], 1, rtol=1e-6)
    model = models.MeshNet((3,), stem=2, terms=2, head="regions")
    variables = start(model, x_of(1), levels)
    assert variables["params"]["logits"]["kernel"].shape == (8 * 3, 2)
    assert jax.jit(model.apply)(variables, x_of(2), levels).shape == (2, 2)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="'mean'"):
        models.MeshNet((3,), head="mean").init(jax.random.key(0), x_of(1), operators(0))
    with pytest.raises(ValueError, match="'max'"):
        hierarchy.build(template().mesh, 1, pool="max")
    with pytest.raises(ValueError, match="needs a hierarchy with an atlas"):
        models.MeshNet((3,), head="regions").init(jax.random.key(0), x_of(1), operators(0))


def test_interpolation_of_a_constant_is_the_constant():
    for method in ("nested", "collapse"):
        levels = hierarchy.build(template().mesh, 2, method=method)
        coarse = levels.pools[-1].rows
        found = hierarchy.upsample(levels, jnp.full((3, coarse), 2.5), 2)
        np.testing.assert_allclose(found, np.full((3, len(template().mesh)), 2.5), rtol=1e-6)
