"""Rosetta Neurons on networks that ship in packages: units that a face generator and others share.

Paper:    Dravid et al., "Rosetta Neurons: Mining the Common Units in a Model Zoo", ICCV 2023.
Command:  python launch.py --config=configs/rosetta.py
Cost and numbers: rosetta/README.md.
Variants: smoke (CI), fashion (five small networks, each trained here under another supervision, on
          Fashion-MNIST), imagenet (the paper's networks, from checkpoints that you have).
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "rosetta"
    config.experiment = "rosetta.experiment"
    config.seed = 0
    config.mine = ConfigDict(
        dict(
            zoo="packages",
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
    config.guide = ConfigDict(dict(pairs=64))  # most best buddies of each network that guide
    config.invert = ConfigDict(
        dict(
            images=6,  # generated ones, not mined
            photographs=6,
            tries=64,  # random latents of which the best is the start
            steps=200,
            rate=0.05,
            betas=(0.9, 0.999),
            schedule="ramp",
            pixel=10.0,  # weights; that of the activations is 1
            lpips=2.0,
            prior=0.01,
        )
    )
    config.edit = ConfigDict(
        dict(
            images=8,
            steps=150,
            rate=0.05,
            prior=0.02,  # towards the latent of the image
            pixel=10.0,
            shift=0.25,  # of the side
            zoom=1.5,
            units=8,  # that are changed one at a time
            strength=4.0,
        )
    )
    if variant == "smoke":
        config.mine.models = ("lite0", "alexnet")
        config.mine.sizes = (64, 64)
        config.mine.images = 16
        config.mine.batch = 8
        config.mine.permutations = 2
        config.match.rate = 0.5
        config.show.update(dict(pool=8, matches=3, entries=3, concepts=3))
        config.guide.pairs = 8
        config.invert.update(dict(images=2, photographs=0, tries=4, steps=4, lpips=0.0))
        config.edit.update(dict(images=2, steps=4, units=2))
    elif variant == "fashion":
        config.mine.update(
            dict(
                zoo="fashion",
                models=("class", "distillation", "masked", "names"),
                sizes=(32, 32, 32, 32),
                images=2048,
                batch=64,
            )
        )
        config.train = ConfigDict(
            dict(
                rate=1e-3,
                batch=128,
                steps=dict(distillation=800, masked=800, names=800, gan=2000, **{"class": 800}),
            )
        )
        config.invert.update(dict(images=8, photographs=0, steps=300))
    elif variant == "imagenet":
        # The published pipeline: 1,600 images of class 207. The tables need 40 GB; see the README.
        names = ("resnet50", "mae_vitb16", "dino_resnet50", "dino_vitb16", "clip_resnet50")
        config.mine.update(dict(zoo="files", models=names, sizes=(224,) * 5))
        config.mine.update(dict(images=1600, batch=8, permutations=1, twins=0))
        config.mine.paths = ConfigDict({name: "" for name in names})
        config.mine.generator = ConfigDict(
            dict(network="biggan", path="", size=256, label=207, psi=0.7)
        )
        config.invert.photographs = 0
    elif variant:
        raise ValueError(
            f"configs/rosetta.py has no variant {variant!r}; it has: smoke, fashion, imagenet"
        )
    return config
