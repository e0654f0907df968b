"""The classifiers that are compared: CNNs and heads of auxiliary-classifier GANs, one trunk.

`cnn` is what all are compared with, `cnn_augmented` what they must beat to be of use: classical
augmentation costs nothing. So that it can be a fair comparison, GANs may be augmented, too.
"""

import dataclasses
from typing import Any

from medical.acgan.train import Recipe


@dataclasses.dataclass(frozen=True)
class Method:
    """What distinguishes a method; networks, images, steps and optimiser are the same for all.

    Attributes:
      title: for tables and figures.
      adversarial: trained with a generator; otherwise trunk and class head alone.
      wasserstein: Wasserstein source loss with gradient penalty.
      truncation: limit of the codes, 0 for none.
      augmented: real images are shifted and mirrored.
      samples_of: method whose generators, after its last step, give as many images as are real in
        each batch.
    """

    title: str
    adversarial: bool = False
    wasserstein: bool = False
    truncation: float = 0.0
    augmented: bool = False
    samples_of: str = ""

    def recipe(self, **settings: Any) -> Recipe:
        """The recipe of the training step; `settings` are fields that all methods share, of which
        `source` and `fake_class` are 0 without a generator."""
        recipe = Recipe(wasserstein=self.wasserstein, truncation=self.truncation, **settings)
        if self.adversarial:
            return recipe
        return dataclasses.replace(recipe, source=0.0, fake_class=0.0)


METHODS: dict[str, Method] = {
    "cnn": Method("CNN"),
    "cnn_augmented": Method("CNN, augmented", augmented=True),
    "cnn_samples": Method("CNN, samples of AC-GAN", samples_of="acgan"),
    "cnn_wacgan_samples": Method("CNN, samples of WAC-GAN-GP", samples_of="wacgan_gp"),
    "acgan": Method("AC-GAN", adversarial=True),
    "wacgan_gp": Method("WAC-GAN-GP", adversarial=True, wasserstein=True),
    "wacgan_gpt": Method("WAC-GAN-GPT", adversarial=True, wasserstein=True, truncation=1.0),
    "acgan_augmented": Method("AC-GAN, augmented", adversarial=True, augmented=True),
    "wacgan_gpt_augmented": Method(
        "WAC-GAN-GPT, augmented", adversarial=True, wasserstein=True, truncation=1.0,
        augmented=True),
    "cnn_augmented_samples": Method(
        "CNN, augmented, samples of augmented WAC-GAN-GPT", augmented=True,
        samples_of="wacgan_gpt_augmented"),
}


def chosen(names: tuple[str, ...]) -> dict[str, Method]:
    """Methods by name, in the given order.

    Raises:
      ValueError: an unknown name, no "cnn" (all are compared with it), or a method whose source of
        samples does not come before it.
    """
    for place, name in enumerate(names):
        if name not in METHODS:
            raise ValueError(f"method {name!r} is unknown; known: {', '.join(METHODS)}")
        needed = METHODS[name].samples_of
        if needed and needed not in names[:place]:
            raise ValueError(f"method {name!r} needs {needed!r} before it, got {', '.join(names)}")
    if "cnn" not in names:
        raise ValueError(f"methods {', '.join(names)} lack 'cnn', with which all are compared")
    return {name: METHODS[name] for name in names}
