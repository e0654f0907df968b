"""The networks: shared encoder with feature pyramid, lifting to 3-D keypoints, decoder of change.

Sun et al., "BKinD-3D", CVPR 2023, with the geometry written anew. Images are `[frames, views,
height, width, 3]` in [0, 1]; cameras are given in the world in which the volume is [-1, 1]^3, with
intrinsics in pixels of these images.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from keypoints import cameras as cameras_lib
from keypoints import edges, lifting, unprojection
from keypoints.cameras import Cameras
from keypoints.norms import GroupNorm
from keypoints.v2v import V2V, soft_argmax

LIFTINGS = ("volume", "triangulation")
HEAT_STRIDE = 4  # pixels of the image in one of the pyramid's maps


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of the networks.

    Attributes:
        keypoints: number of keypoints.
        voxels: voxels on a side of the volume.
        features: channels that are lifted into the volume.
        encoder: channels at strides 2, 4, 8, ...; the last is the decoder's appearance.
        blocks: residual blocks of the encoder at each stride from 4 on.
        pyramid: channels of the feature pyramid.
        volume: channels of the 3-D network's levels.
        front_kernel: size of its first kernel.
        decoder: channels at strides from that of the appearance on, halving; the last is the
            stride of the predicted change.
        sigmas: width of a line in the map at each decoder level, half long sides of the image; 0
            draws none there. A decoder that sees the skeleton at coarse levels can read any smooth
            code of the pose from it; one that sees it at fine levels only needs it in its place.
        aggregation: how views are combined, see `unprojection.unproject`.
        lifting: "volume", or "triangulation" of 2-D heat maps (the baseline).
    """

    keypoints: int = 12
    voxels: int = 24
    features: int = 16
    encoder: tuple[int, ...] = (16, 24, 32, 48)
    blocks: int = 1
    pyramid: int = 32
    volume: tuple[int, ...] = (16, 32, 64)
    front_kernel: int = 3
    decoder: tuple[int, ...] = (48, 32, 24, 16)
    sigmas: tuple[float, ...] = (0.0, 0.0, 0.1, 0.06)
    aggregation: str = "softmax"
    lifting: str = "volume"

    def __post_init__(self) -> None:
        if self.lifting not in LIFTINGS:
            raise ValueError(f"unknown lifting {self.lifting!r}, expected one of {LIFTINGS}")
        if self.aggregation not in unprojection.MODES:
            raise ValueError(f"unknown aggregation {self.aggregation!r}")
        if self.keypoints < 2 or len(self.encoder) < 2:
            raise ValueError("at least 2 keypoints and 2 encoder strides are needed")
        if not any(sigma > 0 for sigma in self.sigmas):
            raise ValueError("the skeleton is drawn at no level")
        if len(self.decoder) != len(self.sigmas) or len(self.decoder) > len(self.encoder):
            raise ValueError(
                f"{len(self.decoder)} decoder levels, {len(self.sigmas)} line widths and"
                f" {len(self.encoder)} encoder strides do not fit"
            )

    @property
    def change_stride(self) -> int:
        """Pixels of the image in one pixel of the predicted change."""
        return 2 ** (len(self.encoder) - len(self.decoder) + 1)

    def check_images(self, height: int, width: int) -> None:
        """Raises ValueError where the encoder cannot halve the images."""
        stride = 2 ** len(self.encoder)
        if height % stride or width % stride:
            raise ValueError(f"images of {height} x {width} pixels: both must divide by {stride}")


class Keypoints(struct.PyTreeNode):
    """Keypoints of some frames in the volume's coordinates [-1, 1].

    Attributes:
        points: `[frames, keypoints, 3]`.
        covariance: of the heat map, `[frames, keypoints, 3, 3]`.
        confidence: in (0, 1], `[frames, keypoints]`.
    """

    points: Any
    covariance: Any
    confidence: Any


