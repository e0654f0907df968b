"""The 3-D network from a feature volume to one heat map for each keypoint (V2V-PoseNet's form).

G. Moon, J. Chang, K. Lee, "V2V-PoseNet", CVPR 2018: residual blocks in an hourglass. Stateless
group norms stand in for batch norms, convolutions are the exact folded form of `common.nets.conv3d`
and the kernel-2 stride-2 transposed convolution is a dense layer and a rearrangement.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nets.conv3d import Conv3D
from common.nets.fusion import once
from keypoints.norms import GroupNorm


class Residual(nn.Module):
    """Two 3 x 3 x 3 convolutions with norms and a shortcut."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = Conv3D(self.channels, use_bias=False, name="conv1")(x)
        y = nn.relu(GroupNorm(name="norm1")(y))
        y = Conv3D(self.channels, use_bias=False, name="conv2")(y)
        y = GroupNorm(name="norm2")(y)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, use_bias=False, name="shortcut")(x)
            x = GroupNorm(name="shortcut_norm")(x)
        return nn.relu(x + y)


@jax.custom_vjp
def pool(x: jax.Array) -> jax.Array:
    """Maximum of 2 x 2 x 2 voxels, `[batch, d, h, w, channels]` with even sizes.

    Of equal entries the first is the maximum and has the gradient.
    """
    return _largest(x)[0]


def _largest(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(maximum, int8 index of its entry), both `[batch, d / 2, h / 2, w / 2, channels]`."""
    value, index = x, jnp.zeros(x.shape, jnp.int8)
    for axis in (1, 2, 3):
        first, second = _alternate(value, axis)
        later = second > first
        value = jnp.maximum(first, second)
        of_first, of_second = _alternate(index, axis)
        index = jnp.where(later, of_second + jnp.int8(8 >> axis), of_first)
    return value, index


def _alternate(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Entries 0, 2, ... and 1, 3, ... along an axis."""
    return (jax.lax.slice_in_dim(x, 0, None, 2, axis), jax.lax.slice_in_dim(x, 1, None, 2, axis))


def _pool_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _largest(x)


def _pool_backward(index: jax.Array, change: jax.Array) -> tuple[jax.Array]:
    n, d, h, w, c = change.shape
    own = jnp.arange(8, dtype=jnp.int8).reshape(1, 1, 2, 1, 2, 1, 2, 1)
    wide = (n, d, 1, h, 1, w, 1, c)
    found = jnp.where(index.reshape(wide) == own, change.reshape(wide), 0.0)
    return (once(found.reshape(n, 2 * d, 2 * h, 2 * w, c)),)


pool.defvjp(_pool_forward, _pool_backward)


class Upsample(nn.Module):
    """Transposed convolution with kernel 2 and stride 2, exactly: each voxel becomes eight."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, d, h, w, _ = x.shape
        y = nn.Dense(8 * self.channels, use_bias=False, name="dense")(x)
        y = y.reshape(n, d, h, w, 2, 2, 2, self.channels).transpose(0, 1, 4, 2, 5, 3, 6, 7)
        y = y.reshape(n, 2 * d, 2 * h, 2 * w, self.channels)
        return nn.relu(GroupNorm(name="norm")(y))


class V2V(nn.Module):
    """`[batch, n, n, n, features]` -> logits `[batch, n, n, n, outputs]`.

    Attributes:
        outputs: number of heat maps.
        channels: of each level of the hourglass, finest first; n must be divisible by
            2 ** (len(channels) - 1).
        front_kernel: size of the first convolution's kernel (7 in the publication).
        front_blocks: residual blocks before the hourglass.
        full: residual blocks also across and up from each level, and two layers before the logits,
            as in the publication.
    """

    outputs: int
    channels: Sequence[int] = (16, 32, 64)
    front_kernel: int = 3
    front_blocks: int = 0
    full: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if x.shape[1] % 2 ** (len(self.channels) - 1):
            raise ValueError(
                f"a volume of {x.shape[1]} voxels a side cannot be halved {len(self.channels) - 1}"
                " times"
            )
        kernel = (self.front_kernel,) * 3
        x = Conv3D(self.channels[0], kernel, use_bias=False, name="front")(x)
        x = nn.relu(GroupNorm(name="front_norm")(x))
        for index in range(self.front_blocks):
            x = Residual(self.channels[0], name=f"front{index}")(x)
        x = self._level(x, 0)
        if self.full:
            x = Residual(self.channels[0], name="back")(x)
            for index in range(2):
                x = nn.Dense(self.channels[0], use_bias=False, name=f"back{index}")(x)
                x = nn.relu(GroupNorm(name=f"back_norm{index}")(x))
        return nn.Dense(self.outputs, name="logits")(x)

    def _level(self, x: jax.Array, level: int) -> jax.Array:
        """Residual block at this level, and what the coarser levels add to it."""
        x = Residual(self.channels[level], name=f"down{level}")(x)
        if level + 1 == len(self.channels):
            return x
        below = self._level(pool(x), level + 1)
        if self.full:
            x = Residual(self.channels[level], name=f"across{level}")(x)
            below = Residual(self.channels[level + 1], name=f"rise{level}")(below)
        x = x + Upsample(self.channels[level], name=f"up{level}")(below)
        return nn.relu(GroupNorm(name=f"merge{level}")(x))


def coordinates(n: int) -> jax.Array:
    """Centres of the voxels of the cube [-1, 1]^3, `[n, n, n, 3]`, axes in the order x, y, z."""
    axis = (jnp.arange(n, dtype=jnp.float32) + 0.5) * (2.0 / n) - 1.0
    return jnp.stack(jnp.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)


def soft_argmax(logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Expectation of the voxel's position under the softmax of each heat map.

    Normaliser, first and second moments are one matrix product with ten basis functions.

    Args:
        logits: `[batch, n, n, n, keypoints]`.

    Returns:
        (positions `[batch, keypoints, 3]` in [-1, 1], covariances `[batch, keypoints, 3, 3]`,
        confidence `[batch, keypoints]`: the largest probability of a voxel).
    """
    batch, n, _, _, count = logits.shape
    flat = jnp.moveaxis(logits.reshape(batch, n**3, count), 2, 1).astype(jnp.float32)
    # a shift changes no softmax, so the maximum needs no gradient
    weights = jnp.exp(flat - jax.lax.stop_gradient(flat.max(axis=-1, keepdims=True)))
    x = coordinates(n).reshape(-1, 3)
    pairs = (x[:, :, None] * x[:, None, :]).reshape(-1, 9)
    basis = jnp.concatenate([jnp.ones_like(x[:, :1]), x, pairs], axis=1)
    sums = jnp.einsum("nkp,pb->nkb", weights, basis, precision="highest")
    moments = sums[..., 1:] / sums[..., :1]
    mean, second = moments[..., :3], moments[..., 3:].reshape(batch, count, 3, 3)
    covariance = second - mean[..., :, None] * mean[..., None, :]
    return mean, covariance, 1.0 / sums[..., 0]
