"""The stages on small cohorts: on planted atrophy, and on a user's folder."""

import dataclasses

import jax
import numpy as np
import pytest
from nibabel import freesurfer
from PIL import Image

from common import config as config_lib
from common.config import ConfigError
from common.storage import load_arrays, load_json
from meshgcn import build, context, experiment, splits
from tests.meshgcn import small

CONFIG = "configs/meshgcn.py"


@pytest.fixture(autouse=True)
def promotion():
    """optax's bias correction is a float to an integer power."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def tiny(monkeypatch):
    """The smoke configuration on two spheres, so that no package is fetched."""
    monkeypatch.setattr(context, "template", lambda name, atlas, subcortex: small.template())
    config = config_lib.load(f"{CONFIG}:smoke")
    config.network.widths, config.network.stem = (4,), 3
    config.train.epochs = 2
    config.trials.count = 2
    config.cohort.people.region_a = ("front",)
    config.cohort.people.region_b = ("top",)
    return config


def test_planted(tiny, tmp_path, capsys):
    experiment.run(tiny, tmp_path)
    results = load_json(tmp_path / "results.json")
    names = ["additive-40-s0", "additive-0-s0", "additive-40-s0-shuffled"]
    assert list(results["conditions"]) == names
    found = results["conditions"]["additive-40-s0"]["classifiers"]
    expected = {f"{k} {w}" for k in ("ridge", "logistic", "svm") for w in ("vertices", "parcels")}
    assert set(found) == expected | {"residual", "perceptron vertices", "perceptron parcels"}
    assert found["ridge vertices"]["auc"]["mean"] > 0.9
    assert found["residual"]["parameters"] > 100
    assert found["ridge vertices"]["parameters"] == 324 + 1
    assert found["svm parcels"]["parameters"] == 8 + 1
    located = results["localisation"]
    assert set(located["means"]) >= {"hirescam 0", "gradcam 1", "hirescam random", "t map"}
    assert located["means"]["t map"]["dice"] > 0.7
    people = load_json(tmp_path / "stages/classify/additive-40-s0/people.json")
    assert len(people) == 2 and set(people[0]) == {"train", "validation", "test"}
    for name in ("auc_additive", "maps_inflated", "maps_pial"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 100
    overlay = freesurfer.read_morph_data(tmp_path / "overlays" / "lh.hirescam")
    assert len(overlay) == 162
    assert (tmp_path / "report.html").stat().st_size > 20_000
    assert (tmp_path / "regions.csv").read_text().startswith("region,mean")
    capsys.readouterr()
    experiment.run(tiny, tmp_path)
    assert capsys.readouterr().out.count("skipped") == 5


class Again(Exception):
    """Raised where a stage would run again."""


def again(*_):
    raise Again


def test_a_users_folder(tiny, tmp_path, capsys, monkeypatch):
    made = small.subjects("additive", 0.4)
    lines = ["subject,scan,diagnosis"]
    half = small.template().mesh.part("lh").stop
    for index, (person, label) in enumerate(zip(made.subject, made.label, strict=True)):
        surf = tmp_path / "subjects" / f"s{index}" / "surf"
        surf.mkdir(parents=True)
        for hemi, values in (
            ("lh", made.thickness[index, :half]),
            ("rh", made.thickness[index, half:]),
        ):
            freesurfer.write_morph_data(surf / f"{hemi}.thickness", values)
        lines.append(f"p{person},s{index},{'AD' if label else 'CN'}")
    lines.append("p0,missing,AD")
    (tmp_path / "d.csv").write_text("\n".join(lines))
    tiny.data.folder, tiny.data.table = str(tmp_path / "subjects"), str(tmp_path / "d.csv")
    tiny.data.patterns = ("{scan}/surf/{hemi}.thickness",)
    experiment.run(tiny, tmp_path / "run")
    results = load_json(tmp_path / "run/results.json")
    assert list(results["conditions"]) == ["real-0-s0", "real-0-s0-shuffled"]
    assert results["conditions"]["real-0-s0"]["classifiers"]["ridge vertices"]["auc"]["mean"] > 0.9
    assert "means" not in results["localisation"]
    excluded = load_json(tmp_path / "run/stages/classify/excluded.json")
    assert [item["scan"] for item in excluded["scans"]] == ["missing"]
    arrays, _ = load_arrays(tmp_path / "run/stages/explain/maps.safetensors")
    assert np.isfinite(arrays["hirescam 0"]).all() and "truth" not in arrays
    page = (tmp_path / "run/report.html").read_text()
    assert "1 MissingSurfaceError" in page and "missing/surf/lh.thickness" in page
    capsys.readouterr()
    experiment.run(tiny, tmp_path / "run")
    assert capsys.readouterr().out.count("skipped") == 5
    values = made.thickness[0, :half]  # the missing scan is brought
    (tmp_path / "subjects/missing/surf").mkdir(parents=True)
    for hemi in ("lh", "rh"):
        freesurfer.write_morph_data(tmp_path / f"subjects/missing/surf/{hemi}.thickness", values)
    monkeypatch.setattr(build, "classify", again)
    with pytest.raises(Again):
        experiment.run(tiny, tmp_path / "run")
    assert "classify: runs again, its configuration changed (scans" in capsys.readouterr().out


@pytest.mark.parametrize(
    "group, key, value, message",
    [
        ("", "networks", ("resnet",), "known: residual, plain"),
        ("cohort", "plants", ("and",), "known: additive, either, xor"),
        ("maps", "levels", (7,), "of 2 levels"),
        ("trials", "count", 0, "must be positive"),
        ("data", "folder", "x", "go together"),
        ("data", "classes", ("CN",), "expected two"),
        ("data", "patterns", ("{subject}/lh.thickness",), "may hold {scan} and {hemi}"),
        ("data", "bodies", ("{scan}/{hemi}.vtk",), "may hold {scan} and {structure}"),
        ("data", "patterns", (), "names no measure"),
    ],
)
def test_mistakes_are_named(group, key, value, message, tmp_path):
    config = config_lib.load(f"{CONFIG}:smoke")
    (config[group] if group else config)[key] = value
    with pytest.raises(ConfigError, match=message):
        experiment.run(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_variants():
    for variant in ("", "smoke", "paper"):
        config = config_lib.load(f"{CONFIG}:{variant}" if variant else CONFIG)
        assert context.network(config, "residual").widths == tuple(config.network.widths)
        assert context.conditions(config)
    with pytest.raises(Exception, match="it has: smoke, large, paper"):
        config_lib.load(f"{CONFIG}:tiny")


def test_the_tables_own_split_is_one_trial():
    label, subject = np.array([0, 0, 1, 1, 0, 1, 0, 1]), np.arange(8)
    roles = np.array([0, 0, 0, 0, 1, 1, 2, 2], np.int8)
    x = np.arange(8.0 * 324 * 2).reshape(8, 324, 2).astype(np.float32)
    found = context.Scans(x, x[..., 0], label, subject, None, roles)
    config = config_lib.load(f"{CONFIG}:smoke")
    np.testing.assert_array_equal(context.roles_of(config, found, 25), roles[None])
    one_class = dataclasses.replace(found, label=np.array([0, 0, 1, 1, 0, 1, 1, 1]))
    with pytest.raises(
        splits.OneClassError, match=r"table's split: no scan with label \[0\] in test"
    ):
        context.roles_of(config, one_class, 25)
    for seed in range(5):
        other = context.shuffled(label, subject, seed, roles)
        assert all(other[roles == r].sum() == label[roles == r].sum() for r in range(3))
    matrix = small.template().parcels()
    expected = np.concatenate([x[..., 0] @ matrix.T, x[..., 1] @ matrix.T], axis=1)
    np.testing.assert_allclose(found.parcels(small.template()), expected, rtol=1e-5)