class Prediction(struct.PyTreeNode):
    """What the network says of pairs of frames.

    Attributes:
        first, second: keypoints of either frame.
        change: between them, in every view, `[pairs, views, h, w]`.
        heat: logits of the heat maps of all first, then all second frames,
            `[2 pairs, voxels, keypoints]`, or `[2 pairs, views, pixels, keypoints]` where 2-D maps
            are triangulated.
    """

    first: Keypoints
    second: Keypoints
    change: Any
    heat: Any


class Residual(nn.Module):
    """Two 3 x 3 convolutions with norms and a shortcut."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(GroupNorm()(nn.Conv(self.channels, (3, 3), use_bias=False)(x)))
        y = GroupNorm()(nn.Conv(self.channels, (3, 3), use_bias=False)(y))
        return nn.relu(x + y)


class Encoder(nn.Module):
    """`[images, h, w, 3]` -> features at strides 2, 4, 8, ...

    Each halving is a 4 x 4 convolution with one pixel of padding: the centre of an output pixel is
    the centre of its 2 x 2 block, so maps of all strides follow the half-pixel convention of
    `cameras.resize`.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        features = []
        x = 2.0 * x - 1.0
        for level, channels in enumerate(self.config.encoder):
            x = nn.Conv(channels, (4, 4), 2, 1, use_bias=False, name=f"halve{level}")(x)
            x = nn.relu(GroupNorm(name=f"norm{level}")(x))
            for block in range(self.config.blocks if level else 0):
                x = Residual(channels, name=f"block{level}_{block}")(x)
            features.append(x)
        return features


class Pyramid(nn.Module):
    """Top-down sum of lateral 1 x 1 convolutions; returns maps `outputs` channels at stride 4."""

    channels: int
    outputs: int

    @nn.compact
    def __call__(self, features: list[jax.Array]) -> jax.Array:
        x = None
        for index, feature in reversed(list(enumerate(features))[1:]):
            project = nn.Conv(self.channels, (1, 1), use_bias=False, name=f"lateral{index}")
            lateral = project(feature)
            lateral = nn.relu(GroupNorm(name=f"norm{index}")(lateral))
            if x is not None:
                x = jax.image.resize(x, lateral.shape, "bilinear")
                x = nn.Conv(self.channels, (1, 1), use_bias=False, name=f"down{index}")(x)
                lateral = lateral + x
            x = lateral
        x = nn.Conv(self.channels, (3, 3), use_bias=False, name="smooth")(x)
        x = nn.relu(GroupNorm(name="smooth_norm")(x))
        return nn.Conv(self.outputs, (1, 1), name="predict")(x)


