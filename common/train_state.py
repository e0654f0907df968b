"""TrainState: step, parameters, optimiser state and their exponential moving average, as a pytree.

Every leaf may carry a leading population axis: `jax.vmap` over `create` and `apply_gradients`
trains many models in one program.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

PyTree = Any


class TrainState(struct.PyTreeNode):
    """State of one training run, or of a population of runs along a leading axis.

    Attributes:
        step: int32 `[]` (or `[population]`), number of updates applied.
        params: parameters, a nested dict of arrays.
        opt_state: state of `tx`.
        ema: exponential moving average of `params`, or None.
        tx: the optimiser; static, not saved in checkpoints.
        ema_decay: final decay of the moving average, or None; static.
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree
    ema: PyTree
    tx: optax.GradientTransformation = struct.field(pytree_node=False)
    ema_decay: float | None = struct.field(pytree_node=False, default=None)

    @classmethod
    def create(
        cls, params: PyTree, tx: optax.GradientTransformation, ema_decay: float | None = None
    ) -> "TrainState":
        """Returns the state before the first update.

        Args:
            params: initial parameters; copied.
            tx: an optax gradient transformation.
            ema_decay: final decay of the moving average in (0, 1); None keeps no average.

        Raises:
            ValueError: `ema_decay` is outside (0, 1).
        """
        if ema_decay is not None and not 0.0 < ema_decay < 1.0:
            raise ValueError(f"ema_decay must be in (0, 1) or None, got {ema_decay}")
        # Training donates the state. Its parameters are a copy, so that the caller's stay usable;
        # the average is another, because a buffer that occurs twice cannot be donated.
        params = jax.tree.map(jnp.copy, params)
        ema = None if ema_decay is None else jax.tree.map(jnp.copy, params)
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=tx.init(params),
            ema=ema,
            tx=tx,
            ema_decay=ema_decay,
        )

    def apply_gradients(self, grads: PyTree) -> "TrainState":
        """Returns the state after one optimiser update with `grads` (same structure as params).

        The moving average uses the warm-up min(decay, (1 + n) / (10 + n)) after n earlier updates
        (the schedule of TensorFlow's ExponentialMovingAverage with `num_updates`).
        """
        updates, opt_state = self.tx.update(grads, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        ema = self.ema
        if self.ema_decay is not None:
            count = self.step.astype(jnp.float32)
            decay = jnp.minimum(jnp.float32(self.ema_decay), (1.0 + count) / (10.0 + count))
            ema = jax.tree.map(
                lambda average, new: average + (1.0 - decay).astype(new.dtype) * (new - average),
                self.ema,
                params,
            )
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state, ema=ema)

    @property
    def eval_params(self) -> PyTree:
        """The moving average where one is kept, else the parameters."""
        return self.params if self.ema is None else self.ema
