"""Networks on a mesh: residual Chebyshev or spiral classifier, and a multilayer perceptron.

All take `(x [batch, vertices, features], hierarchy)` and return logits `[batch, classes]`. The
published network is not known in detail (its code was not released); widths, depth and head are
this project's choice and configurable.
"""

from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from meshgcn import chebyshev, operators, spiral
from meshgcn.hierarchy import Hierarchy

__all__ = ["MeshConv", "MeshNet", "Perceptron", "ResBlock", "count_parameters"]


class MeshConv(nn.Module):
    """Graph convolution with bias: `x [vertices, batch, channels]` to `features` channels.

    Attributes:
      features: channels out.
      terms: K, the number of Chebyshev terms (degree K - 1); for spirals their length.
      use_bias: False where a normalisation follows.
    """

    features: int
    terms: int
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, operator: chebyshev.Laplacian | jax.Array | None
    ) -> jax.Array:
        """Without an operator `x` has the terms as channels, `[..., terms * channels]`."""
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1), out_axis=2)
        channels = x.shape[-1] // (self.terms if operator is None else 1)
        shape = (self.terms, channels, self.features)
        kernel = self.param("kernel", init, shape).astype(x.dtype)
        if operator is None:
            y = x @ kernel.reshape(-1, self.features)
        elif isinstance(operator, jax.Array):
            y = spiral.convolve(x, kernel, operator)
        else:
            y = chebyshev.convolve(x, kernel, operator)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)
            y = y + bias[None, None]
        return y


class ResBlock(nn.Module):
    """Two convolutions with normalisation and ReLU around a shortcut (1 x 1 if widths differ).

    Attributes:
      features: channels out.
      terms: K of both convolutions.
      preact: normalisation and ReLU before each convolution instead of after (He et al. 2016), so
        that the shortcut is linear.
      residual: False leaves the shortcut out (the plain network).
      norm: "batch" (statistics over batch and vertices) or "none".
    """

    features: int
    terms: int
    preact: bool = False
    residual: bool = True
    norm: str = "batch"

    @nn.compact
    def __call__(
        self, x: jax.Array, operator: chebyshev.Laplacian | jax.Array, train: bool
    ) -> jax.Array:
        def norm(value):
            if self.norm == "none":
                return value
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(value)

        def conv(value):
            return MeshConv(self.features, self.terms, self.norm == "none")(value, operator)

        if self.preact:
            y = conv(nn.relu(norm(x)))
            y = conv(nn.relu(norm(y)))
        else:
            y = norm(conv(nn.relu(norm(conv(x)))))
        if self.residual:
            same = x.shape[-1] == self.features
            y = y + (x if same else nn.Dense(self.features, use_bias=False, name="shortcut")(x))
        return y if self.preact else nn.relu(y)


