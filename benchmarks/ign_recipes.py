"""Recipes of an idempotent network beside each other: what each is worth, and which fail.

    python benchmarks/ign_recipes.py runs/ign [--steps 2000] [--recipes default plain ...]
        [--set loss.tightness=0.6 ...] [--figure recipes.png]

`runs/ign` is a finished run of `configs/ign.py`: its images, judge and baselines serve all recipes,
and its configuration is what each recipe changes. Every recipe is trained for `--steps` from the
same seed and measured as a run measures its members (`ign.measure`), so a row here and one of
`results.json` mean the same. `--set` changes all recipes.

Columns: what the probe calls collapse at the end, classes drawn, Frechet distance of f(z) and of
f(f(z)), duplicates relative to real ones, median idempotence ratio, drift of test images relative
to that of f(z), PSNR gains (dB) at noise 0.5 and 0.15, bounds met, and seconds of training.
"""

import argparse
import pathlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from common import config as configs
from common import image_grids, rng, storage, xla_flags
from ign import acceptance, measure, models, population, probe, project, settings, stages
from ign.train import make_train_step

# Changes of the configuration, by the name that stands in the table.
RECIPES: dict[str, dict[str, str]] = {
    "default": {},
    "plain": {"loss.matching": "0", "loss.joint": "False"},
    "matching alone": {"loss.idempotence": "0", "loss.tightness": "0"},
    "purified": {"loss.idempotence_form": "purified"},
    "L1": {"loss.metric": "l1"},
    "no clamp": {"loss.clamp": "0"},
    "other noise": {"loss.joint": "False"},
    "shared samples": {"train.once": "False"},
    "small bank": {"train.bank": "128"},
    "no input noise": {"train.input_noise": "0"},
    "transport": {"train.target": "transport", "loss.temperature": "1.0"},
    "no spread": {"train.slices": "0"},
    "no distortions": {"train.augment": "0"},
    "images to match undistorted": {"train.augment_matching": "False"},
    "learnt linear map": {"net.principal": "False", "net.linear": "True", "loss.tightness": "1.2"},
    "layers alone": {"net.principal": "False", "loss.tightness": "1.2"},
    "early fall": {"train.tightness_decay_from": "0.5"},
}


def run_config(folder: pathlib.Path) -> ConfigDict:
    """The configuration of a run, with one seed and no sweep."""

    def tuples(value: Any) -> Any:  # JSON has lists only
        if isinstance(value, dict):
            return {key: tuples(inner) for key, inner in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    config = ConfigDict(tuples(storage.load_json(folder / "config.json")["values"]))
    config.loss.grid = ConfigDict(dict.fromkeys(config.loss.grid, ()))
    config.train.seeds = config.train.seeds[:1]
    return config


def changed(config: ConfigDict, changes: Mapping[str, str]) -> ConfigDict:
    """A copy with a recipe's changes."""
    return configs.apply_overrides(ConfigDict(config.to_dict()), list(changes.items()))


def train(config: ConfigDict, folders: Mapping[str, pathlib.Path]) -> tuple[project.Model, float]:
    """The trained network of a configuration, and the seconds of its training."""
    images = settings.load_images(folders["data"])
    spectrum = settings.load_spectrum(folders["data"])
    net = settings.net_config(config, len(images.class_names))
    recipe, objective = settings.recipe(config), settings.objective(config)
    everybody = settings.members(config)
    components = settings.components(config, images.train, config.train.augment)
    states = stages.init_members(
        config, net, recipe, spectrum, everybody, objective.use_matching, components
    )
    step = make_train_step(models.build(net), objective, recipe, net.independent)
    source = {"image": images.train}
    if net.classes and images.train_labels is not None:
        source["label"] = images.train_labels
    batches = population.batches(source, config.train.batch_size, [everybody[0].seed])
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        states = stages.fit(
            ConfigDict({**config.train, "seed": config.seed, "mesh": config.mesh,
                        "checkpoint_every": 0}),
            states, population.make_step(step, 1, config.train.mode), batches, "train",
            pathlib.Path(folder), population.rules(1),
        )  # fmt: skip
        jax.block_until_ready(states)
    return stages.member_model(states, 0, net), time.perf_counter() - start


def row(
    config: ConfigDict,
    folders: Mapping[str, pathlib.Path],
    model: project.Model,
    baselines: Mapping[str, Mapping[str, float]],
) -> tuple[dict[str, Any], np.ndarray]:
    """A model's numbers as in `results.json`, with its bounds, and its images."""
    images = settings.load_images(folders["data"])
    judge = settings.load_judge(folders["judge"])
    count = min(config.evaluate.count, len(images.test), len(images.train))
    test = settings.signed(images.test[:count])
    labels = None if images.test_labels is None else images.test_labels[:count]
    z = np.asarray(model.noise(rng.stream(jax.random.key(config.seed), "evaluate"), count))
    asked = settings.drawn_labels(labels, model.config.classes, count)
    found, drawn = measure.member(model, judge, test, labels, z, asked, {}, lambda _: {})
    spectrum = settings.load_spectrum(folders["data"])
    watch = stages.make_probe(config, dict(folders), model.config, spectrum)
    found["final"] = probe.verdict(watch.measure(model))
    found["bounds"] = acceptance.bounds(found, baselines)
    return found, drawn


def line(name: str, found: Mapping[str, Any], spent: float) -> str:
    """One row of the table."""
    value = {bound.name: bound.value for bound in found["bounds"]}
    met = sum(bound.kept for bound in found["bounds"])
    cells = [
        name, found["final"] or "none", f"{found['f'].get('coverage', float('nan')):.0f}",
        f"{found['f']['frechet']:.1f}", f"{found['ff']['frechet']:.1f}",
        f"{value['duplicates / real duplicates']:.2f}",
        f"{value['idempotence ratio, median']:.3f}",
        f"{value['drift of test images / of f(z)']:.2f}",
        f"{value['PSNR gain at noise 0.5, dB']:+.1f}",
        f"{value['PSNR gain at noise 0.15, dB']:+.1f}",
        f"{met} of {len(found['bounds'])}", f"{spent:.0f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=0, help="0: as many as the run's")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE for all recipes")
    parser.add_argument("--figure", type=pathlib.Path, help="PNG of samples, a row for each recipe")
    options = parser.parse_args(arguments)
    xla_flags.prepare()
    run = options.run / "stages"
    folders = {name: run / name for name in ("data", "judge", "baselines", "measure")}
    config = run_config(options.run)
    baselines = storage.load_json(folders["measure"] / "results.json")["baselines"]
    common = dict(change.split("=", 1) for change in options.set)
    if fixed := [key for key in common if not key.startswith(("net.", "loss.", "train."))]:
        parser.error(f"--set {fixed[0]}: images, noise and judge are those of the run")
    if options.steps:
        common["train.num_steps"] = str(options.steps)
    print("| recipe | collapse | classes | FD f(z) | FD f(f(z)) | duplicates / real | idempotence "
          "| drift real / f(z) | gain at 0.5 | gain at 0.15 | bounds | training, s |")  # fmt: skip
    print("|---" * 12 + "|", flush=True)
    shown = []
    for name in options.recipes:
        own = changed(config, RECIPES[name] | common)
        model, spent = train(own, folders)
        found, drawn = row(own, folders, model, baselines)
        print(line(name, found, spent), flush=True)
        shown.append((drawn[:16] + 1) / 2)
        if options.figure:
            image_grids.grid(shown, options.figure, options.recipes[: len(shown)], scale=2)


if __name__ == "__main__":
    main()
