"""A tiny run from a user's table to the report, continued and repeated."""

import csv
import re

import numpy as np
import pytest
from PIL import Image

from common import config as config_lib
from common import storage
from common.config import ConfigError
from medical.acgan import experiment

# Small networks: they take longer to compile than to run.
pytestmark = pytest.mark.usefixtures("standard_promotion")  # optax, Adam


def settings(**changes):
    config = config_lib.load("configs/acgan.py:smoke")
    config.update(changes)
    return config


def write(folder):
    """20 patients of two images; the ill ones have a bright corner."""
    rng = np.random.default_rng(0)
    with open(folder / "table.csv", "w", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(["file", "patient", "label"])
        for i in range(40):
            image = rng.integers(0, 100, (28, 28), np.uint8)
            image[:9, :9] += 150 * (i // 2 % 2)
            Image.fromarray(image).save(folder / f"{i}.png")
            table.writerow([f"{i}.png", f"p{i // 2}", ("well", "ill")[i // 2 % 2]])
    return str(folder / "table.csv")


def test_from_table_to_report(tmp_path, capsys):
    methods = ("cnn", "cnn_augmented", "acgan", "cnn_samples")
    config = settings(per_class=(2, 3), seeds=(4, 5), methods=methods,
                      data=dict(source=write(tmp_path), validation_per_class=3, test_per_class=5))
    work = tmp_path / "run"
    experiment.run(config, work)
    results = storage.load_json(work / "results.json")
    assert results["sizes"] == [2, 3] and results["seeds"] == [4, 5] and results["medical"]
    assert set(results["accuracy"]) == set(methods)
    assert all(0 <= v <= 1 for t in results["accuracy"].values() for r in t.values()
               for v in r["each"])
    assert set(results["samples"]) == {"acgan"}
    assert set(results["difference"]["acgan"]) == {"2", "3"}
    assert set(results["difference_augmented"]) == {"acgan", "cnn_samples"}
    each = results["difference_augmented"]["acgan"]["3"]["each"]
    first, second = (results["accuracy"][name]["3"]["each"] for name in ("acgan", "cnn_augmented"))
    np.testing.assert_allclose(each, np.subtract(first, second), atol=1e-12)
    for steps in results["best_step"]["acgan"].values():
        assert set(steps) <= {2, 4}
    # The accuracy kept is the highest of the validations, and its step is theirs.
    found, _ = storage.load_arrays(work / "stages" / "train-acgan" / "found.safetensors")
    np.testing.assert_array_equal(found["best_step"] // 2 - 1, found["validation"].argmax(1))
    assert found["samples"].shape == (4, 2, config.samples, 28, 28, 1)
    saved = storage.load_tree(work / "stages" / "train-cnn" / "best.safetensors")
    assert set(saved) == {"discriminator"}
    page = re.sub(r'src="data:[^"]*"', "", (work / "report.html").read_text())
    assert "not for diagnosis" in page and "AC-GAN" in page and "nan" not in page
    for name in ("accuracy", "differences", "differences_augmented", "samples_acgan"):
        assert (work / f"{name}.png").is_file()
    capsys.readouterr()
    experiment.run(config, work)
    assert "started" not in capsys.readouterr().out


@pytest.mark.parametrize(("changes", "message"), [
    (dict(methods=("acgan",)), "lack 'cnn'"),
    (dict(seeds=(1, 1)), "nothing may occur twice"),
    (dict(per_class=()), "none may be empty"),
    (dict(population="pmap"), "config.population 'pmap'; known"),
    (dict(samples=1), "config.samples is 1"),
    (dict(data=dict(size=64)), "size 64: 3 layers lead from 4 to 32 pixels"),
    (dict(net=dict(trunk="vgg")), "config.net.trunk 'vgg'; known: dcgan, alexnet"),
    (dict(schedule=dict(eval_every=3)), "not a positive multiple"),
])
def test_settings_that_cannot_be_run(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        experiment.run(settings(**changes), tmp_path)
    assert not list(tmp_path.iterdir())