class MeshNet(nn.Module):
    """One residual block on each level of the hierarchy, pooled between; head over the coarsest.

    Attributes:
      widths: channels of each level's block, the finest first.
      terms: K.
      stem: channels of a single convolution on the finest level, before the blocks, which then
        begin on the next coarser one: the finest level costs most. 0: a block there too.
      hidden: width of a hidden layer of the head; 0 for a linear head.
      classes: logits.
      head: "flatten" (keeps where things are), "regions" (means over an atlas, which has fewer
        weights and keeps where things are) or "pooled" (mean over all vertices).
      pooling: "mean" or "max" over what the pooling matrices average.
      preact: as `ResBlock`, and no ReLU after the stem. With the head "regions" none before its
        means either: then a linear path leads from the features to the regions, whose means take
        the noise of single vertices away before anything is rectified.
      residual, norm: see `ResBlock`.
      dropout: rate before the head's layers.
    """

    widths: Sequence[int] = (16, 32, 32, 64)
    terms: int = 3
    stem: int = 0
    hidden: int = 0
    classes: int = 2
    head: str = "flatten"
    pooling: str = "mean"
    preact: bool = False
    residual: bool = True
    norm: str = "batch"
    dropout: float = 0.0

    @property
    def levels(self) -> int:
        """Levels of the hierarchy that are used."""
        return len(self.widths) + (1 if self.stem else 0)

    def linear_start(self, hierarchy: Hierarchy) -> bool:
        """Whether all that happens on the finest level is linear, so that `prepare` can do it."""
        spirals = isinstance(hierarchy.convolutions[0], jax.Array)
        return bool(self.stem) and self.preact and self.pooling == "mean" and not spirals

    def prepare(self, x: jax.Array, hierarchy: Hierarchy) -> jax.Array:
        """What the stem's weights multiply, brought to the second level.

        Without ReLU between them, pooling and the stem's mixing of channels commute. The terms
        T_k(L) x do not depend on the weights, so they are computed and pooled once for a training,
        and the finest level, the largest, takes no part in its steps.

        Args:
          x: `[batch, vertices, features]`.
          hierarchy: operators.

        Returns:
          `[batch, vertices of the second level, terms * features]`, for `__call__` with `prepared`.

        Raises:
          ValueError: the network does not start linearly, see `linear_start`.
        """
        operator = hierarchy.convolutions[0]
        if isinstance(operator, jax.Array) or not self.linear_start(hierarchy):
            raise ValueError("only a network with a linear start has its first level prepared")
        batch, vertices, features = x.shape
        flat = x.transpose(1, 0, 2).reshape(vertices, -1)
        each = chebyshev.terms(flat, self.terms, operator)
        flat = each.transpose(1, 2, 0).reshape(vertices, -1)
        flat = operators.multiply(hierarchy.pools[0], flat)
        parts = flat.reshape(-1, batch, features, self.terms).transpose(1, 0, 3, 2)
        return parts.reshape(batch, -1, self.terms * features)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        hierarchy: Hierarchy,
        train: bool = False,
        probes: Sequence[jax.Array] | None = None,
        taps: list[jax.Array] | None = None,
        prepared: bool = False,
    ) -> jax.Array:
        """Logits.

        Args:
          x: `[batch, vertices, features]`, or what `prepare` made of it.
          hierarchy: operators; of at least `levels` levels.
          train: batch statistics and dropout (needs the random stream "dropout").
          probes: added to the blocks' outputs `[vertices, batch, channels]`; for gradients.
          taps: a list that receives the blocks' outputs.
          prepared: whether `x` is prepared; there is no finest level then to probe or tap.
        """
        if prepared and not self.linear_start(hierarchy):
            raise ValueError("only a network with a linear start takes prepared features")
        if prepared and not (probes is None and taps is None):
            raise ValueError("probes and taps need features that are not prepared")
        if self.head not in ("flatten", "regions", "pooled") or self.pooling not in ("mean", "max"):
            raise ValueError(f"head {self.head!r}, pooling {self.pooling!r}")
        x = x.transpose(1, 0, 2)
        first = 1 if self.stem else 0
        for level in range(first + len(self.widths)):
            if level > (1 if prepared else 0):
                x = _pooled(x, hierarchy.pools[level - 1], self.pooling)
            operator = hierarchy.convolutions[level]
            if level < first:
                stem = MeshConv(self.stem, self.terms, name="stem")
                x = stem(x, None if prepared else operator)
                x = x if self.preact else nn.relu(x)
            else:
                width = self.widths[level - first]
                settings = (self.preact, self.residual, self.norm)
                block = ResBlock(width, self.terms, *settings, name=f"block{level}")
                x = block(x, operator, train)
            if probes is not None:
                x = x + probes[level]
            if taps is not None:
                taps.append(x)
        if self.preact and self.head != "regions":
            x = nn.relu(x)
        batch = x.shape[1]
        if self.head == "regions":
            if not hierarchy.regions:
                raise ValueError("head 'regions' needs a hierarchy with an atlas")
            x = _pooled(x, hierarchy.regions[self.levels - 1], "mean")
        x = x.mean(axis=0) if self.head == "pooled" else x.transpose(1, 0, 2).reshape(batch, -1)
        if self.dropout:
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        if self.hidden:
            x = nn.relu(nn.Dense(self.hidden, name="hidden")(x))
            if self.dropout:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes, name="logits")(x)


class Perceptron(nn.Module):
    """Hidden layers on all features of all vertices (or parcels); ignores the hierarchy."""

    hidden: Sequence[int] = (64,)
    classes: int = 2
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, hierarchy: Hierarchy, train: bool = False) -> jax.Array:
        del hierarchy
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
            if self.dropout:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes, name="logits")(x)


def count_parameters(params: Any) -> int:
    """Number of trained values."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _pooled(x: jax.Array, pool: operators.Operator, kind: str) -> jax.Array:
    """`[vertices, batch, channels]` on the next coarser level."""
    function = operators.multiply if kind == "mean" else operators.maximum
    return function(pool, x.reshape(x.shape[0], -1)).reshape(-1, *x.shape[1:])
