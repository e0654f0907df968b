"""The stages that make the base model: frames, autoencoder, latents, diffusion model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from common import checkpoint, distributed, image_grids, loop, pipeline, rng, sharding, storage
from common.config import ConfigError
from common.nets import lpips
from common.stages import Pipeline
from common.train_state import TrainState
from common.writer import Writer
from w2w import autoencode, base, data, evaluate, losses, models


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the stages of ``configs/face_base.py`` in ``workdir``."""
    folder = stages_of(Pipeline(workdir), config)
    if distributed.is_main():
        print(f"weights: {folder / 'face_base.safetensors'}; samples: {folder / 'samples.png'}")


def stages_of(stages: Pipeline, config: ConfigDict) -> Path:
    """Runs the stages of the base model; returns the folder of the weights.

    Raises:
      ConfigError: ``config.start`` names no file, or weights of another architecture.
    """
    shared: dict[str, Any] = {"model": config.model, "seed": config.seed, "mesh": config.mesh}
    shared["start"] = {}
    if config.start:
        path = models.SHIPPED_WEIGHTS if config.start == "shipped" else Path(config.start)
        if not path.is_file():
            raise ConfigError(f"config.start: there is no file {path}")
        shared["start"] = {"path": str(path), "sha256": models.digest(path)}
    frames = {"model": config.model, "seed": config.seed, **config.data}
    stages.stage("frames", base.prepare, ConfigDict(frames), everywhere=False)
    settings = ConfigDict({**shared, **config.autoencoder})
    stages.stage("autoencoder", train_autoencoder, settings, ("frames",))
    settings = ConfigDict({**shared, **config.train, "sample": config.sample})
    return stages.stage("train", train_base, settings, ("frames", "autoencoder"))


def fit(
    config: ConfigDict, state: TrainState, step: Callable, source: dict, name: str, out: Path
) -> TrainState:
    """Trains with checkpoints, logs and sharding from ``config``; resumes what is in ``out``."""
    writer = Writer(out)
    checkpointer = checkpoint.Checkpointer(out / "checkpoints", keep=1)
    state = loop.fit(
        state,
        step,
        pipeline.train_iterator(source, config.batch_size, seed=config.seed),
        num_steps=config.num_steps,
        key=jax.random.key(config.seed),
        mesh=sharding.make_mesh(config.mesh.data, config.mesh.fsdp),
        writer=writer,
        checkpointer=checkpointer,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        name=name,
    )
    checkpointer.close()
    writer.close()
    return state


def train_autoencoder(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: trains the autoencoder; encodes the frames; scores it on people it has not seen.

    With ``config.start`` the autoencoder of those weights is taken as it is."""
    model = base.face_model(config.model)
    fields = ("num_steps", "batch_size", "learning_rate", "perceptual_weight", "kl_weight")
    recipe = autoencode.AutoencoderRecipe(**{name: config[name] for name in fields})
    bank, _ = storage.load_arrays(inputs["frames"] / "bank.safetensors")
    if config.start:
        started = load_start(config, model)
        params = {name: started[name] for name in ("autoencoder", "latent")}
    else:
        params = fit_autoencoder(config, model, recipe, bank["image"], out)
    if not distributed.is_main():
        return
    latents = autoencode.encode_all(model, params, bank["image"])
    storage.save_arrays(out / "latents.safetensors", {"latents": latents})
    storage.save_tree(out / "autoencoder.safetensors", params)

    photographs = data.Photographs(config.model.image_size, celeba=0).faces()
    unseen = photographs.select(~data.training_identities(photographs.identity)).images
    decoded = jax.jit(model.to_images)(params, autoencode.encode_all(model, params, unseen))
    images = (np.asarray(decoded) + 1) / 2
    truth = unseen[..., None].astype(np.float32) / 255
    scores = evaluate.reconstruction(images, truth)
    storage.save_json(out / "scores.json", scores)
    print(f"autoencoder on {len(unseen)} photographs of unseen people: {scores}", flush=True)
    pairs = np.concatenate([truth[:80:10], images[:80:10]])
    image_grids.contact_sheet(pairs, 8, out / "reconstructions.png")


def fit_autoencoder(
    config: ConfigDict, model: models.FaceModel, recipe: autoencode.AutoencoderRecipe,
    images: np.ndarray, out: Path,
) -> dict:
    """Trains on uint8 images ``[n, size, size]``; returns parameters of standardised latents."""
    state = autoencode.init_state(
        rng.stream(jax.random.key(config.seed), "autoencoder-init"), model, recipe
    )
    step = autoencode.make_train_step(model, recipe, lpips.load_params("alex"))
    state = fit(config, state, step, {"image": images}, "autoencoder", out)
    trained = {"autoencoder": _on_host(state.eval_params)}
    return autoencode.standardised(model, trained, images[::8])


def load_start(config: ConfigDict, model: models.FaceModel) -> dict:
    """Parameters of the weights to start from.

    Raises:
      ConfigError: they are of another architecture than ``config.model`` says.
    """
    found, params, _ = models.load(Path(config.start.path))
    if found != model:
        raise ConfigError(f"config.start: {config.start.path} is a model of another architecture")
    return params


def _on_host(params: dict) -> dict:
    """Replicated parameters as arrays of this process alone, whatever the mesh they came from."""
    return jax.tree.map(lambda leaf: jax.numpy.asarray(np.asarray(leaf)), params)


def train_base(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: trains the diffusion model on latents and exports its moving average."""
    model = base.face_model(config.model)
    schedule = losses.NoiseSchedule(config.time_mean, config.time_std)
    fields = ("num_steps", "batch_size", "learning_rate", "warmup", "weight_decay", "ema_decay")
    recipe = base.BaseRecipe(**{name: config[name] for name in fields}, schedule=schedule)
    bank, _ = storage.load_arrays(inputs["frames"] / "bank.safetensors")
    latents, _ = storage.load_arrays(inputs["autoencoder"] / "latents.safetensors")
    source = {"latents": latents["latents"], "tokens": bank["tokens"]}
    key = jax.random.key(config.seed)
    params = load_start(config, model) if config.start else None
    state = base.init_state(rng.stream(key, "init"), model, recipe, params)
    state = fit(config, state, base.make_train_step(model, recipe), source, "base", out)
    if not distributed.is_main():
        return
    parts = storage.load_tree(inputs["autoencoder"] / "autoencoder.safetensors")
    params = {**_on_host(state.eval_params), **parts}
    card = {"steps": recipe.num_steps, "batch_size": recipe.batch_size}
    models.save(out / "face_base.safetensors", model, params, card)
    prompts = ["person"] * config.sample.count
    images = base.draw(model, params, prompts, rng.stream(key, "samples"), config.sample)
    image_grids.contact_sheet(images, 8, out / "samples.png", title="person")
