"""Text conditioning: a word tokenizer and a causal transformer encoder in CLIP's layout."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from w2w.diffusion.layers import LayerNorm, attend

PAD, START, END = "<pad>", "<start>", "<end>"


class WordTokenizer:
    """Maps prompts to fixed-length rows of word indices: start, words, end, padding.

    Args:
      words: the vocabulary, without the three special tokens, which take indices 0, 1 and 2.
      length: tokens per prompt, special tokens included.
    """

    def __init__(self, words: Sequence[str], length: int):
        if len(set(words)) != len(words):
            raise ValueError("the vocabulary names a word twice")
        self.words = (PAD, START, END, *words)
        self.length = length
        self._index = {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __call__(self, prompts: str | Sequence[str]) -> np.ndarray:
        """Returns int32 ``[prompts, length]``.

        Raises:
          ValueError: for a word outside the vocabulary or a prompt that is too long.
        """
        if isinstance(prompts, str):
            prompts = [prompts]
        rows = np.zeros((len(prompts), self.length), np.int32)
        for row, prompt in zip(rows, prompts, strict=True):
            words = prompt.lower().replace(",", " ").split()
            unknown = [word for word in words if word not in self._index]
            if unknown:
                raise ValueError(f"prompt {prompt!r}: unknown words {', '.join(unknown)}")
            if len(words) + 2 > self.length:
                raise ValueError(
                    f"prompt {prompt!r} has {len(words)} words, at most {self.length - 2} fit"
                )
            tokens = [START, *words, END]
            row[: len(tokens)] = [self._index[word] for word in tokens]
        return rows


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Size of the text encoder (the defaults are CLIP ViT-L/14's).

    Attributes:
      vocabulary: number of tokens.
      length: longest prompt, in tokens.
      width: of the features.
      layers: transformer layers.
      num_heads: attention heads.
      activation: of the feed-forward layers, "quick_gelu" (CLIP's ``x sigmoid(1.702 x)``) or
        "gelu" (exact; OpenCLIP's).
      hidden: width inside the feed-forward layers; None for 4 times ``width``.
      projection: width of the projected pooled features; None for no projection.
      eos_token: index of the token whose features are pooled, at its first place in a prompt. 2
        stands, as in transformers, for the token of the largest index.
    """

    vocabulary: int = 49408
    length: int = 77
    width: int = 768
    layers: int = 12
    num_heads: int = 12
    activation: str = "quick_gelu"
    hidden: int | None = None
    projection: int | None = None
    eos_token: int = 2

    def __post_init__(self):
        if self.activation not in _ACTIVATIONS:
            raise ValueError(
                f"activation {self.activation!r}; expected one of {', '.join(_ACTIVATIONS)}"
            )


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * nn.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": _quick_gelu,
    "gelu": functools.partial(nn.gelu, approximate=False),
}


class TextOutputs(NamedTuple):
    """What diffusion models use of the text encoder.

    Attributes:
      last: normed features of the last layer ``[batch, length, width]`` (SD 1.x and 2.x).
      penultimate: features that enter the last layer, not normed, of the same shape (SDXL).
      pooled: normed features at the end token ``[batch, width]``, or ``[batch, projection]`` after
        the projection.
    """

    last: jax.Array
    penultimate: jax.Array
    pooled: jax.Array


class SelfAttention(nn.Module):
    """Causal multi-head self-attention with CLIP's parameter names."""

    num_heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]

        def heads(name):
            y = nn.Dense(width, dtype=self.dtype, name=name)(x)
            return y.reshape(*y.shape[:-1], self.num_heads, width // self.num_heads)

        out = attend(heads("q_proj"), heads("k_proj"), heads("v_proj"), causal=True)
        return nn.Dense(width, dtype=self.dtype, name="out_proj")(out.reshape(x.shape))


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    config: TextConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, dtype = self.config, self.dtype
        y = LayerNorm(name="layer_norm1")(x)
        x = x + SelfAttention(cfg.num_heads, dtype, name="self_attn")(y)
        y = LayerNorm(name="layer_norm2")(x)
        y = nn.Dense(cfg.hidden or 4 * cfg.width, dtype=dtype, name="fc1")(y)
        y = nn.Dense(cfg.width, dtype=dtype, name="fc2")(_ACTIVATIONS[cfg.activation](y))
        return x + y


class TextEncoder(nn.Module):
    """CLIP's text transformer: tokens ``[batch, length]`` to features ``[batch, length, width]``.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021).

    Attributes:
      config: sizes.
      dtype: of the computation; None for that of the parameters.
    """

    config: TextConfig
    dtype: Any = None

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Normed features of the last layer."""
        return self.outputs(tokens).last

    @nn.compact
    def outputs(self, tokens: jax.Array) -> TextOutputs:
        """All outputs."""
        cfg, dtype = self.config, self.dtype
        x = nn.Embed(cfg.vocabulary, cfg.width, dtype=dtype, name="token_embedding")(tokens)
        position = self.param(
            "position_embedding", nn.initializers.normal(0.02), (cfg.length, cfg.width)
        )
        x = x + position[None, : tokens.shape[1]].astype(x.dtype)
        penultimate = x
        for i in range(cfg.layers):
            penultimate = x
            x = EncoderLayer(cfg, dtype, name=f"layers_{i}")(x)
        last = LayerNorm(name="final_layer_norm")(x)
        is_end = tokens if cfg.eos_token == 2 else tokens == cfg.eos_token
        end = jnp.argmax(is_end, axis=-1)
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        if cfg.projection is not None:
            project = nn.Dense(
                cfg.projection, use_bias=False, dtype=dtype, name="text_projection"
            )
            pooled = project(pooled)
        return TextOutputs(last, penultimate, pooled)
