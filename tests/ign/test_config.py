"""The variants of the configuration; `configs/ign.py:smoke` runs the whole experiment in CI."""

import dataclasses

import pytest

from configs import ign as ign_config
from ign import settings


def test_every_variant_is_a_whole_configuration():
    names = {key for key in ign_config.get_config().keys()}
    for variant in ("smoke", "fashion", "faces", "celeba64", "gpu", "seeds"):
        assert set(ign_config.get_config(variant).keys()) == names
    with pytest.raises(ValueError, match="no variant 'tiny'; it has: smoke, fashion"):
        ign_config.get_config("tiny")


def test_what_is_configured_reaches_the_recipe_and_the_network():
    config = ign_config.get_config()
    plain = settings.recipe(config)
    changes = dict(input_blur=0.7, tightness_decay_from=0.2, slices=5, num_steps=9)
    config.train.update(changes)
    assert settings.recipe(config) == dataclasses.replace(plain, **changes)
    assert settings.net_config(config, 10).principal
    config.net.update(principal=False, linear=True)
    assert settings.net_config(config, 10).linear
