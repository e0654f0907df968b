"""Maps: closed forms on a network whose gradient is known; export, tables, graphs."""

import json

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from meshgcn import export, files, graphs, maps, models, surface_figures
from meshgcn.meshes import TopologyError, VertexCountError
from tests.meshgcn.small import operators, template, with_bodies

# Small networks: they take longer to compile than to run.


def linear_net():
    """One block that is the identity (positive inputs), a flattened head with known weights."""
    model = models.MeshNet((1,), terms=1, norm="none")
    x = np.random.default_rng(0).uniform(0.5, 1.5, (3, len(template().mesh), 1)).astype(np.float32)
    params = model.init(jax.random.key(0), jnp.asarray(x), operators(0))["params"]
    params["block0"]["MeshConv_1"] = jax.tree.map(jnp.zeros_like, params["block0"]["MeshConv_1"])
    head = np.random.default_rng(1).normal(size=(len(template().mesh), 2)).astype(np.float32)
    params["logits"]["kernel"] = jnp.asarray(head)
    return model, {"params": params}, x, head


def test_closed_forms():
    model, variables, x, head = linear_net()
    found = maps.explain(model, variables, x, operators(0), 0, target=1, batch=2)
    a, w = x[..., 0], head[:, 1]
    np.testing.assert_allclose(found["hirescam"], np.maximum(a * w, 0), rtol=1e-5)
    np.testing.assert_allclose(found["gradcam"], np.maximum(a * w.mean(), 0), rtol=1e-4)
    other = maps.explain(model, variables, x, operators(0), 0, target=0, batch=4)
    np.testing.assert_allclose(other["hirescam"], np.maximum(a * head[:, 0], 0), rtol=1e-5)


def test_both_are_the_same_with_a_pooled_head():
    model = models.MeshNet((3, 16), head="pooled", norm="none")
    x = np.random.default_rng(0).normal(size=(2, len(template().mesh), 1)).astype(np.float32)
    variables = model.init(jax.random.key(0), jnp.asarray(x), operators())
    found = [maps.explain(model, variables, x, operators(), 1, target=k) for k in (0, 1)]
    assert found[0]["gradcam"].shape == x.shape[:2]
    assert max(each["gradcam"].max() for each in found) > 0
    for each in found:
        np.testing.assert_allclose(each["gradcam"], each["hirescam"], atol=1e-6)


def test_of_no_scans_and_of_no_such_level():
    model, variables, x, _ = linear_net()
    assert maps.explain(model, variables, x[:0], operators(0), 0)["gradcam"].shape == (0, 324)
    with pytest.raises(ValueError, match="level 1: the network has 1"):
        maps.explain(model, variables, x, operators(0), 1)


def test_average_gives_scans_equal_weight():
    values = np.array([[0.0, 2, 4], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(maps.average(values), [1 / 3, 0.5 / 3, 1 / 3])
    np.testing.assert_array_equal(maps.average(values[:0]), np.zeros(3))


def test_random_weights_are_other_weights():
    model, variables, x, _ = linear_net()
    found = maps.randomised(model, variables, 0, operators(0), x)
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    changed = found["params"]["logits"]["kernel"] - variables["params"]["logits"]["kernel"]
    assert np.abs(np.asarray(changed)).min() > 0


def test_overlays(tmp_path):
    brain = template()
    values = np.arange(len(brain.mesh), dtype=np.float32)
    written = export.overlays(tmp_path, "cam", values, brain, {"map": "a test"})
    assert [p.name for p in written] == [
        "cam.json", "lh.cam.shape.gii", "lh.cam", "rh.cam.shape.gii", "rh.cam",
    ]  # fmt: skip
    for side in ("lh", "rh"):
        part = values[brain.mesh.part(side)]
        np.testing.assert_array_equal(files.read_values(tmp_path / f"{side}.cam"), part)
        gifti = nib.load(tmp_path / f"{side}.cam.shape.gii")
        np.testing.assert_array_equal(gifti.darrays[0].data, part)
    assert json.loads(written[0].read_text())["map"] == "a test"
    with pytest.raises(VertexCountError, match=r"\(3,\) values for 324"):
        export.overlays(tmp_path, "cam", values[:3], brain, {})


def test_regions(tmp_path):
    brain = template()
    values = np.where(brain.region("lh.top"), 3.0, 0.0) + np.where(brain.region("back"), 1.0, 0)
    rows = export.region_table(values, brain)
    assert rows[0]["region"] == "lh.top" and rows[0]["mean"] == 3
    assert {row["region"] for row in rows[1:3]} == {"lh.back", "rh.back"}
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    text = export.write_region_table(tmp_path / "r.csv", rows).read_text().splitlines()
    assert text[0] == "region,mean,max,share,vertices" and len(text) == 9


def test_graphs_there_and_back():
    mesh = template().mesh
    x = np.random.default_rng(0).normal(size=(3, len(mesh), 2)).astype(np.float32)
    made = graphs.to_graphs(mesh, x, np.array([0, 1, 1]))
    assert made.n_node.tolist() == [324] * 3 and made.globals.shape == (3,)
    back, edges = graphs.from_graphs(made)
    np.testing.assert_array_equal(back, x)
    np.testing.assert_array_equal(edges, mesh.edges())
    with pytest.raises(VertexCountError, match="of 5 vertices, the mesh has 324"):
        graphs.to_graphs(mesh, x[:, :5])
    uneven = made._replace(n_node=jnp.array([300, 348, 324]))
    with pytest.raises(VertexCountError, match="300, 324, 348"):
        graphs.from_graphs(uneven)
    senders = made.senders.at[-1].set(2 * 324)  # an edge to the other sphere
    with pytest.raises(TopologyError, match="graph 2"):
        graphs.from_graphs(made._replace(senders=senders))


def test_figures(tmp_path):
    brain = template()
    values = brain.region("front").astype(float)
    path = surface_figures.maps(
        tmp_path / "m.png", {"a": values, "b": 0 * values}, brain, outline=values > 0, title="t"
    )
    assert path.stat().st_size > 10_000
    single = surface_figures.four_views(tmp_path / "s.png", values, brain, surface="pial")
    assert single.stat().st_size > 5_000


def test_bodies_are_drawn_beside_the_cortex(tmp_path):
    brain = with_bodies()
    both, faces = surface_figures._drawn(brain, "rh", True)
    np.testing.assert_array_equal(both, np.arange(324 + 42, 324 + 84))
    np.testing.assert_array_equal(faces, brain.mesh.split()[3].faces)
    values = np.where(brain.region("lh.hippocampus"), 1.0, 0.0)
    path = surface_figures.maps(tmp_path / "b.png", {"a": values}, brain, "bodies")
    with Image.open(path) as picture:
        left, right = np.split(np.asarray(picture.convert("RGB"), int)[:, :1380], 2, axis=1)
    warm = [(part[..., 0] - part[..., 2] > 60).sum() for part in (left, right)]
    assert warm[0] > 500 and warm[1] < 0.1 * warm[0]
