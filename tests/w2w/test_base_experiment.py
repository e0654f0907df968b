"""The base model's training from weights that are there already."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from common import config as config_lib
from common.config import ConfigError
from tests.w2w import small
from w2w import base, base_experiment, losses, models


def test_weights_to_start_from(tmp_path):
    tree = small.params()
    models.save(tmp_path / "a.safetensors", small.MODEL, tree, {})
    config = ConfigDict({"start": {"path": str(tmp_path / "a.safetensors")}})
    found = base_experiment.load_start(config, small.MODEL)
    recipe = base.BaseRecipe(5, 2, 1e-3, 1, 0.0, 0.9, losses.NoiseSchedule(0.0, 1.0))
    state = base.init_state(jax.random.key(0), small.MODEL, recipe, found)
    assert set(state.params) == {"unet", "text"}  # the autoencoder is not trained further
    for name in state.params:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
            state.params[name], tree[name])  # stored in float16
    missing = config_lib.load("configs/face_base.py:smoke")
    missing.start = str(tmp_path / "b.safetensors")
    with pytest.raises(ConfigError, match="config.start: there is no file .*b.safetensors"):
        base_experiment.run(missing, tmp_path / "run")
    other = dataclasses.replace(small.MODEL, image_size=32)
    with pytest.raises(ConfigError, match="a.safetensors is a model of another architecture"):
        base_experiment.load_start(config, other)
