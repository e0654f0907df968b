"""Which stages a run has, and what they depend on."""

import pytest

from common.config import ConfigError
from configs import w2w as w2w_config
from w2w import base_experiment, experiment, models


@pytest.fixture
def stages(monkeypatch, tmp_path):
    """Function of a configuration: its stages, by name, as (function, settings, needs)."""

    def of(config):
        found = {}

        class Recorder:
            def __init__(self, workdir):
                assert workdir == tmp_path

            def stage(self, name, function, settings, needs=(), **_):
                assert set(needs) <= set(found), f"{name} comes before what it needs"
                found[name] = (function, settings.to_dict(), needs)

        monkeypatch.setattr(experiment, "Pipeline", Recorder)
        monkeypatch.setattr(experiment, "publish", lambda *_: "page")
        experiment.run(config, tmp_path)
        return found

    return of


def test_the_shipped_base_is_known_by_its_digest(stages):
    found = stages(w2w_config.get_config("smoke"))
    _, settings, needs = found["base"]
    assert settings["path"] == str(models.SHIPPED_WEIGHTS)
    assert settings["digest"] == models.digest(models.SHIPPED_WEIGHTS)
    assert needs == () and "train" not in found
    assert list(found)[-1] == "report"


def test_a_base_of_ones_own_training_is_used(stages):
    config = w2w_config.get_config("smoke")
    config.base.train = True
    found = stages(config)
    function, settings, needs = found["base"]
    assert needs == ("train",) and "path" not in settings
    assert found["train"][0] is base_experiment.train_base
    assert found["train"][2] == ("frames", "autoencoder")


def test_missing_weights_end_the_run_before_its_first_stage(stages):
    config = w2w_config.get_config("smoke")
    config.base.path = "nowhere.safetensors"
    with pytest.raises(ConfigError, match="no file nowhere"):
        stages(config)


def test_people_who_are_not_loaded_cannot_be_inverted(stages):
    config = w2w_config.get_config("smoke")
    config.faces.olivetti = 9
    with pytest.raises(ConfigError, match="9 people leave out person 9"):
        stages(config)
