"""The stages up to trained networks: recording, volume, training of the model and the baseline."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from common import checkpoint, distributed, loop, pipeline, rng, sharding, storage
from common.config import ConfigError
from common.nets import lpips
from common.writer import Writer
from keypoints import data, pretrained, train, volume
from keypoints.cameras import Cameras
from keypoints.models import KeypointNet, ModelConfig, init

RECORDING = "recording.safetensors"


def model_config(config: ConfigDict, lifting: str = "volume") -> ModelConfig:
    """The sizes from `config.model`."""
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list | tuple) else v for k, v in config.model.items()
    }
    return ModelConfig(**{**values, "lifting": lifting})


def recipe(config: ConfigDict) -> train.Recipe:
    """The training from `config.train`."""
    names = {field.name for field in dataclasses.fields(train.Recipe)}
    return train.Recipe(**{name: value for name, value in config.train.items() if name in names})


def record(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: renders or reads the recording and writes it with its motion masks."""
    del inputs
    if config.data.source not in data.SOURCES:
        raise ConfigError(
            f"config.data.source: {config.data.source!r}; known: {', '.join(data.SOURCES)}"
        )
    found = data.SOURCES[config.data.source](config.data, config.seed)
    found.save(out / RECORDING)
    # one background for all sequences: an animal that rests is none
    masks = volume.motion_masks(found.images, config.data.motion)
    storage.save_arrays(out / "masks.safetensors", {"masks": masks})
    frames, views, height, width, _ = found.images.shape
    print(
        f"{config.data.source}: {frames} frames x {views} views of {width} x {height} pixels,"
        f" {len(np.unique(found.subject))} subjects, {masks.mean():.1%} of the pixels move"
    )


def load_masks(folder: Path) -> np.ndarray:
    """Motion masks of all frames, bool `[frames, views, height, width]`."""
    return storage.load_arrays(folder / "masks.safetensors")[0]["masks"]


def find_volume(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: the volume, found from the rig and what moves, or set by `config.volume`."""
    recording = data.Recording.load(inputs["record"] / RECORDING)
    rig = recording.calibration.cameras
    if config.side:
        found = volume.by_hand(rig, config.centre, config.side, config.axes)
    else:
        masks = load_masks(inputs["record"])
        sample = masks[:: max(1, len(masks) // 256)]
        found = volume.from_motion(rig, sample, config.axes, config.margin)
    arrays = {"centre": found.centre, "rotation": found.rotation, "side": np.asarray(found.side)}
    storage.save_arrays(out / "volume.safetensors", arrays)
    storage.save_json(out / "volume.json", {k: v.tolist() for k, v in arrays.items()})
    centre = ", ".join(f"{value:.4g}" for value in found.centre)
    print(f"volume: side {found.side:.4g} {recording.unit}, centre ({centre})")


def load_volume(folder: Path) -> volume.Volume:
    """Reads what `find_volume` wrote."""
    arrays, _ = storage.load_arrays(folder / "volume.safetensors")
    return volume.Volume(arrays["centre"], float(arrays["side"]), arrays["rotation"])


def load_rig(inputs: dict[str, Path]) -> tuple[data.Recording, volume.Volume, Cameras]:
    """(recording, volume, cameras in the volume's world)."""
    recording = data.Recording.load(inputs["record"] / RECORDING)
    cube = load_volume(inputs["volume"])
    return recording, cube, data.on_device(cube.cameras(recording.calibration.cameras))


def fit(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: trains the network with `config.lifting`; resumes from its checkpoints."""
    recording, _, cameras = load_rig(inputs)
    split = data.split(recording, config.split.test_subjects, config.split.later)
    gap = max(1, round(config.split.gap_seconds * recording.rate))
    own = recipe(config)
    masks = load_masks(inputs["record"]) if own.silhouette or own.coverage else None
    pairs = data.Pairs(recording, split.train, gap, masks)
    model = KeypointNet(model_config(config, config.lifting))
    model.config.check_images(*recording.images.shape[2:4])
    features = None
    if own.perceptual:
        weights = lpips.load_params("vgg")["features"]

        def features(x: jax.Array) -> list[jax.Array]:
            maps: Any = lpips.Vgg16().apply({"params": weights}, x)
            return maps

    key = rng.stream(jax.random.key(config.seed), "init")
    params = init(model, key, recording.images.shape[2:4], cameras)
    if config.train.encoder_weights:
        params = {**params, "encoder": pretrained.load(config.train.encoder_weights, model.config)}
    elif model.config.backbone == "resnet":
        print("config.train.encoder_weights is empty: the ResNet starts from random weights")
    state = train.init_state(params, own)
    writer = Writer(out)
    checkpointer = checkpoint.Checkpointer(out / "checkpoints", keep=1)
    state = loop.fit(
        state,
        train.make_train_step(model, own, cameras, features),
        pipeline.train_iterator(
            pairs, own.batch_size, seed=config.seed, transform=data.swap_at_random
        ),
        num_steps=own.num_steps,
        key=jax.random.key(config.seed),
        mesh=sharding.make_mesh(config.mesh.data, config.mesh.fsdp),
        writer=writer,
        checkpointer=checkpointer,
        log_every=config.train.log_every,
        checkpoint_every=config.train.checkpoint_every,
        name=config.lifting,
    )
    checkpointer.close()
    writer.close()
    if distributed.is_main():
        save_model(out / "model.safetensors", model, jax.tree.map(np.asarray, state.params))


def save_model(path: Path, model: KeypointNet, params: dict) -> None:
    """Parameters with the sizes of the network in the header."""
    storage.save_tree(path, params, {"config": dataclasses.asdict(model.config)})


def load_model(path: Path) -> tuple[KeypointNet, dict[str, Any]]:
    """Reads what `save_model` wrote."""
    _, header = storage.load_arrays(path)
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in header["config"].items()
    }
    return KeypointNet(ModelConfig(**values)), storage.load_tree(path)
