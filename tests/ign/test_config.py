"""The variants of the configuration; `configs/ign.py:smoke` runs the whole experiment in CI."""

import pytest

from configs import ign as ign_config


def test_every_variant_is_a_whole_configuration():
    names = {key for key in ign_config.get_config().keys()}
    for variant in ("smoke", "fashion", "faces", "celeba64", "gpu", "seeds"):
        assert set(ign_config.get_config(variant).keys()) == names
    with pytest.raises(ValueError, match="no variant 'tiny'; it has: smoke, fashion"):
        ign_config.get_config("tiny")
