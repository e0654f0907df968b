"""Networks of DeepCOVID-Fuse: image, clinical variables, and both.

Wu, Dravid, Wehbe, Katsaggelos, "DeepCOVID-Fuse: A Multi-Modality Deep Learning Model Fusing Chest
X-rays and Clinical Variables to Predict COVID-19 Risk Levels", Bioengineering 2023. The layers
follow the released notebooks: with DenseNet-121 as trunk, 99 variables and 3 classes the networks
have 7,140,995 (fusion) and 7,177,155 (image) parameters, averages of batch normalisation included.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nets.densenet import DenseNet
from medical.fusion.missing import Present

_GLOROT = nn.initializers.glorot_normal()


def paper_trunk() -> DenseNet:
    """DenseNet-121 without classifier, with the constants of Keras."""
    return DenseNet(classes=0, epsilon=1.001e-5, momentum=0.99)


class TrunkClassifier(nn.Module):
    """Logits of an image: trunk, average, one dense layer. For pretraining."""

    trunk: nn.Module
    classes: int = 2

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        found = self.trunk(images, train)
        return nn.Dense(self.classes, name="classifier")(jnp.mean(found, axis=(1, 2)))


class FusionNet(nn.Module):
    """Logits of an image and its clinical variables.

    Attributes:
      trunk: images ``[batch, h, w, c]`` to a feature map; called as ``trunk(images, train)``.
      classes: number of classes.
      image_width: units of the image's branch.
      clinical_width: units of the clinical branch.
      width: units after the concatenation.
      learned: whether an absent modality's features are a learned vector; else they are those of
        whatever stands in its place in the input (see `missing.fill`).
    """

    trunk: nn.Module
    classes: int = 3
    image_width: int = 64
    clinical_width: int = 128
    width: int = 128
    learned: bool = False

    def setup(self) -> None:
        self.image_dense = nn.Dense(self.image_width, kernel_init=_GLOROT)
        self.clinical_dense = nn.Dense(self.clinical_width, kernel_init=_GLOROT)
        self.joint = nn.Dense(self.width, kernel_init=_GLOROT)
        self.out = nn.Dense(self.classes, kernel_init=_GLOROT)
        self.drop = nn.Dropout(0.2)
        if self.learned:
            small = nn.initializers.normal(0.02)
            self.no_image = self.param("no_image", small, (1, self.image_width))
            self.no_clinical = self.param("no_clinical", small, (1, self.clinical_width))

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Feature map of the trunk, for `explain.grad_cam`."""
        return self.trunk(images, train)

    def head(
        self, found: jax.Array, clinical: jax.Array, present: Present | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Logits ``[batch, classes]`` from the feature map and the variables ``[batch, n]``."""
        image = self.image_dense(jnp.mean(found, axis=(1, 2)))
        table = nn.relu(self.clinical_dense(clinical))
        if self.learned and present is not None:
            image = jnp.where(present.image[:, None], image, self.no_image)
            table = jnp.where(present.clinical[:, None], table, self.no_clinical)
        image, table = (self.drop(x, deterministic=not train) for x in (image, table))
        return self.out(nn.relu(self.joint(jnp.concatenate([image, table], axis=-1))))

    def __call__(
        self, images: jax.Array, clinical: jax.Array, present: Present | None = None,
        train: bool = False,
    ) -> jax.Array:
        return self.head(self.features(images, train), clinical, present, train)


class ImageNet(nn.Module):
    """Logits of an image alone: trunk, average, 128 (linear), 64 with rectifier, classes.

    `head` and `__call__` take the arguments of `FusionNet` and ignore the variables.
    """

    trunk: nn.Module
    classes: int = 3

    def setup(self) -> None:
        self.first = nn.Dense(128, kernel_init=_GLOROT)
        self.second = nn.Dense(64, kernel_init=_GLOROT)
        self.out = nn.Dense(self.classes, kernel_init=_GLOROT)
        self.drop = nn.Dropout(0.2)

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Feature map of the trunk."""
        return self.trunk(images, train)

    def head(
        self, found: jax.Array, clinical: jax.Array | None = None, present: Present | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Logits ``[batch, classes]`` from the feature map."""
        del clinical, present
        x = self.drop(self.first(jnp.mean(found, axis=(1, 2))), deterministic=not train)
        return self.out(nn.relu(self.second(x)))

    def __call__(
        self, images: jax.Array, clinical: jax.Array | None = None, present: Present | None = None,
        train: bool = False,
    ) -> jax.Array:
        return self.head(self.features(images, train), clinical, present, train)


class ClinicalNet(nn.Module):
    """Logits of clinical variables alone: 128 and 64 units with rectifiers, classes.

    `head` takes the arguments of `FusionNet` and ignores the feature map.
    """

    classes: int = 3

    def setup(self) -> None:
        self.first = nn.Dense(128, kernel_init=_GLOROT)
        self.second = nn.Dense(64, kernel_init=_GLOROT)
        self.out = nn.Dense(self.classes, kernel_init=_GLOROT)
        self.drop = nn.Dropout(0.2)

    def head(
        self, found: jax.Array | None, clinical: jax.Array, present: Present | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Logits ``[batch, classes]`` of ``[batch, variables]``."""
        del found, present
        x = self.drop(nn.relu(self.first(clinical)), deterministic=not train)
        return self.out(nn.relu(self.second(x)))

    def __call__(self, clinical: jax.Array, train: bool = False) -> jax.Array:
        return self.head(None, clinical, None, train)
