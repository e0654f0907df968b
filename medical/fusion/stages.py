"""Stages of the comparison: trunk, training of one method's seeds, baselines, maps."""

import functools
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
from medical.explain import grad_cam, localise
from medical.fusion import methods, missing, networks, train
from medical.fusion.missing import Fill, Present
from medical.fusion.train import Patients
from medical.medxgan import classifier

PyTree = Any
Arrays = dict[str, np.ndarray]
SCORED = 64  # images at once


def pretrain_trunk(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: the trunk's first weights: a user's file, or trained to tell whether there are any
    opacities (as the published trunk was trained on another task of the same images), or random."""
    c, net = config.pretrain, config.net
    key = rng.stream(jax.random.key(config.seed), "trunk")
    image = jnp.zeros((1, net.size, net.size, net.channels))
    if config.trunk:
        tree = networks.read_trunk(config.trunk, net)
        storage.save_tree(out / "trunk.safetensors", tree, {"source": Path(config.trunk).name})
        return
    source = inputs["cohort"] / "pretrain.safetensors"
    if not source.exists() or not c.num_steps:
        tree = jax.jit(networks.make_trunk(net).init)(key, image)
        storage.save_tree(out / "trunk.safetensors", tree, {"source": "untrained"})
        return
    data = load(source)
    images, held = networks.to_input(data["images"], net), len(data["labels"]) // 6
    whole = networks.make_pretrained(net, classes=2)
    recipe = classifier.Recipe(c.num_steps, c.learning_rate, c.weight_decay, c.shift)
    state = classifier.init(whole, recipe, image, key)

    def batch(step: int) -> Arrays:
        rows = np.random.default_rng((config.seed, step)).integers(
            held, len(images), size=c.batch_size)
        return {"image": images[rows], "label": data["labels"][rows]}

    writer = Writer(out)
    state = fit(state, classifier.make_train_step(whole, recipe), batch, num_steps=c.num_steps,
                key=key, writer=writer, log_every=50, name="trunk")
    writer.close()
    logits = classifier.predict(whole, state.variables(), images[:held])
    tree = jax.tree.map(np.asarray, networks.trunk_of(net, state.variables()))
    accuracy = float(np.mean(logits.argmax(-1) == data["labels"][:held]))
    storage.save_tree(out / "trunk.safetensors", tree, {"source": "opacities",
                                                        "accuracy": accuracy})


def train_method(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: all seeds of ``config.method``, and their probabilities on the test patients."""
    method, c = methods.METHODS[config.method], config.train
    parts = {name: load(inputs["cohort"] / f"{name}.safetensors")
             for name in ("train", "validation", "test")}
    classes = len(storage.load_json(inputs["cohort"] / "cohort.json")["classes"])
    net = networks.make_net(config.net, method.kind, classes, method.learned)
    trunk = None
    if method.kind != "clinical":
        trunk = tree_of(inputs["trunk"] / "trunk.safetensors")
    patients = {name: patients_of(parts[name], config.net, method.kind)
                for name in ("train", "validation")}
    stand_in = stand_in_of(patients["train"], config.fill)
    key = rng.stream(jax.random.key(config.seed), "init")
    seeds = jnp.asarray(config.seeds, jnp.int32)
    first = patients["train"]

    def start(seed: jax.Array, trunk: PyTree | None) -> PyTree:
        return networks.init(net, jax.random.fold_in(key, seed), first.images[:1],
                             first.clinical[:1], trunk)

    variables = jax.jit(jax.vmap(start, (0, None)))(seeds, trunk)
    accuracy = jnp.full(len(seeds), -1.0)
    hide = {"hide_image": c.hide[0], "hide_clinical": c.hide[1]} if method.dropout else {}
    writer = Writer(out)
    log = {}
    for name in ("clinical",) if method.kind == "clinical" else ("head", "whole"):
        recipe = train.Recipe(**dict(c[name]), **hide, frozen=name != "whole")
        given, fill = patients, stand_in
        if name == "head":
            given = {part: rows.replace(images=features_of(net, trunk, rows.images))
                     for part, rows in patients.items()}
            mean = features_of(net, trunk, stand_in.image[None])[0]
            fill = Fill(mean, stand_in.clinical)
        batch = {"train": given["train"], "valid": given["validation"], "stand_in": fill,
                 "seed": seeds}
        begin = functools.partial(train.begin, recipe=recipe)
        state = jax.jit(jax.vmap(begin))(variables, accuracy=accuracy)
        with closing(Checkpointer(out / "checkpoints" / name, keep=1)) as checkpointer:
            state = fit(state, train.make_epoch(net, recipe, config.population),
                        lambda _, batch=batch: batch, num_steps=recipe.epochs,
                        key=jax.random.key(config.seed), writer=writer, log_every=1, name=name,
                        checkpointer=checkpointer, checkpoint_every=0 if name != "whole" else 4)
        variables, accuracy = state.best, state.accuracy
        log[name] = {"validation_accuracy": np.asarray(accuracy).tolist(),
                     "best_epoch": np.asarray(state.best_epoch).tolist(),
                     "epochs": np.asarray(state.epoch).tolist()}
    writer.close()
    storage.save_tree(out / "best.safetensors", jax.tree.map(np.asarray, variables))
    storage.save_json(out / "log.json", log)
    test = patients_of(parts["test"], config.net, method.kind, everyone=True)
    fills = {"": stand_in}
    if method.kind == "fusion" and not method.learned:
        fills = {"mean": stand_in_of(patients["train"], "mean"),
                 "zeros": stand_in_of(patients["train"], "zeros")}
    found = {}
    for view in method.views:
        seen = as_view(test, view)
        for policy, fill in fills.items():
            # With both modalities nothing is filled in: no policy.
            name = f"{view}.{policy}" if policy and view != "both" else view
            found[name] = probabilities(net, variables, seen, fill)
    storage.save_arrays(out / "probabilities.safetensors", found)


def fit_baselines(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: probabilities of the baselines on the clinical variables, ``[seeds, n, classes]``."""
    train_rows, test = (load(inputs["cohort"] / f"{name}.safetensors")
                        for name in ("train", "test"))
    has = train_rows["has_clinical"]
    found = {}
    for name in config.baselines:
        found[name] = np.stack([
            methods.fit_baseline(name, train_rows["clinical"][has], train_rows["labels"][has],
                                 seed).predict_proba(test["clinical"]) for seed in config.seeds])
    storage.save_arrays(out / "probabilities.safetensors", found)


def explain(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: Grad-CAM of the highest level on test patients, for the image and a fusion network.

    Where the place of the opacities is known, the maps are measured against it.
    """
    test = load(inputs["cohort"] / "test.safetensors")
    classes = len(storage.load_json(inputs["cohort"] / "cohort.json")["classes"])
    rows = chosen_rows(test, classes, config.explain.images)
    arrays = {"images": test["images"][rows], "labels": test["labels"][rows],
              "clinical": test["clinical"][rows]}
    if "masks" in test:
        arrays["masks"] = test["masks"][rows]
    scores = {}
    for name in config.explain.methods:
        method = methods.METHODS[name]
        net = networks.make_net(config.net, method.kind, classes, method.learned)
        saved = tree_of(inputs[f"train-{name}"] / "best.safetensors")
        variables = jax.tree.map(lambda leaf: leaf[0], saved)
        patients = patients_of({key: value[rows] for key, value in test.items()}, config.net,
                               method.kind, everyone=True)
        maps = np.asarray(jax.jit(lambda v, p, n=net: level_map(n, v, p))(variables, patients))
        arrays[f"map.{name}"] = maps
        if "masks" in test:
            shown = arrays["masks"].any(axis=(1, 2))
            pairs = {"auc": localise.pixel_auc, "pointing": localise.pointing,
                     "iou": localise.iou}
            scores[name] = {key: float(np.nanmean(score(maps[shown], arrays["masks"][shown])))
                            for key, score in pairs.items()}
    storage.save_arrays(out / "maps.safetensors", arrays)
    storage.save_json(out / "scores.json", scores)


def level_map(net: Any, variables: PyTree, patients: Patients) -> jax.Array:
    """Grad-CAM ``[n, h, w]`` of the logit of the highest level, at the images' resolution."""
    features = net.apply(variables, patients.images, method="features")

    def head(found: jax.Array, clinical: jax.Array) -> jax.Array:
        return net.apply(variables, found, clinical, method="head")[:, -1]

    found = grad_cam.grad_cam(head, features, patients.clinical)
    height, width = patients.images.shape[1:3]
    return grad_cam.enlarge(found, (height, width))


def chosen_rows(test: Arrays, classes: int, count: int) -> np.ndarray:
    """The first test patients with image and variables, `count` of each level."""
    rows = [np.flatnonzero((test["labels"] == c) & test["complete"])[:count]
            for c in range(classes)]
    return np.concatenate(rows)


def patients_of(
    arrays: Arrays, net: ConfigDict, kind: str, everyone: bool = False
) -> Patients:
    """Patients of a part for one kind of network: those who have what it needs, or everyone."""
    has_image, has_clinical = arrays["has_image"], arrays["has_clinical"]
    needed = {"image": has_image, "clinical": has_clinical,
              "fusion": np.ones(len(has_image), bool)}[kind]
    rows = np.arange(len(needed)) if everyone else np.flatnonzero(needed)
    if not len(rows):
        raise ValueError(f"no patient has what a network of kind {kind!r} needs")
    images = np.zeros((len(rows), 1, 1, 1), np.float32)
    if kind != "clinical":
        images = networks.to_input(arrays["images"][rows], net)
    return Patients(
        jnp.asarray(images), jnp.asarray(arrays["clinical"][rows], jnp.float32),
        Present(jnp.asarray(has_image[rows]), jnp.asarray(has_clinical[rows])),
        jnp.asarray(arrays["labels"][rows], jnp.int32))


def stand_in_of(patients: Patients, policy: str) -> Fill:
    """What stands for absent modalities, from the training patients who have them."""
    has = jax.tree.map(np.asarray, patients.present)
    some = np.asarray(patients.images)
    images = some[has.image] if has.image.any() else some
    return missing.fill_of(images, np.asarray(patients.clinical)[has.clinical], policy)


def as_view(patients: Patients, view: str) -> Patients:
    """The patients as a view shows them; "found" hides nothing but what they lack."""
    if view == "found":
        return patients
    if view not in methods.VIEWS:
        raise ValueError(f"unknown view {view!r}; known: {', '.join(methods.VIEWS)}")
    yes = jnp.ones(len(patients.labels), bool)
    return patients.replace(present=Present(
        yes if view != "clinical" else ~yes, yes if view != "image" else ~yes))


def features_of(net: Any, trunk: PyTree, images: jax.Array) -> jax.Array:
    """Mean features of the frozen trunk, ``[n, 1, 1, channels]``."""

    @jax.jit
    def run(trunk: PyTree, images: jax.Array) -> jax.Array:
        return jax.lax.map(
            lambda image: jnp.mean(net.trunk.apply(trunk, image[None])[0], axis=(0, 1),
                                   keepdims=True), images, batch_size=min(SCORED, len(images)))

    return run(trunk, images)


def probabilities(
    net: Any, variables: PyTree, patients: Patients, stand_in: Fill
) -> np.ndarray:
    """``[seeds, n, classes]`` of variables with a leading axis of seeds."""
    frozen = not hasattr(net, "features")

    @jax.jit
    def run(variables: PyTree, patients: Patients, stand_in: Fill) -> jax.Array:
        def one(patient: Patients) -> jax.Array:
            whole = jax.tree.map(lambda leaf: leaf[None], patient)
            return train.logits_of(net, variables, whole, stand_in, frozen)[0][0]

        return jax.nn.softmax(jax.lax.map(one, patients,
                                          batch_size=min(SCORED, len(patients.labels))))

    count = jax.tree.leaves(variables)[0].shape[0]
    return np.stack([
        np.asarray(run(jax.tree.map(lambda leaf, i=i: leaf[i], variables), patients, stand_in))
        for i in range(count)])


def load(path: Path) -> Arrays:
    """Arrays of a file of a stage."""
    return storage.load_arrays(path)[0]


def tree_of(path: Path) -> PyTree:
    """A tree of a file of a stage, on the device."""
    return jax.tree.map(jnp.asarray, storage.load_tree(path))
