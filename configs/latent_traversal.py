"""Latent traversal: add the pathology code step by step and watch image and classifier change.

Paper:    Dravid, Katsaggelos, "Visual Explanations for Convolutional Neural Networks via Latent
          Traversal of Generative Adversarial Networks", AAAI 2022 (student abstract).
Command:  python launch.py --config=configs/latent_traversal.py
Method:   that of configs/medxgan.py (its first form): one seed, no controls.
Cost and numbers: medical/README.md.
Variants: smoke (CI), published (the small networks with the published losses: no encoder), folder
          (your own X-rays: --config.data.table=studies.csv), aaai22 (the published networks at 128
          pixels with their schedule, for an accelerator; --config.classifier.weights=vgg16.pth for
          ImageNet's convolutions), paper (is aaai22).
"""

from ml_collections import ConfigDict

from configs import medxgan


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "smoke", "published", "folder", "aaai22", "paper"):
        raise ValueError(
            f"configs/latent_traversal.py has no variant {variant!r}; it has: smoke, published, "
            "folder, aaai22, paper"
        )
    config = medxgan.get_config({"aaai22": "covid128", "paper": "covid128"}.get(variant, variant))
    config.name = "latent_traversal"
    config.seeds = (0,)
    config.controls = ()
    if variant == "published":
        config.objective.class_weight = 1.0
    return config
