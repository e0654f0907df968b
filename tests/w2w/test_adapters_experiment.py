"""Own adapters from the folder to exported files, through the smoke variant, and its mistakes."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from common import config as config_lib
from common.config import ConfigError
from common.storage import load_arrays, load_json
from w2w import adapters
from w2w.adapters import base_model
from w2w.adapters import experiment as adapters_experiment
from w2w.adapters import stages as own_adapters
from w2w.bank import Bank
from w2w.bank import folder as bank_import

CONFIG = "configs/w2w_adapters.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    adapters_experiment.run(config_lib.load(f"{CONFIG}:smoke"), workdir)
    return workdir


def test_the_planted_subspace_is_found(finished):
    results = load_json(finished / "results.json")
    assert (results["found"], results["imported"], results["refused"]) == (64, 60, 4)
    assert results["changed"] == 1
    planted = results["planted"]
    assert abs(planted["explained_found"] - planted["explained"]) < 0.05
    assert planted["angle_degrees"] < 25
    assert planted["direction_cosine"] > 0.7  # from 60 labels that are signs
    assert (finished / "report.html").stat().st_size > 10_000
    assert (finished / "spectrum.png").is_file()


def test_streaming_fit_gives_the_same_space(finished, tmp_path):
    inputs = {"import": finished / "stages/import"}
    config = ConfigDict(dict(components=0, method="streaming", seed=0))
    with pytest.raises(ValueError, match="needs a number of components"):
        own_adapters.fit(config, inputs, tmp_path)
    config.components = 5
    own_adapters.fit(config, inputs, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "coefficients.safetensors",
        "space.safetensors",
    ]
    _, streamed = own_adapters.open_space({"space": tmp_path})
    _, dense = own_adapters.open_space({"space": finished / "stages/space"})
    np.testing.assert_allclose(streamed, dense[:, :5], atol=1e-3)


def test_an_interrupted_import_stage_continues(finished, tmp_path, monkeypatch):
    """Rows that were committed stay; only the other files are read again."""
    config = config_lib.load(f"{CONFIG}:smoke")
    settings = ConfigDict({"adapter": config.adapter, "bank": config.bank})
    inputs = {"adapters": finished / "stages/adapters"}
    whole, append, appends = Bank(finished / "stages/import/bank"), Bank.append, []
    monkeypatch.setattr(bank_import, "_COMMIT_BYTES", 10 * whole.rows[0].nbytes)

    def stops(*args):
        if len(appends) == 2:
            raise KeyboardInterrupt
        appends.append(append(*args))

    with monkeypatch.context() as patch:
        patch.setattr(Bank, "append", stops)
        with pytest.raises(KeyboardInterrupt):
            own_adapters.import_adapters(settings, inputs, tmp_path)
    assert load_json(tmp_path / "import.json")["rows"] == 20
    own_adapters.import_adapters(settings, inputs, tmp_path)
    report = load_json(tmp_path / "import.json")
    assert (report["already"], report["imported"], report["rows"]) == (20, 40, 60)
    for name in ("rows.bin", "index.jsonl"):
        assert (tmp_path / "bank" / name).read_bytes() == (whole.path / name).read_bytes()


def test_exported_files_are_the_models(finished):
    exported = load_json(finished / "results.json")["export"]
    assert exported["max_abs_error"] == 0 and exported["format"] == "kohya"
    assert len(exported["files"]) == 4 + 2 * 3 * 2
    bank = Bank(finished / "stages/import/bank")
    models, header = load_arrays(finished / "stages/edit/models.safetensors")
    name = "person0-first+1"
    path = finished / "stages/export/adapters" / f"{name}.safetensors"
    loaded = adapters.load(path, bank.layout)
    np.testing.assert_array_equal(loaded.vector, models["vectors"][header["names"].index(name)])
    assert loaded.alpha == bank.alpha == 27


def test_edits_move_along_the_attribute(finished):
    """Opposite strengths are mirror images, and no strength is the adapter itself."""
    models, header = load_arrays(finished / "stages/edit/models.safetensors")
    by_name = dict(zip(header["names"], models["coefficients"], strict=True))
    plus, minus = by_name["mean-second+1"], by_name["mean-second-1"]
    np.testing.assert_allclose(plus, -minus, atol=1e-6)
    unit = models["direction.second"]
    cosine = plus @ unit / np.linalg.norm(plus)
    assert cosine == pytest.approx(1, abs=1e-5)


def test_a_second_run_skips_everything(finished, capsys):
    adapters_experiment.run(config_lib.load(f"{CONFIG}:smoke"), finished)
    assert capsys.readouterr().out.count("done before") == 7


def test_mistakes_in_the_configuration(tmp_path):
    for overrides, message in (
        ([], "config.folder is empty"),
        ([("folder", str(tmp_path / "x"))], "is not a folder"),
        ([("folder", str(tmp_path))], "no adapter files"),
        ([("folder", str(tmp_path)), ("edit.labels", "nowhere.csv")], "no file nowhere.csv"),
    ):
        config = config_lib.apply_overrides(config_lib.load(CONFIG), overrides)
        with pytest.raises(ConfigError, match=message):
            adapters_experiment.run(config, tmp_path / "run")


def test_components_of_the_base_model_may_be_links(tmp_path):
    """What they lead to is looked at, so that another UNet is other work."""
    weights = tmp_path / "elsewhere" / "weights.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"1")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model_index.json").write_text("{}")
    (tmp_path / "model/unet").symlink_to(weights.parent)
    before = base_model.digest(str(tmp_path / "model"))
    assert base_model.digest(str(tmp_path / "model")) == before
    weights.write_bytes(b"22")
    assert base_model.digest(str(tmp_path / "model")) != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("person,age\n", "expected name and at least one attribute"),
        ("name,age\na,30\na,31\n", "line 3: the name 'a' occurs twice"),
        ("name,age\na,old\n", "line 2: age = 'old'"),
        ("name,age\na\n", "line 2: 1 cells, the header has 2"),
        ("name,age\nx,3\n", "none of its 1 names is an adapter"),
    ],
)
def test_mistakes_in_labels(tmp_path, text, message):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        own_adapters.read_labels(path, ("a", "b"))
    path.write_text("name,age\nb,\nrefused,3\na,-1.5\n")
    assert own_adapters.read_labels(path, ("a", "b"))["age"].tolist()[0] == -1.5
