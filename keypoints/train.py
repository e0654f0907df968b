"""Training: state with the running bone lengths, the pure step, curricula in steps."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from common import rng
from common.train_state import TrainState
from keypoints import cameras as cameras_lib
from keypoints import edges, heatmaps, losses
from keypoints.cameras import Cameras
from keypoints.models import HEAT_STRIDE, KeypointNet


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Weights, curricula (in steps) and optimiser.

    The defaults are the published objective. From random weights it does not find the pose;
    `configs/keypoints.py` has what does.

    Attributes:
        num_steps, learning_rate, warmup: Adam with linear warm-up and cosine decay to 2 %.
        skeleton_rate: learning rate of the edges' weights, as a multiple.
        clip: bound of the gradient's norm.
        separation, separation_sigma: weight, and width in half sides.
        length, length_start, length_ramp: weight and curriculum of the length loss.
        length_momentum: of the running mean lengths.
        rotation, rotation_start, rotation_ramp: weight and curriculum of the equivariance loss; 0
            leaves it out, with its cost.
        silhouette: weight of the heat maps' mass on what moves; the batch then has masks.
        coverage: weight of what moves being covered by the heat maps; needs masks, too.
        overlap: weight of the heat maps' similarity; 0 leaves it out.
        turn: whether each step turns the world about the vertical axis by a random angle.
        perceptual: weight of the perceptual reconstruction; 0 leaves it out.
        view_dropout: probability that a view is hidden from the lifting (two always stay).
        window, smooth: sigmas of the change's window and blur, pixels.
        batch_size: pairs in a step.
    """

    num_steps: int
    batch_size: int = 4
    learning_rate: float = 2e-3
    warmup: int = 50
    skeleton_rate: float = 5.0
    clip: float = 10.0
    separation: float = 1.0
    separation_sigma: float = 0.08
    length: float = 0.5
    length_start: int = 300
    length_ramp: int = 100
    length_momentum: float = 0.95
    rotation: float = 0.0
    rotation_start: int = 300
    rotation_ramp: int = 100
    silhouette: float = 0.0
    coverage: float = 0.0
    overlap: float = 0.0
    turn: bool = False
    perceptual: float = 0.0
    view_dropout: float = 0.1
    window: float = 1.5
    smooth: float = 1.0


class KeypointState(struct.PyTreeNode):
    """State of a training.

    Attributes:
        inner: parameters and optimiser.
        lengths: running mean length of each edge in half sides, `[edges]`.
    """

    inner: TrainState
    lengths: jax.Array

    @property
    def params(self) -> Any:
        return self.inner.params


def init_state(params: dict, recipe: Recipe) -> KeypointState:
    """State before the first step."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, recipe.warmup, max(recipe.num_steps, recipe.warmup + 1),
        0.02 * recipe.learning_rate,
    )  # fmt: skip

    def faster(step: jax.Array) -> jax.Array:
        return recipe.skeleton_rate * schedule(step)

    def labels(tree: dict) -> dict:
        return {name: "skeleton" if name == "skeleton" else "rest" for name in tree}

    optimiser = optax.chain(
        optax.clip_by_global_norm(recipe.clip),
        optax.multi_transform(
            {"rest": optax.adam(schedule, b2=0.99), "skeleton": optax.adam(faster, b2=0.99)}, labels
        ),
    )
    count = params["skeleton"].shape[0]
    return KeypointState(TrainState.create(params, optimiser), jnp.zeros(count))


def hide_views(key: jax.Array, present: jax.Array, probability: float) -> jax.Array:
    """Hides views at random; two recorded views of each pair always stay.

    Args:
        key: random key.
        present: `[pairs, views]`.
        probability: that a view is hidden.
    """
    draw = jax.random.uniform(key, present.shape)
    order = jnp.where(present > 0, draw, -1.0)
    second = jnp.sort(order, axis=1)[:, -2:-1]
    keep = (draw >= probability) | (order >= second)
    return present * keep.astype(present.dtype)


def targets(first: jax.Array, second: jax.Array, stride: int, recipe: Recipe) -> jax.Array:
    """Change between `[pairs, views, h, w, 3]` images at the decoder's stride."""
    pairs, views, height, width, _ = first.shape
    flat = [x.reshape(-1, height, width, 3) for x in (first, second)]
    found = losses.change(flat[0], flat[1], recipe.window, recipe.smooth)
    found = losses.average_pool(found, stride)
    return found.reshape(pairs, views, *found.shape[1:])


def yaw(angle: jax.Array) -> jax.Array:
    """Rotation about z, `[3, 3]`."""
    c, s, zero = jnp.cos(angle), jnp.sin(angle), jnp.zeros(())
    return jnp.stack([c, -s, zero, s, c, zero, zero, zero, jnp.ones(())]).reshape(3, 3)


