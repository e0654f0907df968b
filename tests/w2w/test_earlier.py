"""Adapters that were added to a folder: the earlier space takes them in, or says why not."""

import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from common import config as config_lib
from common.config import ConfigError
from common.storage import load_arrays, load_json, save_json
from w2w import adapters, subspace
from w2w.adapters import earlier, planted
from w2w.adapters import experiment as adapters_experiment
from w2w.bank import Bank

LAYOUT, ALPHA, OLD, ALL = planted.layout(), 27.0, 18, 24
VECTORS = planted.draw(LAYOUT.size, ALL, 4, 0.3, 0).vectors


def run(folder, workdir, **space):
    """The whole experiment on a folder; returns space, coefficients and update of its run."""
    config = config_lib.load("configs/w2w_adapters.py")
    config.folder = str(folder)
    config.space.update({key: str(v) if key == "update_from" else v for key, v in space.items()})
    adapters_experiment.run(config, workdir)
    stage = workdir / "stages/space"
    coefficients = load_arrays(stage / "coefficients.safetensors")[0]["coefficients"]
    update = load_json(workdir / "results.json").get("update")
    return subspace.load(stage / "space.safetensors")[0], coefficients, update


def put(folder, name, vector):
    adapters.save(folder / f"{name}.safetensors", vector, LAYOUT, alpha=ALPHA, format="kohya")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders of earlier and of all adapters, and runs of the earlier ones: all components, 5.

    In the folder of all, the new ones are between the earlier ones, of which one is renamed.
    """
    place = tmp_path_factory.mktemp("earlier")
    for i, vector in enumerate(VECTORS):
        if i < OLD:
            put(place / "old", f"person{i}", vector)
        name = f"person{i - OLD}b" if i >= OLD else "zoe" if i == 3 else f"person{i}"
        put(place / "all", name, vector)
    run(place / "old", place / "run")
    run(place / "old", place / "run5", components=5)
    return place


def test_the_updated_space_is_that_of_all_adapters(place, tmp_path, capsys):
    """With all components, as exact as the stored space; row by row, whatever the basis."""
    space, coefficients, update = run(place / "all", tmp_path / "new", update_from=place / "run")
    whole, wanted, nothing = run(place / "all", tmp_path / "refit")
    assert "a space of 18 adapters takes in 6 new ones" in capsys.readouterr().out
    assert update == {"from": str(place / "run"), "known": OLD, "new": ALL - OLD}
    assert nothing is None and (space.n, space.k) == (whole.n, whole.k) == (ALL, ALL - 1)
    np.testing.assert_allclose(space.mean, whole.mean, atol=1e-6)
    np.testing.assert_allclose(space.std, whole.std, rtol=2e-6)
    np.testing.assert_allclose(space.variances, whole.variances, rtol=2e-4)
    scale = np.abs(wanted).max() ** 2
    np.testing.assert_allclose(coefficients @ coefficients.T, wanted @ wanted.T, atol=1e-4 * scale)
    np.testing.assert_allclose(coefficients[:, :3], wanted[:, :3], atol=2e-3)
    assert "took in 6 more" in (tmp_path / "new/report.html").read_text()

    # The updated run is an earlier run, too; without new adapters the space stays.
    same, _, update = run(place / "all", tmp_path / "again", update_from=tmp_path / "new")
    assert update == {"from": str(tmp_path / "new"), "known": ALL, "new": 0}
    np.testing.assert_array_equal(same.components, space.components)


def test_a_truncated_space_keeps_its_size(place, tmp_path):
    space, _, _ = run(place / "all", tmp_path / "new", update_from=place / "run5")
    whole = subspace.fit(Bank(tmp_path / "new/stages/import/bank").rows, 5)
    assert (space.n, space.k) == (ALL, 5)
    np.testing.assert_allclose(space.std, whole.std, rtol=2e-6)
    first, second = (np.asarray(fitted.components)[:4] for fitted in (space, whole))
    assert np.linalg.svd(first @ second.T)[1].min() > 0.9999  # the planted ones
    config = ConfigDict(dict(update_from=str(place / "run5"), components=0))
    bank = Bank(tmp_path / "new/stages/import/bank")
    for components, k in ((0, 5), (3, 3), (9, 9)):
        config.components = components
        assert earlier.updated(config, bank)[0].k == k
    config.components = 12
    with pytest.raises(ConfigError, match="config.space.components: k = 12 .* span only 11"):
        earlier.updated(config, bank)


def test_a_fit_does_not_depend_on_the_option(place):
    """Runs from before there was one are not repeated."""
    record = load_json(place / "run/stages/space/stage.json")
    assert record["config"] == {"components": 0, "method": "gram", "seed": 0}


def test_an_earlier_run_that_has_changed(place, tmp_path, capsys):
    """The update is done once, and again when the earlier run is another."""
    shutil.copytree(place / "run", tmp_path / "run")
    for _ in range(2):
        space, _, _ = run(place / "all", tmp_path / "new", update_from=tmp_path / "run")
    assert capsys.readouterr().out.count("space: done before") == 1 and space.k == ALL - 1
    run(place / "old", tmp_path / "run", components=5)
    capsys.readouterr()
    space, _, _ = run(place / "all", tmp_path / "new", update_from=tmp_path / "run")
    assert "space: runs again, its configuration changed" in capsys.readouterr().out
    assert space.k == 5


def test_runs_that_cannot_be_updated(place, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(place / "run", broken)
    record = load_json(broken / "stages/import/stage.json")
    save_json(broken / "stages/import/stage.json", {**record, "fingerprint": "of other files"})
    for workdir, old, message in (
        ("new", tmp_path / "nowhere", "nowhere is not an earlier run, it has no .*stage.json"),
        ("new", place / "all", "is not an earlier run"),
        ("broken", broken, "broken is this run itself; give it another --workdir"),
        ("new", broken, "broken was interrupted, its space is of other adapters"),
    ):
        with pytest.raises(ConfigError, match=f"config.space.update_from: .*{message}"):
            run(place / "all", tmp_path / workdir, update_from=old)
    assert not (tmp_path / "new").exists()  # before anything is imported


def test_adapters_that_are_lost_or_changed(place, tmp_path):
    """Through the stage, as what is there is known after the import only."""
    shutil.copytree(place / "all", tmp_path / "in")
    put(tmp_path / "in", "person5", VECTORS[5] + 1)
    with pytest.raises(ConfigError, match="1 of the 18 adapters of .* the first is 'person5'"):
        run(tmp_path / "in", tmp_path / "run", update_from=place / "run")
    for i in range(OLD):
        (tmp_path / "in" / f"{'zoe' if i == 3 else f'person{i}'}.safetensors").unlink()
    with pytest.raises(ConfigError, match="none of the 18 adapters of .* is among the 6 of this"):
        run(tmp_path / "in", tmp_path / "run", update_from=place / "run")
    assert not (tmp_path / "run/stages/space").exists()


@pytest.mark.parametrize(("layout", "alpha", "dtype", "message"), [
    (planted.layout(rank=2), ALPHA, "float32", "have rank 1, those of this run 2"),
    (planted.layout(width=32), ALPHA, "float32", "have layout .*, those of this run"),
    (LAYOUT, 13.5, "float32", "have alpha 27.0, those of this run 13.5"),
    (LAYOUT, ALPHA, "float16", "have bank.dtype float32, those of this run float16"),
], ids=["rank", "layout", "alpha", "dtype"])  # fmt: skip
def test_adapters_of_another_kind(place, tmp_path, layout, alpha, dtype, message):
    bank = Bank.create(tmp_path / "bank", layout, alpha, dtype)
    config = ConfigDict(dict(update_from=str(place / "run"), components=0))
    with pytest.raises(ConfigError, match=f"config.space.update_from: adapters of .* {message}"):
        earlier.updated(config, bank)
