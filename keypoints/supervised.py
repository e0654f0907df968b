"""The same lifting network trained on true joints, for comparison: what labels are worth.

No decoder, no skeleton: the loss is the mean distance to the joints (Iskakov et al., "Learnable
Triangulation of Human Pose", ICCV 2019, train their volumetric model so, with a further term).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from common import distributed, loop, pipeline, rng, sharding
from common.config import ConfigError
from common.train_state import TrainState
from common.writer import Writer
from keypoints import build, data, models
from keypoints.cameras import Cameras
from keypoints.models import KeypointNet


def init_state(params: dict, num_steps: int, learning_rate: float, warmup: int) -> TrainState:
    """Parameters and Adam with linear warm-up and cosine decay to 2 %."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup, max(num_steps, warmup + 1), 0.02 * learning_rate)
    optimiser = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule, b2=0.99))
    return TrainState.create(params, optimiser)


def make_train_step(model: KeypointNet, cameras: Cameras) -> Callable:
    """Returns the pure step `(state, batch, key) -> (state, metrics)`.

    Args:
        model: the network, with as many keypoints as there are joints.
        cameras: `[views]`, world = volume.

    The batch has `images` uint8 `[frames, views, h, w, 3]` and `joints` `[frames, joints, 3]` in
    the volume's coordinates. The loss, their mean distance, is in half sides of the volume.
    """

    def train_step(state: TrainState, batch: dict, key: jax.Array) -> tuple[TrainState, dict]:
        del key
        images = batch["images"].astype(jnp.float32) / 255.0
        shown = jnp.ones(images.shape[:2])

        def loss_fn(params: dict) -> jax.Array:
            found: Any = model.apply(
                {"params": params}, images, cameras, shown, method=KeypointNet.keypoints)
            squared = jnp.sum(jnp.square(found.points - batch["joints"]), axis=-1)
            return jnp.mean(jnp.sqrt(squared + 1e-8))  # the root has no gradient at 0

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads), {"loss": loss, "grad_norm": optax.tree.norm(grads)}

    return train_step


def fit(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: trains on the joints of the training frames."""
    recording, cube, cameras = build.load_rig(inputs)
    if recording.joints is None:
        raise ConfigError("config.supervised.num_steps: this recording has no true joints; use 0")
    split = data.labelled(
        recording, data.split(recording, config.split.test_subjects, config.split.later)
    )
    sizes = build.model_config(config, "volume")
    model = KeypointNet(dataclasses.replace(sizes, keypoints=recording.joints.shape[1]))
    model.config.check_images(*recording.images.shape[2:4])
    key = rng.stream(jax.random.key(config.seed), "supervised-init")
    params = models.init(model, key, recording.images.shape[2:4], cameras)
    joints = cube.from_world(recording.joints[split.train]).astype(np.float32)
    c = config.supervised
    writer = Writer(out)
    state = loop.fit(
        init_state(params, c.num_steps, c.learning_rate, c.warmup),
        make_train_step(model, cameras),
        pipeline.train_iterator(
            {"images": recording.images[split.train], "joints": joints}, c.batch_size,
            seed=config.seed),
        num_steps=c.num_steps,
        key=jax.random.key(config.seed),
        mesh=sharding.make_mesh(config.mesh.data, config.mesh.fsdp),
        writer=writer,
        log_every=c.log_every,
        name="supervised",
    )
    writer.close()
    if distributed.is_main():
        build.save_model(out / "model.safetensors", model, jax.tree.map(np.asarray, state.params))