def make_train_step(
    model: KeypointNet,
    recipe: Recipe,
    cameras: Cameras,
    features: Callable[[jax.Array], list[jax.Array]] | None = None,
) -> Callable:
    """Returns the pure step `(state, batch, key) -> (state, metrics)`.

    Args:
        model: the network.
        recipe: see `Recipe`.
        cameras: `[views]`, world = volume.
        features: of the perceptual loss, needed where its weight is not 0.

    The batch has `first` and `second` uint8 `[pairs, views, h, w, 3]`, for the silhouette and the
    coverage also `first_mask` and `second_mask` bool `[pairs, views, h, w]`, and may have `present`
    `[pairs, views]` (1 where a view was recorded; all by default).
    """
    if recipe.perceptual and features is None:
        raise ValueError("the perceptual loss has a weight but no network")
    stride = model.config.change_stride

    def train_step(
        state: KeypointState, batch: dict, key: jax.Array
    ) -> tuple[KeypointState, dict]:
        first = batch["first"].astype(jnp.float32) / 255.0
        second = batch["second"].astype(jnp.float32) / 255.0
        present = batch.get("present", jnp.ones(first.shape[:2]))
        target = targets(first, second, stride, recipe)
        shown = hide_views(rng.stream(key, "views"), present, recipe.view_dropout)
        step = state.inner.step
        started = step > 0
        rig = cameras
        if recipe.turn:
            angle = jax.random.uniform(rng.stream(key, "turn"), (), maxval=2 * jnp.pi)
            rig = cameras_lib.transform(cameras, yaw(angle), jnp.zeros(3))
        matrix, moved = jnp.eye(3), None
        if recipe.rotation:
            # a small angle would say little of what does not turn
            angle = jax.random.uniform(
                rng.stream(key, "yaw"), (), minval=0.25 * jnp.pi, maxval=1.75 * jnp.pi
            )
            matrix = yaw(angle)
            moved = cameras_lib.transform(rig, matrix, jnp.zeros(3))

        def loss_fn(params: dict) -> tuple[jax.Array, tuple]:
            found: Any = model.apply({"params": params}, first, second, rig, shown, moved)
            points = jnp.concatenate([found.first.points, found.second.points])
            now = edges.lengths(jax.lax.stop_gradient(points)).mean(axis=0)
            running = jnp.where(started, state.lengths, now)
            length, now = losses.length_consistency(points, running, params["skeleton"])
            terms = {
                "reconstruction": losses.reconstruction(found.change, target, present),
                "separation": losses.separation(points, recipe.separation_sigma),
                "length": length,
            }
            weights: dict[str, Any] = {
                "reconstruction": 1.0,
                "separation": recipe.separation,
                "length": recipe.length
                * losses.ramp(step, recipe.length_start, recipe.length_ramp),
            }
            if recipe.silhouette or recipe.coverage:
                masks = jnp.concatenate([batch["first_mask"], batch["second_mask"]])
                twice = jnp.concatenate([present, present])
                if model.config.lifting == "volume":
                    inside = heatmaps.soft_hull(masks, rig, model.config.voxels, twice)
                else:
                    side = (first.shape[2] // HEAT_STRIDE, first.shape[3] // HEAT_STRIDE)
                    inside = heatmaps.soft_masks(masks, side) * twice[..., None]
                terms["silhouette"] = heatmaps.silhouette(found.heat, inside)
                weights["silhouette"] = recipe.silhouette
                terms["coverage"] = heatmaps.coverage(found.heat, inside)
                weights["coverage"] = recipe.coverage
            if recipe.overlap:
                terms["overlap"] = heatmaps.overlap(found.heat)
                weights["overlap"] = recipe.overlap
            if recipe.perceptual and features is not None:
                flat = [x.reshape(-1, *x.shape[2:]) for x in (found.change, target)]
                terms["perceptual"] = losses.perceptual(flat[0], flat[1], features)
                weights["perceptual"] = recipe.perceptual
            if recipe.rotation:
                terms["rotation"] = losses.rotation(
                    found.first.points, found.turned.points, matrix
                )
                weights["rotation"] = recipe.rotation * losses.ramp(
                    step, recipe.rotation_start, recipe.rotation_ramp
                )
            momentum = recipe.length_momentum
            lengths = momentum * running + (1.0 - momentum) * now
            return losses.weighted(terms, weights), (terms, lengths)

        (loss, (terms, lengths)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        metrics = {"loss": loss, **terms, "grad_norm": optax.tree.norm(grads)}
        return KeypointState(state.inner.apply_gradients(grads), lengths), metrics

    return train_step
