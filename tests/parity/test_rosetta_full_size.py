"""Files of the published networks at their published sizes, with random weights."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from common import config as config_lib
from rosetta import checks, context, mined
from tests.parity import rosetta_files as official

# Deselected by default: 1 GB of files. Run with `-m full_size`.
pytestmark = [
    pytest.mark.parity,
    pytest.mark.full_size,
    # spectral_norm of this old package is torch's former one.
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated:FutureWarning"),
]


def test_the_published_zoo_is_read(tmp_path):
    """Nothing is missing in the files, nothing left over, and the units are the published ones."""
    paths = official.write(tmp_path, small=False)
    config = config_lib.load("configs/rosetta.py:imagenet")
    config.mine.generator.path = str(paths["biggan"])
    for name in config.mine.models:
        config.mine.paths[name] = str(paths[name])
    checks.check(config)
    networks = context.zoo(ConfigDict({**config.mine, "seed": 0}))
    plan = context.plan_of(networks, config.mine.permutations, 0)
    found = {layout.name: len(layout) for layout in plan.layouts}
    assert found == {
        "biggan256": 23296, "resnet50": 3840, "mae_vitb16": 36864, "dino_resnet50": 3840,
        "dino_vitb16": 36864, "clip_resnet50": 3840,
    }  # fmt: skip
    assert networks.generator.size == 256
    blocks = mined.row_blocks(plan, config.mine.rows)
    assert [len(block.layout("biggan256")) for block in blocks] == [4096] * 5 + [2816]
    kernel = networks.generator.params["params"]["layer0"]["conv1"]["kernel"]
    # Spectral normalisation: the largest singular value is about 1.
    largest = np.linalg.norm(kernel.transpose(3, 0, 1, 2).reshape(kernel.shape[3], -1), 2)
    assert 0.9 < largest < 1.3
