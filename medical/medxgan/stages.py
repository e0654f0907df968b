"""Stages of a medXGAN run: classifier, generator, inversion with maps."""

import functools
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from common import rng, storage
from common.checkpoint import Checkpointer
from common.loop import fit
from common.writer import Writer
from medical.data import phantom
from medical.explain import latent, localise
from medical.medxgan import (
    classifier,
    codes,
    evaluate,
    losses,
    maps,
    networks,
    noise,
    train,
)

Arrays = dict[str, np.ndarray]


def train_classifier(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: the classifier, then frozen; its accuracy on the test images."""
    (folder,) = inputs.values()
    data = load(folder, "train")
    net = networks.make_classifier(config.net)
    c = config.classifier
    first, key = jnp.asarray(data["images"][:2]), _key(config, "init")
    params, frozen = None, tuple[str, ...]()
    if c.weights:  # a user's; the convolutions keep them
        params = networks.read_classifier(c.weights, net, net.init(key, first)["params"])
        frozen = ("conv",)
    recipe = classifier.Recipe(c.num_steps, c.learning_rate, c.weight_decay, c.shift, frozen)
    state = classifier.init(net, recipe, first, key, params)
    writer = Writer(out)
    state = fit(
        state, classifier.make_train_step(net, recipe), _batches(data, c.batch_size, config.seed),
        num_steps=c.num_steps, key=jax.random.key(config.seed), writer=writer,
        log_every=c.log_every, name="classifier")
    writer.close()
    storage.save_tree(out / "classifier.safetensors", state.variables())
    report = {}
    for part in ("validation", "test"):
        found = load(folder, part)
        logits = classifier.predict(net, state.variables(), found["images"])
        report[f"{part}_accuracy"] = float(np.mean(logits.argmax(-1) == found["labels"]))
        report[f"{part}_margin_deviation"] = float(np.std(logits[:, 1] - logits[:, 0]))
    storage.save_json(out / "classifier.json", report)


def train_generator(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: generator, discriminator and encoder against the frozen classifier."""
    folder, judge = inputs.values()
    data = load(folder, "train")
    nets = networks.make_nets(config.net)
    frozen = _tree(judge / "classifier.safetensors")
    deviation = storage.load_json(judge / "classifier.json")["validation_margin_deviation"]
    chosen = dict(config.objective)
    temperature = chosen.pop("temperature")
    if chosen["class_form"] != "bounded":  # the published forms know no temperature
        temperature = 1.0
    elif not temperature:  # half the spread of the margins: feedback of order 1
        temperature = max(deviation / 2, 0.1)
    objective = losses.Objective(**chosen)
    c = config.gan
    recipe = train.Recipe(c.learning_rate, c.discriminator_rate, c.ema_decay)
    if not objective.encodes:
        nets = train.Nets(nets.generator, nets.discriminator, nets.classifier, None, nets.latent)
    state = train.init(
        nets, recipe, frozen, jnp.asarray(data["images"][:2]), _key(config, "init"), temperature)
    writer = Writer(out)
    with closing(Checkpointer(out / "checkpoints", keep=1)) as checkpointer:
        state = fit(
            state, train.make_train_step(nets, objective),
            _batches(data, c.batch_size, config.seed), num_steps=c.num_steps,
            key=jax.random.key(config.seed), writer=writer, log_every=c.log_every, name="gan",
            checkpointer=checkpointer, checkpoint_every=c.checkpoint_every)
    writer.close()
    tree: dict[str, Any] = {"generator": state.generator_variables()}
    if objective.encodes:
        tree["encoder"] = state.encoder_variables()
    storage.save_tree(out / "generator.safetensors", tree,
                      {"temperature": temperature, "encodes": objective.encodes})


def explain(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: inverts positive test images, draws their maps and measures them.

    Where lesions are known (phantoms) the maps are measured against them; otherwise only deletion,
    insertion and sparsity are, and there is no location prior and no truth.
    """
    folder, judge, gan = inputs.values()
    nets = networks.make_nets(config.net)
    frozen = _tree(judge / "classifier.safetensors")
    made = _tree(gan / "generator.safetensors")
    _, header = storage.load_arrays(gan / "generator.safetensors")
    test, training = load(folder, "test"), load(folder, "train")
    logits = classifier.predict(nets.classifier, frozen, test["images"])
    margins = logits[:, 1] - logits[:, 0]
    known = bool(test["masks"].any())
    positives = np.asarray(test["masks"].any(axis=(1, 2)) if known else test["labels"] == 1)
    # Of a user's images there are as many as there are.
    wanted = config.explain.images
    rows = choose(positives, margins, wanted if known else min(wanted, int(positives.sum())))
    images, masks = test["images"][rows], test["masks"][rows]

    given = (config.invert, nets, frozen, made, header)
    positive = codes.find_codes(*given, images, _key(config, "invert"))
    negative = codes.find_negative(*given, positive, _key(config, "negative"))
    found = maps.explain(
        nets, frozen, made["generator"], images, (positive.z1, positive.z2),
        _key(config, "smooth"), config.explain.points, negative=negative)
    shaken = noise.robustness(config, nets, frozen, made, header, images, positive,
                              (_key(config, "noise"), _key(config, "invert")))
    random = np.random.default_rng(config.seed)
    every = {**found.maps, "random": random.random(masks.shape)}
    if known:
        lesions = training["masks"][training["masks"].any(axis=(1, 2))]
        every |= maps.references(images, test["healthy"][rows], lesions)
    scores = evaluate.localisation(every, masks, images, nets, frozen)
    if known:
        marker = np.broadcast_to(phantom.corner(images.shape[1]), masks.shape)
        for name, values in every.items():
            scores[name]["marker"] = localise.pointing(values, marker, tolerance=1)

    generated = evaluate.disentanglement(
        nets, frozen, made["generator"], _key(config, "disentanglement"), config.explain.samples)
    negatives = test["images"][margins <= 0]
    if len(negatives) < 2 and known:
        negatives = test["healthy"]
    if len(negatives) < 2:
        raise ValueError(f"the classifier calls {len(negatives)} test images negative: it is of no "
                         "use, and neither are explanations of it")
    checks = evaluate.guards(generated, negatives, images, found.positive, found.margins)
    kept = {}
    if known:
        kept = evaluate.preservation(found.positive, found.negative, test["healthy"][rows], masks)
    path = interpolation(nets, frozen, made["generator"], negative, (positive.z1, positive.z2), 11,
                         config.explain.shown)
    sick = train.sample_codes(
        _key(config, "samples"), jnp.ones(config.explain.shown, jnp.int32), nets.latent)
    arrays = {
        "images": images, "masks": masks,
        "positive": found.positive, "negative": found.negative, "margins": found.margins,
        "real_negative": negatives[: config.explain.shown],
        "sample_negative": _draw(nets, made, sick[0], jnp.zeros_like(sick[1])),
        "sample_positive": _draw(nets, made, *sick),
        "path_images": path[0], "path_scores": path[1], "patients": test["patients"][rows],
        **{f"map.{name}": values.astype(np.float32) for name, values in every.items()},
        **{f"score.{name}.{metric}": values for name, table in scores.items()
           for metric, values in table.items()},
        **{f"noise.{name}": values for name, values in shaken.items()},
    }
    storage.save_arrays(out / "explained.safetensors", arrays)
    right = int(np.sum(margins[rows] > 0))
    storage.save_json(out / "guards.json", {
        **checks, **kept, "images": len(rows), "called_positive": right,
        "failed": evaluate.failed(checks)})


def choose(positives: np.ndarray, margins: np.ndarray, count: int) -> np.ndarray:
    """`count` rows of positive images (bool ``[n]``), those called positive first."""
    rows = np.flatnonzero(positives)
    rows = rows[np.argsort(margins[rows] <= 0, kind="stable")]
    if len(rows) < count:
        raise ValueError(f"{len(rows)} test images are positive, {count} are to be explained: "
                         "lower config.explain.images")
    return rows[:count]


def interpolation(
    nets: train.Nets, frozen: Any, generator: Any, negative: tuple, positive: tuple, points: int,
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Images ``[points, count, ...]`` and probabilities from the negative to the positive codes."""
    ends = (jnp.concatenate(end, -1)[:count] for end in (negative, positive))
    path = _path_program(nets, points)(frozen, generator, *ends)
    return np.asarray(path.images), np.asarray(jax.nn.sigmoid(path.scores))


@functools.cache
def _path_program(nets: train.Nets, points: int) -> Callable[..., latent.Path]:
    @jax.jit
    def run(judge: Any, made: Any, negative: jax.Array, positive: jax.Array) -> latent.Path:
        return latent.interpolate(
            lambda x: losses.margin(nets.classifier.apply(judge, x)),
            lambda z: nets.generator.apply(made, z[:, : nets.latent[0]], z[:, nets.latent[0] :]),
            negative, positive, points)

    return run


def load(folder: Path, part: str) -> Arrays:
    """Images of one part, as `cohort.draw` left them."""
    return storage.load_arrays(folder / f"{part}.safetensors")[0]


def _tree(path: Path) -> Any:
    return jax.tree.map(jnp.asarray, storage.load_tree(path))


def _draw(nets: train.Nets, made: Any, z1: jax.Array, z2: jax.Array) -> np.ndarray:
    return np.asarray(codes.applied(nets.generator)(made["generator"], z1, z2))


def _key(config: ConfigDict, name: str) -> jax.Array:
    return rng.stream(jax.random.key(config.seed), name)


def _batches(data: Arrays, size: int, seed: int) -> Any:
    """``step -> batch``: rows drawn with replacement, from the step's number alone."""

    def batch(step: int) -> Arrays:
        rows = np.random.default_rng((seed, step)).integers(len(data["labels"]), size=size)
        return {"image": data["images"][rows], "label": data["labels"][rows]}

    return batch
