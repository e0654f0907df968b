"""Small networks for 32 x 32 grey images, to be trained here under different supervision.

| name | supervision | network | units |
|---|---|---|---|
| class | class labels | convolutions | 336 |
| distillation | its own moving average on other views (after DINO) | convolutions | 336 |
| names | contrastive, with the letters of the class's name (after CLIP) | convolutions | 336 |
| masked | reconstruction of hidden patches (MAE) | transformer | 1,024 |
| gan | adversarial (DCGAN); the anchor | transposed convolutions | 224 |

What mining sees are the rectified convolutions, and the hidden layer of each transformer block.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nets.conv_transpose import ConvTranspose2x
from rosetta.zoo.shipped import calibrator
from rosetta.zoo.tapped import Generator, Maps, Tapped, edited_inputs

__all__ = [
    "LATENT", "MASKED_SHARE", "NETWORKS", "SIZE", "ConvNet", "Discriminator", "LetterTower",
    "MaskedAutoencoder", "SmallGenerator", "generator", "network",
]

SIZE = 32  # pixels
LATENT = 64
MASKED_SHARE = 0.75

_PATCH = 4  # pixels


def _norm(name: str, train: bool) -> nn.BatchNorm:
    return nn.BatchNorm(not train, momentum=0.95, epsilon=1e-5, name=name)


class ConvNet(nn.Module):
    """Six convolutions, three of stride 2: `[batch, 32, 32, 1]` -> (`[batch, outputs]`, maps).

    Attributes:
      outputs: of the linear head on the mean of the last maps.
      width: channels of the first convolution.
    """

    outputs: int
    width: int = 16

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, Maps]:
        taps = {}
        for index, (times, stride) in enumerate(((1, 1), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2))):
            x = nn.Conv(self.width * times, (3, 3), stride, 1, use_bias=False,
                        name=f"conv{index}")(x)
            taps[f"conv{index}"] = x = nn.relu(_norm(f"bn{index}", train)(x))
        return nn.Dense(self.outputs, name="head")(jnp.mean(x, (1, 2))), taps


class LetterTower(nn.Module):
    """Names as letters `[names, length]` (0 fills up) -> embeddings `[names, outputs]`."""

    outputs: int
    width: int = 64

    @nn.compact
    def __call__(self, letters: jax.Array) -> jax.Array:
        x = nn.Embed(128, self.width, name="letters")(letters)
        x = nn.gelu(nn.Conv(self.width, (3,), name="triples")(x))
        seen = (letters > 0).astype(x.dtype)[..., None]
        x = jnp.sum(x * seen, 1) / jnp.sum(seen, 1)
        return nn.Dense(self.outputs, name="out")(nn.gelu(nn.Dense(self.width, name="hidden")(x)))


class Block(nn.Module):
    """Pre-norm transformer block; returns its hidden activations as well."""

    width: int
    heads: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = nn.LayerNorm(name="norm1")(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, name="attention")(y)
        hidden = nn.Dense(4 * self.width, name="fc1")(nn.LayerNorm(name="norm2")(x))
        hidden = nn.gelu(hidden, approximate=False)
        return x + nn.Dense(self.width, name="fc2")(hidden), hidden


class MaskedAutoencoder(nn.Module):
    """Reconstructs patches of 4 x 4 pixels of which it did not see most.

    K. He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, with a decoder of
    one block. `__call__(images, order)`: `order [batch, 64]` is a permutation of the patches of
    which the first quarter is seen; returns predicted patches `[batch, 64, 16]`, in place. With
    `order` None all are seen, nothing is decoded, and the result is the maps of the blocks' hidden
    layers.
    """

    width: int = 64
    depth: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, order: jax.Array | None = None) -> Any:
        tokens = nn.Dense(self.width, name="embed")(patches(x))
        count = tokens.shape[1]
        places = self.param("places", nn.initializers.normal(0.02), (1, count, self.width))
        tokens = tokens + places
        if order is not None:
            seen = order[:, : round((1 - MASKED_SHARE) * count)]
            tokens = jnp.take_along_axis(tokens, seen[..., None], 1)
        taps = {}
        for index in range(self.depth):
            tokens, hidden = Block(self.width, name=f"block{index}")(tokens)
            if order is None:
                side = SIZE // _PATCH
                taps[f"block{index}"] = hidden.reshape(-1, side, side, hidden.shape[-1])
        # The decoder; its parameters exist in either case.
        missing = self.param("missing", nn.initializers.normal(0.02), (1, 1, self.width))
        decoder_places = self.param(
            "decoder_places", nn.initializers.normal(0.02), (1, count, self.width)
        )
        if order is None and not self.is_initializing():
            return taps
        tokens = nn.LayerNorm(name="norm")(tokens)
        hole = jnp.broadcast_to(missing, (x.shape[0], count - tokens.shape[1], self.width))
        if order is not None:
            back = jnp.argsort(order, 1)
            tokens = jnp.take_along_axis(
                jnp.concatenate([tokens, hole], 1), back[..., None], 1
            )
        tokens, _ = Block(self.width, name="decoder")(tokens + decoder_places)
        return nn.Dense(_PATCH**2, name="pixels")(nn.LayerNorm(name="decoder_norm")(tokens))


class SmallGenerator(nn.Module):
    """Latents `[batch, 64]` -> `[batch, 32, 32, 1]` in [-1, 1], and maps of 4, 8, 16 cells."""

    width: int = 32

    @nn.compact
    def __call__(self, z: jax.Array, train: bool = False) -> tuple[jax.Array, Maps]:
        x = nn.Dense(16 * 4 * self.width, use_bias=False, name="dense")(z)
        x = x.reshape(-1, 4, 4, 4 * self.width)
        taps = {}
        for index, times in enumerate((4, 2, 1)):
            if index:
                x = ConvTranspose2x(times * self.width, (4, 4), use_bias=False,
                                    name=f"conv{index}")(x)
            taps[f"block{index}"] = x = nn.relu(_norm(f"bn{index}", train)(x))
        return jnp.tanh(ConvTranspose2x(1, (4, 4), name="conv3")(x)), taps


class Discriminator(nn.Module):
    """Images `[batch, 32, 32, 1]` in [-1, 1] -> `[batch]`, the logit of being real."""

    width: int = 32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for index, times in enumerate((1, 2, 4)):
            x = nn.Conv(times * self.width, (4, 4), 2, 1, name=f"conv{index}")(x)
            if index:
                x = nn.BatchNorm(False, name=f"bn{index}", axis_name=None)(x)
            x = nn.leaky_relu(x, 0.2)
        return nn.Dense(1, name="out")(x.reshape(x.shape[0], -1))[:, 0]


def patches(x: jax.Array) -> jax.Array:
    """Images `[batch, 32, 32, 1]` -> patches `[batch, 64, 16]` in reading order."""
    side = SIZE // _PATCH
    x = x.reshape(-1, side, _PATCH, side, _PATCH)
    return x.transpose(0, 1, 3, 2, 4).reshape(-1, side**2, _PATCH**2)


def prepare(images: jax.Array) -> jax.Array:
    """RGB images in [0, 1] -> what the networks see: grey, `[batch, 32, 32, 1]` in [-1, 1]."""
    return 2 * jnp.mean(images, -1, keepdims=True) - 1


_CONV_TAPS = tuple(f"conv{index}" for index in range(6))
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "class": (lambda: ConvNet(10), _CONV_TAPS),
    "distillation": (lambda: ConvNet(64), _CONV_TAPS),
    "masked": (MaskedAutoencoder, tuple(f"block{index}" for index in range(4))),
    "names": (lambda: ConvNet(64), _CONV_TAPS),
}


def network(name: str, variables: Mapping[str, Any]) -> Tapped:
    """One of `NETWORKS` with trained variables.

    Raises:
      ValueError: no such network.
    """
    if name not in NETWORKS:
        raise ValueError(f"no network {name!r}; there are {', '.join(NETWORKS)}")
    make, taps = NETWORKS[name]
    module = make()

    def apply(variables: Any, images: jax.Array) -> Maps:
        output: Any = module.apply(variables, prepare(images))
        return output if name == "masked" else output[1]

    calibrate = calibrator(module, prepare) if "batch_stats" in variables else None
    return Tapped(name, apply, dict(variables), taps, calibrate)


def generator(variables: Mapping[str, Any]) -> Generator:
    """The trained generator: 3 taps, 224 units."""
    module = SmallGenerator()
    taps = ("block0", "block1", "block2")
    consumers = {f"conv{index + 1}": tap for index, tap in enumerate(taps)}

    def coloured(output: tuple[jax.Array, Maps]) -> jax.Array:
        image = (output[0] + 1) / 2
        return jnp.broadcast_to(image, (*image.shape[:3], 3))

    def apply(variables: Any, z: jax.Array) -> tuple[jax.Array, Maps]:
        output: Any = module.apply(variables, z)
        return coloured(output), output[1]

    def edited(variables: Any, z: jax.Array, edit: Any) -> tuple[jax.Array, Maps]:
        output, maps = edited_inputs(lambda: module.apply(variables, z), edit, consumers)
        return coloured(output), maps

    def sample(key: jax.Array, count: int) -> jax.Array:
        return jax.random.normal(key, (count, LATENT))

    return Generator("gan", apply, dict(variables), taps, sample, jnp.zeros(LATENT), edited)
