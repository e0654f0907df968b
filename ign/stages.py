"""The stages up to the trained networks: images, judge, baselines, training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from common import checkpoint, distributed, loop, rng, sharding, storage
from common.writer import Writer
from ign import (
    baseline,
    classifier,
    data,
    losses,
    models,
    noise,
    population,
    principal,
    probe,
    project,
    settings,
)
from ign.train import IgnState, Recipe, init_state, make_train_step


def prepare(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: the images with their split, and the statistics of the noise."""
    del inputs
    found = data.load(
        config.data.source, config.data.size, config.data.channels, config.data.limit
    )
    arrays = {name: value for name, value in found._asdict().items() if value is not None}
    names = arrays.pop("class_names")
    storage.save_arrays(out / settings.IMAGES, arrays, {"classes": list(names)})
    form = config.noise
    spectrum = None
    if form != "normal":
        spectrum = noise.fit_spectrum(settings.signed(found.train), form)
    storage.save_arrays(out / "noise.safetensors", noise.to_arrays(spectrum), {"form": form})
    print(f"{config.data.source}: {len(found.train)} training and {len(found.test)} test images")


def train_judge(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: the classifier of a labelled set; without labels nothing is trained."""
    images = settings.load_images(inputs["data"])
    if images.train_labels is None:
        storage.save_json(out / "judge.json", {"name": "alex", "accuracy": None})
        return
    classes = len(images.class_names)
    steps = config.judge.num_steps
    state = classifier.init_state(
        classifier.init_key(config.seed), images.train.shape[1:], classes, steps
    )
    source = {"image": images.train, "label": images.train_labels}
    settings_ = ConfigDict({**config.judge, "seed": config.seed, "mesh": config.mesh})
    batches = population.batches(source, config.judge.batch_size, [config.seed])
    state = fit(settings_, state, classifier.make_train_step(classes), batches, "judge", out)
    params = on_host(state.params)
    judged = classifier.judge(params, images.test)
    accuracy = float(np.mean(judged.labels == images.test_labels))
    if distributed.is_main():
        storage.save_tree(out / "classifier.safetensors", params)
        storage.save_json(out / "judge.json", {"name": "cnn", "accuracy": accuracy})
        print(f"judge: accuracy {accuracy:.4f} on {len(images.test)} test images", flush=True)


def train_baselines(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: plain and denoising autoencoder of the network's size."""
    images = settings.load_images(inputs["data"])
    net = baseline.network(settings.net_config(config, len(images.class_names)))
    c = config.baseline
    key = rng.stream(jax.random.key(config.seed), "baseline-init")
    step = baseline.make_train_step(net, c.augment)
    components = settings.components(config, images.train, c.augment)
    for name, deviation in zip(baseline.NAMES, (0.0, c.noise), strict=True):
        state = baseline.init_state(
            key, net, c.learning_rate, c.num_steps, deviation, components
        )
        batches = population.batches({"image": images.train}, c.batch_size, [config.seed])
        own = ConfigDict({**c, "seed": config.seed, "mesh": config.mesh})
        state = fit(own, state, step, batches, name, out / name.replace(" ", "_"))
        model = project.Model({"params": on_host(state.params)}, None, net)
        if distributed.is_main():
            project.save(out / f"{name.replace(' ', '_')}.safetensors", model)


def train(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: all members at once, with the collapse probe; one model file for each."""
    images = settings.load_images(inputs["data"])
    spectrum = settings.load_spectrum(inputs["data"])
    net = settings.net_config(config, len(images.class_names))
    recipe, objective = settings.recipe(config), settings.objective(config)
    everybody = settings.members(config)
    count = len(everybody)
    components = settings.components(config, images.train, config.train.augment)
    states = init_members(
        config, net, recipe, spectrum, everybody, objective.use_matching, components
    )
    step = make_train_step(models.build(net), objective, recipe, net.independent)
    watch = make_probe(config, inputs, net, spectrum)
    log = Writer(out, "probe")
    verdicts = [""] * count

    def measure(states: IgnState, done: int) -> None:
        states = gathered(states)
        record: dict[str, float] = {}
        for index, member in enumerate(everybody):
            numbers = watch.measure(member_model(states, index, net))
            found = probe.verdict(numbers)
            if found != verdicts[index] and distributed.is_main():
                what = f"collapse, {found}" if found else "no collapse any more"
                print(f"step {done}, {member.name}: {what} ({_short(numbers)})", flush=True)
            verdicts[index] = found
            record |= {f"{index}/{name}": value for name, value in numbers.items()}
        log.scalars(done, record)

    c = config.train
    source = {"image": images.train}
    if net.classes and images.train_labels is not None:
        source["label"] = images.train_labels
    states = fit(
        ConfigDict({**c, "seed": config.seed, "mesh": config.mesh}),
        states,
        population.make_step(step, count, c.mode),
        population.batches(source, c.batch_size, [m.seed for m in everybody]),
        "train",
        out,
        population.rules(count),
        hooks=[(config.probe.every, measure)] if config.probe.every else [],
    )
    states = gathered(states)
    measure(states, c.num_steps)
    log.close()
    if distributed.is_main():
        for index, member in enumerate(everybody):
            model = member_model(states, index, net)
            project.save(out / f"member{index}.safetensors", model, {"member": member.name})
        names = [member.name for member in everybody]
        history = probe.history(log.path)
        found = {"members": names, "final": verdicts, "history": history}
        storage.save_json(out / "probe.json", found)


def init_members(
    config: ConfigDict,
    net: models.NetConfig,
    recipe: Recipe,
    spectrum: noise.Spectrum | None,
    everybody: list[population.Member],
    matched: bool,
    components: principal.Components | None = None,
) -> IgnState:
    """The states of all members along a leading axis; equal seeds start from equal parameters.

    With `matched` each has a bank. `components` are for a network with `principal`.
    """
    keys = jnp.stack([jax.random.key(member.seed) for member in everybody])
    weights = population.stack_weights(settings.weights(config), everybody)

    def one(key: jax.Array, own: losses.Weights) -> IgnState:
        key = rng.stream(key, "init")
        variables = models.init(models.build(net), key, net.shape, net.classes)
        if components is not None:
            variables["params"] = principal.start(variables["params"], components)
        banks = recipe.empty_banks(net.shape, net.classes > 0) if matched else ()
        return init_state(variables, recipe, own, spectrum, *banks)

    return jax.jit(jax.vmap(one))(keys, weights)


def member_model(states: IgnState, index: int, net: models.NetConfig) -> project.Model:
    """One member of a population as a model, with averaged parameters where they are kept."""
    states = states.replace(train=states.train.replace(opt_state=()), bank=None, memory=None)
    state = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf[index])), states)
    return project.Model(state.variables(), state.spectrum, net)


def make_probe(
    config: ConfigDict,
    inputs: dict[str, Path],
    net: models.NetConfig,
    spectrum: noise.Spectrum | None,
) -> probe.Probe:
    """The probe of `config.probe.count` noises beside as many test images."""
    images = settings.load_images(inputs["data"])
    count = min(config.probe.count, len(images.test))
    z = noise.sample(spectrum, rng.stream(jax.random.key(config.seed), "probe"),
                     (count, *net.shape))
    labels = None if images.test_labels is None else images.test_labels[:count]
    return probe.Probe(
        np.asarray(z),
        settings.drawn_labels(labels, net.classes, count),
        settings.signed(images.test[:count]),
        labels,
        settings.load_judge(inputs["judge"]),
    )


def fit(
    config: ConfigDict,
    state: Any,
    step: Callable,
    batches: Callable,
    name: str,
    out: Path,
    rules: sharding.Rules | None = None,
    hooks: Any = (),
) -> Any:
    """Trains with checkpoints, logs and sharding from `config`; resumes what is in `out`."""
    writer = Writer(out)
    checkpointer = checkpoint.Checkpointer(out / "checkpoints", keep=1)
    state = loop.fit(
        state,
        step,
        batches,
        num_steps=config.num_steps,
        key=jax.random.key(config.seed),
        mesh=sharding.make_mesh(config.mesh.data, config.mesh.fsdp),
        rules=rules,
        writer=writer,
        checkpointer=checkpointer,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        hooks=hooks,
        name=name,
    )
    checkpointer.close()
    writer.close()
    return state


def gathered(tree: Any) -> Any:
    """A tree whose arrays every process holds whole."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.process_allgather(tree, tiled=True)


def on_host(tree: Any) -> Any:
    """Arrays of this process alone, whatever the mesh they came from."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)


def _short(numbers: dict[str, float]) -> str:
    keys = ("spread", "duplicates", "coverage", "entropy")
    return ", ".join(f"{key} {numbers[key]:.3g}" for key in keys if key in numbers)
