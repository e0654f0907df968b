"""Text conditioning: a word tokenizer and a causal transformer encoder in CLIP's layout."""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np

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
    """Size of the text encoder (the defaults are CLIP ViT-L/14's)."""

    vocabulary: int = 49408
    length: int = 77
    width: int = 768
    layers: int = 12
    num_heads: int = 12


class SelfAttention(nn.Module):
    """Causal multi-head self-attention with CLIP's parameter names."""

    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]

        def heads(y):
            return y.reshape(*y.shape[:-1], self.num_heads, width // self.num_heads)

        q = heads(nn.Dense(width, name="q_proj")(x))
        k = heads(nn.Dense(width, name="k_proj")(x))
        v = heads(nn.Dense(width, name="v_proj")(x))
        out = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return nn.Dense(width, name="out_proj")(out.reshape(x.shape))


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer with the ``x * sigmoid(1.702 x)`` activation of CLIP."""

    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.LayerNorm(epsilon=1e-5, name="layer_norm1")(x)
        x = x + SelfAttention(self.num_heads, name="self_attn")(y)
        y = nn.LayerNorm(epsilon=1e-5, name="layer_norm2")(x)
        y = nn.Dense(4 * x.shape[-1], name="fc1")(y)
        return x + nn.Dense(x.shape[-1], name="fc2")(y * nn.sigmoid(1.702 * y))


class TextEncoder(nn.Module):
    """CLIP's text transformer: tokens ``[batch, length]`` to features ``[batch, length, width]``.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021).
    """

    config: TextConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        cfg = self.config
        x = nn.Embed(cfg.vocabulary, cfg.width, name="token_embedding")(tokens)
        position = self.param(
            "position_embedding", nn.initializers.normal(0.02), (cfg.length, cfg.width)
        )
        x = x + position[None, : tokens.shape[1]].astype(x.dtype)
        for i in range(cfg.layers):
            x = EncoderLayer(cfg.num_heads, name=f"layers_{i}")(x)
        return nn.LayerNorm(epsilon=1e-5, name="final_layer_norm")(x)
