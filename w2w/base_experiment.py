"""The stages that make the base model: data, training, export with scores."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from common import checkpoint, image_grids, loop, pipeline, rng, sharding, storage
from common.stages import Pipeline
from common.writer import Writer
from w2w import base, losses, models


def run(config, workdir: Path) -> None:
    """Runs the stages of ``configs/face_base.py`` in ``workdir``."""
    folder = stages_of(Pipeline(workdir), config)
    print(f"weights: {folder / 'face_base.safetensors'}; samples: {folder / 'samples.png'}")


def stages_of(stages: Pipeline, config) -> Path:
    """Runs the stages ``base_data`` and ``train``; returns the folder of the weights."""
    shared = {"model": config.model, "seed": config.seed}
    stages.stage("base_data", base.prepare, ConfigDict({**shared, **config.data}))
    train = ConfigDict(
        {**shared, **config.train, "mesh": config.mesh, "sample": config.sample}
    )
    return stages.stage("train", train_base, train, needs=("base_data",))


def recipe(config) -> base.BaseRecipe:
    schedule = losses.NoiseSchedule(config["time_mean"], config["time_std"])
    fields = ("num_steps", "batch_size", "learning_rate", "warmup", "weight_decay", "ema_decay")
    return base.BaseRecipe(**{name: config[name] for name in fields}, schedule=schedule)


def train_base(config, inputs: dict[str, Path], out: Path) -> None:
    """Stage: trains the model and exports its moving average."""
    model = base.face_model(config["model"])
    settings = recipe(config)
    bank, _ = storage.load_arrays(inputs["base_data"] / "bank.safetensors")
    mesh = sharding.make_mesh(config["mesh"]["data"], config["mesh"]["fsdp"])
    key = jax.random.key(config["seed"])
    state = base.init_state(rng.stream(key, "init"), model, settings)
    writer = Writer(out)
    checkpointer = checkpoint.Checkpointer(out / "checkpoints")
    state = loop.fit(
        state,
        base.make_train_step(model, settings),
        pipeline.train_iterator(bank, settings.batch_size, seed=config["seed"]),
        num_steps=settings.num_steps,
        key=key,
        mesh=mesh,
        writer=writer,
        checkpointer=checkpointer,
        log_every=config["log_every"],
        checkpoint_every=config["checkpoint_every"],
        name="base",
    )
    checkpointer.close()
    writer.close()
    card = {"steps": settings.num_steps, "batch_size": settings.batch_size}
    models.save(out / "face_base.safetensors", model, state.eval_params, card)
    count = config["sample"]["count"]
    prompts = ["person"] * count
    images = base.draw(
        model, state.eval_params, prompts, rng.stream(key, "samples"), config["sample"]
    )
    image_grids.contact_sheet(images, 8, out / "samples.png", title="person")