class Decoder(nn.Module):
    """Appearance `[images, h, w, c]` and skeleton maps of two frames -> change `[images, H, W]`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, appearance: jax.Array, maps: list[jax.Array | None]) -> jax.Array:
        x = appearance
        for level, (channels, drawn) in enumerate(zip(self.config.decoder, maps, strict=True)):
            if level:
                shape = (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3])
                x = jax.image.resize(x, shape, "bilinear")
            if drawn is not None:
                x = jnp.concatenate([x, drawn], axis=-1)
            x = nn.Conv(channels, (3, 3), use_bias=False, name=f"conv{level}")(x)
            x = nn.relu(GroupNorm(name=f"norm{level}")(x))
        x = nn.Conv(channels, (3, 3), use_bias=False, name="last")(x)
        x = nn.relu(GroupNorm(name="last_norm")(x))
        return nn.Conv(1, (1, 1), name="change")(x)[..., 0]


class KeypointNet(nn.Module):
    """The whole model; see `ModelConfig` for its sizes."""

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        self.encoder = Encoder(c)
        self.skeleton = self.param(
            "skeleton", nn.initializers.normal(1.0), (len(edges.pairs(c.keypoints)),)
        )
        if c.lifting == "volume":
            confident = c.aggregation == "confidence"
            self.pyramid = Pyramid(c.pyramid, c.features + confident)
            self.v2v = V2V(c.keypoints, c.volume, c.front_kernel)
        else:
            self.pyramid = Pyramid(c.pyramid, c.keypoints)
        self.decoder = Decoder(c)

    def lift(
        self, features: list[jax.Array], cameras: Cameras, present: jax.Array
    ) -> tuple[Keypoints, jax.Array]:
        """Keypoints, and logits as in `Prediction`, from encoder features at all strides."""
        c = self.config
        maps = self.pyramid(features)
        maps = maps.reshape(*present.shape, *maps.shape[1:])
        if c.lifting == "triangulation":
            points, covariance, confidence = lifting.triangulate(maps, cameras, present)
            heat = maps.reshape(*present.shape, -1, c.keypoints)
            return Keypoints(points, covariance, confidence), heat
        weights = maps[..., c.features :] if c.aggregation == "confidence" else None
        volume = unprojection.unproject(
            maps[..., : c.features], cameras, c.voxels, present, c.aggregation, weights
        )
        logits = self.v2v(volume)
        return Keypoints(*soft_argmax(logits)), logits.reshape(len(logits), -1, c.keypoints)

    def keypoints(self, images: jax.Array, cameras: Cameras, present: jax.Array) -> Keypoints:
        """Keypoints of every frame.

        Args:
            images: `[frames, views, height, width, 3]`; any number of views.
            cameras: `[views]`.
            present: `[frames, views]`, 1 where the view was recorded.
        """
        flat = images.reshape(-1, *images.shape[2:])
        return self.lift(self.encoder(flat), cameras, present)[0]

    def __call__(
        self, first: jax.Array, second: jax.Array, cameras: Cameras, present: jax.Array
    ) -> Prediction:
        """Keypoints of both frames of each pair and the predicted change in every view.

        Args:
            first, second: `[pairs, views, height, width, 3]`.
            cameras: `[views]`.
            present: `[pairs, views]`.
        """
        count, views, height, width, _ = first.shape
        self.config.check_images(height, width)
        both = jnp.concatenate([first, second])
        features = self.encoder(both.reshape(-1, height, width, 3))
        found, heat = self.lift(features, cameras, jnp.concatenate([present, present]))
        one = jax.tree.map(lambda leaf: leaf[:count], found)
        two = jax.tree.map(lambda leaf: leaf[count:], found)
        appearance = features[-1][: count * views]
        maps = self.draw(found.points, cameras, appearance.shape[1:3])
        change = self.decoder(appearance, maps)
        return Prediction(one, two, change.reshape(count, views, *change.shape[1:]), heat)

    def draw(
        self, points: jax.Array, cameras: Cameras, coarsest: tuple
    ) -> list[jax.Array | None]:
        """Skeleton maps of pairs (first half, second half of the frames) at the decoder's levels.

        Returns:
            For each level `[pairs * views, h, w, 2]`, or None where its sigma is 0.
        """
        frames, count, _ = points.shape
        pixels, depth = cameras_lib.project(cameras, points.reshape(-1, 3))
        place = jax.vmap(edges.normalised)(pixels, jnp.asarray(cameras.size, jnp.float32))
        place = jnp.clip(place, -4.0, 4.0)
        views = place.shape[0]
        place = place.reshape(views, frames, count, 2).transpose(1, 0, 2, 3).reshape(-1, count, 2)
        seen = (depth > 0).reshape(views, frames, count).transpose(1, 0, 2).reshape(-1, count)
        weights = jax.nn.softplus(self.skeleton)
        maps: list[jax.Array | None] = []
        for level, sigma in enumerate(self.config.sigmas):
            if sigma == 0:
                maps.append(None)
                continue
            shape = (coarsest[0] * 2**level, coarsest[1] * 2**level)
            drawn = edges.draw(place, weights, shape, sigma, seen)
            drawn = drawn.reshape(2, frames // 2 * views, *shape)
            maps.append(jnp.moveaxis(drawn, 0, -1))
        return maps


def init(model: KeypointNet, key: jax.Array, size: tuple[int, int], cameras: Cameras) -> dict:
    """Fresh parameters for images of (height, width) `size`."""
    views = len(cameras.size)
    images = jnp.zeros((1, views, *size, 3))
    return jax.jit(model.init)(key, images, images, cameras, jnp.ones((1, views)))["params"]
