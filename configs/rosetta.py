"""Rosetta Neurons on networks that ship in packages: units that a face generator and others share.

Paper:    Dravid et al., "Rosetta Neurons: Mining the Common Units in a Model Zoo", ICCV 2023.
Command:  python launch.py --config=configs/rosetta.py
Cost and numbers: rosetta/README.md.
Variants: smoke (CI).
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "rosetta"
    config.experiment = "rosetta.experiment"
    config.seed = 0
    config.mine = ConfigDict(
        dict(
            models=("lite0", "vgg16", "alexnet", "faces"),
            sizes=(224, 112, 224, 150),  # pixels that each network sees
            images=512,
            batch=16,
            permutations=4,  # tables with exchanged images
            twins=1,  # untrained twins of each network
        )
    )
    config.match = ConfigDict(
        dict(
            rule="asymmetric",  # best_buddies, asymmetric (the published 1 and k) or symmetric
            k=5,
            rate=0.05,  # false-discovery rate
            links=1,  # nearest neighbours that make a concept
        )
    )
    config.show = ConfigDict(dict(pool=64, matches=8, entries=12, concepts=10))
    if variant == "smoke":
        config.mine.models = ("lite0", "alexnet")
        config.mine.sizes = (64, 64)
        config.mine.images = 16
        config.mine.batch = 8
        config.mine.permutations = 2
        config.match.rate = 0.5
        config.show.update(dict(pool=8, matches=3, entries=3, concepts=3))
    elif variant:
        raise ValueError(f"configs/rosetta.py has no variant {variant!r}; it has: smoke")
    return config
