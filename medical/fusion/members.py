"""Members of DeepCOVID-XR's ensemble: a trunk at one size, on whole or cropped radiographs.

Wehbe et al., "DeepCOVID-XR", Radiology 2021. Each member averages the trunk's feature map and
answers one probability. `medical.fusion.ensemble` weighs members and augments images at test time.

```python
member = members.Member("resnet50", 331, cropped=True)
images = members.prepare(radiographs, member, lungs)        # [n, 331, 331, 1] in [-1, 1]
net, variables = members.load("ResNet50_331_crop.h5", member)
p = ensemble.averaged(members.predictor(net, variables), key, images, passes=10)   # [n, 2]
```
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from common import porting
from medical.data import lung_crop
from medical.fusion import backbones
from medical.fusion.networks import DEVIATION, MEAN


@dataclasses.dataclass(frozen=True)
class Member:
    """Attributes:
    backbone: one of `backbones.BACKBONES`.
    size: side of its images in pixels.
    cropped: whether it sees the square around the lungs instead of the whole image.
    """

    backbone: str
    size: int
    cropped: bool


PUBLISHED = tuple(Member(name, size, cropped) for name in backbones.BACKBONES
                  for size in (224, 331) for cropped in (False, True))
"""The 24 members of the paper."""


class MemberNet(nn.Module):
    """Logit ``[batch, 1]`` of images ``[batch, h, w, channels]``.

    Attributes:
      trunk: images to a feature map; called as ``trunk(images, train)``.
      dropout: of the averaged features, in training.
    """

    trunk: nn.Module
    dropout: float = 0.3

    def setup(self) -> None:
        self.drop = nn.Dropout(self.dropout)
        self.out = nn.Dense(1)

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Feature map of the trunk, for `explain.grad_cam`; the paper averages members' maps."""
        return self.trunk(images, train)

    def head(self, found: jax.Array, train: bool = False) -> jax.Array:
        """Logit ``[batch, 1]`` from the feature map."""
        return self.out(self.drop(jnp.mean(found, axis=(1, 2)), deterministic=not train))

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return self.head(self.features(images, train), train)


def prepare(
    radiographs: Sequence[np.ndarray], member: Member, lungs: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """Images as a member sees them, float32 ``[n, size, size, 1]`` in [-1, 1].

    Args:
      radiographs: each ``[h, w]`` in [0, 1], bright where tissue absorbs.
      member: says size and crop.
      lungs: a boolean mask ``[h, w]`` of each, from any segmentation; needed for a cropped member.

    Returns:
      Resized with Lanczos' filter, as published, not keeping the aspect of whole images.
    """
    if member.cropped and (lungs is None or len(lungs) != len(radiographs)):
        raise ValueError(f"a cropped member needs a mask of the lungs of each of "
                         f"{len(radiographs)} radiographs")
    found = []
    for i, image in enumerate(radiographs):
        image = np.asarray(image, np.float32)
        if image.ndim != 2:
            raise ValueError(f"radiograph {i} has shape {image.shape}, expected [h, w]")
        if member.cropped:
            assert lungs is not None
            image = lung_crop.lung_crop(np.asarray(lungs[i]), image).of(image)
        picture = Image.fromarray(np.ascontiguousarray(image))
        side = (member.size, member.size)
        found.append(np.clip(np.asarray(picture.resize(side, Image.Resampling.LANCZOS)), 0, 1))
    return np.stack(found)[..., None] * 2 - 1


def make(member: Member, style: str = "keras", dropout: float = 0.3) -> MemberNet:
    """The network of a member, with random weights until `load` or training."""
    return MemberNet(backbones.make(member.backbone, member.size, style), dropout)


def load(path: str, member: Member, style: str | None = None) -> tuple[MemberNet, Any]:
    """A trained member from a file: the network, in the family of the file, and its variables.

    Args:
      path: Keras' ``.h5``, ``.safetensors`` or a torch file, with the names of the trunk (see
        `backbones`) and a last layer of one unit: Keras' `dense*`, or PyTorch's `fc`, `classifier`,
        `classif`.
      member: whose weights they are.
      style: "keras" or "torch"; None: as the names tell. It must be given for timm's
        `tf_efficientnet_b2` only, which is Keras' network under PyTorch names.

    Raises:
      FileNotFoundError: there is no such file.
      PortingError: the tensors are not those of this member.
    """
    tensors = backbones.read_tensors(path)
    net = make(member, style or backbones.family(tensors))
    trunk = backbones.port(member.backbone, net.trunk, tensors)
    last = r"(?:dense(?:_\d+)?/|(?:fc|classifier|classif|last_linear|classifier\.\d)\.)"
    kernel = porting.identity if backbones.family(tensors) == "keras" else porting.linear_oi_to_io
    depth = _depth(net, member)
    shapes = {"kernel": jax.ShapeDtypeStruct((depth, 1), jnp.float32),
              "bias": jax.ShapeDtypeStruct((1,), jnp.float32)}
    out = porting.port(tensors, (
        (rf"{last}(?:kernel|weight)(?::0)?", "kernel", kernel),
        (rf"{last}bias(?::0)?", "bias", porting.identity),
        (r".*", porting.DROP, porting.identity),  # the trunk's, used above
    ), shapes)
    variables = {name: {"trunk": tree} for name, tree in trunk.items()}
    variables["params"]["out"] = jax.tree.map(jnp.asarray, out)
    return net, variables


def predictor(net: MemberNet, variables: Any) -> Callable[[jax.Array], jax.Array]:
    """Probabilities ``[n, 2]`` of images ``[n, h, w, 1]`` in [-1, 1], as `ensemble` wants them."""

    def predict(images: jax.Array) -> jax.Array:
        colour = jnp.repeat(images / 2 + 0.5, 3, axis=-1)
        colour = (colour - MEAN[None, None, None]) / DEVIATION[None, None, None]
        logit: Any = net.apply(variables, colour)
        positive = jax.nn.sigmoid(logit)
        return jnp.concatenate([1 - positive, positive], axis=-1)

    return predict


def _depth(net: MemberNet, member: Member) -> int:
    """Channels of the trunk's feature map."""
    image = jax.ShapeDtypeStruct((1, member.size, member.size, 3), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), image)
    return int(shapes["params"]["out"]["kernel"].shape[0])
