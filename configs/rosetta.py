"""Rosetta Neurons on networks that ship in packages: units that a face generator and others share.

Paper:    Dravid et al., "Rosetta Neurons: Mining the Common Units in a Model Zoo", ICCV 2023.
Command:  python launch.py --config=configs/rosetta.py
Cost and numbers: rosetta/README.md.
Variants: smoke (CI), fashion (five small networks, each trained here under another supervision, on
          Fashion-MNIST), imagenet (the paper's networks, from checkpoints that you have).
Networks: of packages (lite0, lite1, vgg16, alexnet, faces), of your checkpoints (resnet50,
          dino_resnet50, dino_vits16, dino_vitb16, dino_vitb8, mae_vitb16, clip_resnet50; a file or
          hub id in mine.paths), or your own as MODULE:FUNCTION or FILE.py:FUNCTION (zoo/own.py).
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "rosetta"
    config.experiment = "rosetta.experiment"
    config.seed = 0
    config.mine = ConfigDict(
        dict(
            zoo="given",  # or fashion, trained in the run
            models=("lite0", "vgg16", "alexnet", "faces"),
            sizes=(224, 112, 224, 150),  # pixels that each network sees
            images=512,
            batch=16,
            permutations=4,  # tables with exchanged images
            twins=1,  # untrained twins of each network
            rows=0,  # generator units a pass; 0: all. Bounds memory, costs passes
            keep=10,  # best partners of every unit that are kept
        )
    )
    config.mine.generator = ConfigDict(
        dict(
            # dcgan, biggan, stylegan_xl, stylegan2, stylegan3t, stylegan3r, or your own
            network="dcgan",
            path="",
            size=256,  # pixels
            label=207,  # class, of BigGAN and StyleGAN-XL
            psi=0.7,  # truncation, of StyleGAN2 and StyleGAN-XL
            space="z",  # or w, w+: of the latents that inversion and edits change, of StyleGANs
            crop=False,  # takes the margins off the maps of StyleGAN3 and StyleGAN-XL
        )
    )
    config.mine.paths = ConfigDict(
        dict.fromkeys(
            ("resnet50", "dino_resnet50", "dino_vits16", "dino_vitb16", "dino_vitb8", "mae_vitb16",
             "clip_resnet50"),
            "",
        )
    )  # fmt: skip
    config.match = ConfigDict(
        dict(
            rule="asymmetric",  # best_buddies, asymmetric (the published 1 and k) or symmetric
            k=5,
            rate=0.05,  # false-discovery rate
            links=1,  # nearest neighbours that make a concept
        )
    )
    config.reference = False  # also the published code's score, in two more passes
    config.show = ConfigDict(dict(pool=64, matches=8, entries=12, concepts=10))
    config.guide = ConfigDict(
        dict(
            pairs=64,  # most best buddies of each network that guide
            most=0,  # latents that are optimised together; 0: all. Bounds memory
        )
    )
    config.invert = ConfigDict(
        dict(
            images=6,  # generated ones, not mined
            photographs=6,
            folder="",  # of your images
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
            shift=0.125,  # of the side; a quarter is more than this generator can draw
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
        # The published pipeline: 1,600 images of class 207, in six passes; see the README.
        names = ("resnet50", "mae_vitb16", "dino_resnet50", "dino_vitb16", "clip_resnet50")
        config.mine.update(dict(models=names, sizes=(224,) * 5, rows=4096))
        config.mine.update(dict(images=1600, batch=8, permutations=1, twins=0))
        config.mine.generator.network = "biggan"
        config.guide.most = 8
        config.invert.photographs = 0
    elif variant:
        raise ValueError(
            f"configs/rosetta.py has no variant {variant!r}; it has: smoke, fashion, imagenet"
        )
    return config
