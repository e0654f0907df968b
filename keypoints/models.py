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
import numpy as np
from flax import struct

from keypoints import cameras as cameras_lib
from keypoints import edges, encoders, lifting, unprojection
from keypoints.cameras import Cameras
from keypoints.norms import GroupNorm
from keypoints.v2v import V2V, soft_argmax

LIFTINGS = ("volume", "triangulation")
BACKBONES = ("small", "resnet")
HEAT_STRIDE = 4  # pixels of the image in one of the pyramid's maps


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of the networks.

    Attributes:
        keypoints: number of keypoints.
        voxels: voxels on a side of the volume.
        features: channels that are lifted into the volume.
        backbone: "small", `encoders.Encoder`, or "resnet", `encoders.ResNetEncoder`.
        encoder: channels at strides 2, 4, 8, ... ("small") or 4, 8, 16, ... ("resnet"); the last is
            the decoder's appearance.
        blocks: residual blocks at each stride from 4 on ("small").
        stages: residual blocks at each stride ("resnet").
        stem: channels of the first convolution ("resnet").
        pyramid: channels of the feature pyramid.
        volume: channels of the 3-D network's levels.
        front_kernel: size of its first kernel.
        front_blocks: its residual blocks before the first level.
        full_volume: its residual blocks of the publication, see `v2v.V2V`.
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
    backbone: str = "small"
    encoder: tuple[int, ...] = (16, 24, 32, 48)
    blocks: int = 1
    stages: tuple[int, ...] = (3, 4, 6, 3)
    stem: int = 64
    pyramid: int = 32
    volume: tuple[int, ...] = (16, 32, 64)
    front_kernel: int = 3
    front_blocks: int = 0
    full_volume: bool = False
    decoder: tuple[int, ...] = (48, 32, 24, 16)
    sigmas: tuple[float, ...] = (0.0, 0.0, 0.1, 0.06)
    aggregation: str = "softmax"
    lifting: str = "volume"

    def __post_init__(self) -> None:
        if self.lifting not in LIFTINGS:
            raise ValueError(f"unknown lifting {self.lifting!r}, expected one of {LIFTINGS}")
        if self.aggregation not in unprojection.MODES:
            raise ValueError(f"unknown aggregation {self.aggregation!r}")
        if self.backbone not in BACKBONES:
            raise ValueError(f"unknown backbone {self.backbone!r}, expected one of {BACKBONES}")
        if self.keypoints < 2 or len(self.encoder) < 2:
            raise ValueError("at least 2 keypoints and 2 encoder strides are needed")
        if not any(sigma > 0 for sigma in self.sigmas):
            raise ValueError("the skeleton is drawn at no level")
        if len(self.decoder) != len(self.sigmas) or self.change_stride < 1:
            raise ValueError(
                f"{len(self.decoder)} decoder levels, {len(self.sigmas)} line widths and"
                f" {len(self.encoder)} encoder strides do not fit"
            )
        if self.backbone == "resnet" and len(self.stages) != len(self.encoder):
            raise ValueError(
                f"{len(self.stages)} stages and {len(self.encoder)} encoder strides do not fit"
            )

    @property
    def stride(self) -> int:
        """Pixels of the image in one pixel of the appearance."""
        return 2 ** (len(self.encoder) + (self.backbone == "resnet"))

    @property
    def change_stride(self) -> int:
        """Pixels of the image in one pixel of the predicted change; 0 where there is none."""
        return 2 * self.stride // 2 ** len(self.decoder)

    @property
    def corners(self) -> bool:
        """Whether a map's first pixel lies on the image's first, see `encoders.ResNetEncoder`."""
        return self.backbone == "resnet"

    def check_images(self, height: int, width: int) -> None:
        """Raises ValueError where the encoder cannot halve the images."""
        stride = self.stride
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
        turned: keypoints of the first frames in another world, where one was asked for.
    """

    first: Keypoints
    second: Keypoints
    change: Any
    heat: Any
    turned: Keypoints | None = None


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
        self.encoder: Any = (
            encoders.ResNetEncoder(c.stages, c.encoder, c.stem)
            if c.backbone == "resnet"
            else encoders.Encoder(c.encoder, c.blocks)
        )
        self.skeleton = self.param(
            "skeleton", nn.initializers.normal(1.0), (len(edges.pairs(c.keypoints)),)
        )
        if c.lifting == "volume":
            confident = c.aggregation == "confidence"
            self.pyramid = encoders.Pyramid(c.pyramid, c.features + confident, c.corners)
            self.v2v = V2V(
                c.keypoints, c.volume, c.front_kernel, c.front_blocks, c.full_volume
            )
        else:
            self.pyramid = encoders.Pyramid(c.pyramid, c.keypoints, c.corners)
        self.decoder = Decoder(c)

    def maps(self, features: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
        """Maps to be lifted, `[frames, views, h, w, c]`, from the encoder's features."""
        found = self.pyramid(features)
        return found.reshape(*shape, *found.shape[1:])

    def volume(self, maps: jax.Array, cameras: Cameras, present: jax.Array) -> jax.Array:
        """Maps of all views in one volume."""
        c = self.config
        weights = maps[..., c.features :] if c.aggregation == "confidence" else None
        return unprojection.unproject(
            maps[..., : c.features], cameras, c.voxels, present, c.aggregation, weights, c.corners
        )

    def lift(
        self, maps: jax.Array, worlds: list[tuple[Cameras, jax.Array]]
    ) -> tuple[list[Keypoints], jax.Array]:
        """Keypoints in one or more worlds, from the same maps.

        Args:
            maps: `[frames, views, h, w, c]`.
            worlds: of each its cameras and which views were recorded, `[n, views]`: the first n
                frames are lifted there; all frames in the first world.

        Returns:
            (keypoints in each world, logits as in `Prediction` of the first).
        """
        c = self.config
        if c.lifting == "triangulation":
            found = [
                Keypoints(*lifting.triangulate(maps[: len(own)], rig, own, c.corners))
                for rig, own in worlds
            ]
            return found, maps.reshape(*maps.shape[:2], -1, c.keypoints)
        # one pass of the 3-D network for all worlds
        volumes = [self.volume(maps[: len(own)], rig, own) for rig, own in worlds]
        logits = self.v2v(volumes[0] if len(volumes) == 1 else jnp.concatenate(volumes))
        every = Keypoints(*soft_argmax(logits))
        ends = np.cumsum([len(own) for _, own in worlds])
        found = [
            jax.tree.map(lambda leaf, a=a, b=b: leaf[a:b], every)
            for a, b in zip([0, *ends[:-1]], ends, strict=True)
        ]
        heat = logits[: ends[0]]
        return found, heat.reshape(len(heat), -1, c.keypoints)

    def keypoints(self, images: jax.Array, cameras: Cameras, present: jax.Array) -> Keypoints:
        """Keypoints of every frame.

        Args:
            images: `[frames, views, height, width, 3]`; any number of views.
            cameras: `[views]`.
            present: `[frames, views]`, 1 where the view was recorded.
        """
        flat = images.reshape(-1, *images.shape[2:])
        maps = self.maps(self.encoder(flat), present.shape)
        return self.lift(maps, [(cameras, present)])[0][0]

    def __call__(
        self, first: jax.Array, second: jax.Array, cameras: Cameras, present: jax.Array,
        turned: Cameras | None = None,
    ) -> Prediction:
        """Keypoints of both frames of each pair and the predicted change in every view.

        Args:
            first, second: `[pairs, views, height, width, 3]`.
            cameras: `[views]`.
            present: `[pairs, views]`.
            turned: the same cameras in another world, in which the first frames are lifted, too.
        """  # fmt: skip
        count, views, height, width, _ = first.shape
        self.config.check_images(height, width)
        both = jnp.concatenate([first, second])
        features = self.encoder(both.reshape(-1, height, width, 3))
        twice = jnp.concatenate([present, present])
        worlds = [(cameras, twice), *([(turned, present)] if turned is not None else [])]
        found, heat = self.lift(self.maps(features, twice.shape), worlds)
        one = jax.tree.map(lambda leaf: leaf[:count], found[0])
        two = jax.tree.map(lambda leaf: leaf[count:], found[0])
        appearance = features[-1][: count * views]
        maps = self.draw(found[0].points, cameras, appearance.shape[1:3])
        change = self.decoder(appearance, maps)
        change = change.reshape(count, views, *change.shape[1:])
        return Prediction(one, two, change, heat, found[1] if turned is not None else None)

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
