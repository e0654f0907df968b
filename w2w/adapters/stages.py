"""Stages for adapters, trained here or elsewhere: import, space, sample, edit, export."""

import csv
import math
import pathlib
import shutil
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from common.storage import load_arrays, load_json, save_arrays, save_json
from w2w import adapters, directions, subspace
from w2w.adapters import AdapterError, Reading, earlier
from w2w.adapters import files as adapter_files
from w2w.adapters.vectors import layout_from
from w2w.bank import Bank
from w2w.bank.folder import Source, find, import_folder
from w2w.directions import Direction
from w2w.lora_layout import Layout
from w2w.pca import streaming
from w2w.subspace import Subspace

MEAN = "mean"  # name of the mean model among the models that are edited
_CHUNK = 256


def reading_of(config: ConfigDict) -> Reading:
    """The configuration's ``adapter`` group; empty strings and 0 stand for None."""
    missing: Any = config.missing_alpha
    if missing not in ("", "fold"):
        missing = float(missing)
    return Reading(
        alpha=config.alpha or None,
        missing_alpha=missing or None,
        reduce=config.reduce or None,
        canonical=config.canonical,
        text_encoder=config.text_encoder,
    )


def common_kind(
    sources: list[Source], reading: Reading, rank: int | None = None, limit: int = 64
) -> tuple[Layout, float]:
    """Layout and alpha that most of the first usable files have.

    Args:
      sources: files of a folder.
      reading: an alpha in it is not counted but taken.
      rank: rank of the layout; None for the files' own.
      limit: number of files looked at.

    Raises:
      AdapterError: none of them is usable; the message holds the first one's reason.
    """
    votes: Counter[tuple[Layout, float]] = Counter()
    first: Exception | None = None
    for source in sources[:limit]:
        try:
            found = adapter_files.read(source.path, None, reading.text_encoder)
            ranks = Counter(found.rank(module) for module in found.factors)
            layout = layout_from(found, rank or ranks.most_common(1)[0][0])
            loaded = adapters.read(source.path, layout, reading)
        except AdapterError as error:
            first = first or error
            continue
        votes[layout, loaded.alpha] += 1
    if not votes:
        raise AdapterError(f"none of {len(sources[:limit])} adapter files is usable: {first}")
    return votes.most_common(1)[0][0]


def import_adapters(config: ConfigDict, inputs: dict[str, pathlib.Path], out: pathlib.Path) -> None:
    """Stage: all adapters of a folder into ``bank``; ``import.json`` names what was refused."""
    made = inputs.get("adapters", inputs.get("train"))
    folder = pathlib.Path(config.folder) if made is None else made / "adapters"
    reading = reading_of(config.adapter)
    if (out / "bank" / "bank.json").is_file():
        bank = Bank(out / "bank")
    else:
        layout, alpha = common_kind(find(folder), reading, config.adapter.rank or None)
        bank = Bank.create(out / "bank", layout, alpha, config.bank.dtype)
    report = import_folder(bank, folder, config.bank.workers, reading, report=out / "import.json")
    refused = report["refused"]
    print(f"imported {len(bank)} adapters of {bank.shape[1]} values, {len(refused)} refused")
    for item in refused[:10]:
        print(f"  refused {item['file']}: {item['reason']}")
    if len(refused) > 10:
        print(f"  and {len(refused) - 10} more, see import.json")
    if len(bank) < 3:
        raise AdapterError(f"{folder}: {len(bank)} usable adapters; a space needs at least 3")


def open_bank(inputs: dict[str, pathlib.Path]) -> Bank:
    """The bank of the import stage."""
    return Bank(inputs["import"] / "bank")


def fit(config: ConfigDict, inputs: dict[str, pathlib.Path], out: pathlib.Path) -> None:
    """Stage: the space of all adapters, and their coefficients."""
    bank = open_bank(inputs)
    if config.get("update_from"):
        space, summary = earlier.updated(config, bank)
        save_json(out / "update.json", summary)
    elif config.method == "streaming":  # banks larger than memory; a stopped fit continues
        if not config.components:
            raise ValueError("the streaming fit needs a number of components")
        passes = out / "passes"
        space = streaming.fit(bank, config.components, seed=config.seed, checkpoint=passes)
        shutil.rmtree(passes, ignore_errors=True)
    else:
        space = subspace.fit(bank.rows, config.components or None, config.method, seed=config.seed)
    blocks = [
        np.asarray(subspace.project(space, jnp.asarray(bank[i : i + _CHUNK], jnp.float32)))
        for i in range(0, len(bank), _CHUNK)
    ]
    header = {"layout_sha256": bank.layout.sha256, "alpha": bank.alpha}
    subspace.save(out / "space.safetensors", space, header)
    save_arrays(out / "coefficients.safetensors", {"coefficients": np.concatenate(blocks)})


def open_space(inputs: dict[str, pathlib.Path]) -> tuple[Subspace, np.ndarray]:
    """The space and the coefficients ``[N, k]`` of its adapters."""
    space, _ = subspace.load(inputs["space"] / "space.safetensors")
    return space, load_arrays(inputs["space"] / "coefficients.safetensors")[0]["coefficients"]


def sample(config: ConfigDict, inputs: dict[str, pathlib.Path], out: pathlib.Path) -> None:
    """Stage: new adapters, with the most similar of the bank to each."""
    space, training = open_space(inputs)
    coefficients = subspace.sample(jax.random.key(config.seed), space, config.count, config.factor)
    nearest, cosine = subspace.nearest(coefficients, jnp.asarray(training))
    arrays = {"coefficients": coefficients, "nearest": nearest, "cosine": cosine}
    arrays["vectors"] = subspace.unproject(space, coefficients)
    names = [f"sample{i}" for i in range(config.count)]
    save_arrays(out / "models.safetensors", arrays, {"names": names})


def read_labels(path: pathlib.Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Columns of a CSV file whose first column is ``name``: attribute to ``[N]``, NaN if empty.

    Raises:
      ValueError: no or repeated names, names of no adapter, or a value that is not a number; the
        message has the line.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        table = csv.reader(file)
        header = next(table, [])
        if len(header) < 2 or header[0] != "name":
            raise ValueError(f"{path}: header {header}, expected name and at least one attribute")
        rows = {name: row for row, name in enumerate(names)}
        values = np.full((len(header) - 1, len(names)), np.nan)
        seen: set[str] = set()
        for cells in table:
            where = f"{path}: line {table.line_num}"
            if len(cells) != len(header):
                raise ValueError(f"{where}: {len(cells)} cells, the header has {len(header)}")
            if cells[0] in seen:
                raise ValueError(f"{where}: the name {cells[0]!r} occurs twice")
            seen.add(cells[0])
            if cells[0] not in rows:  # a refused adapter has a label, too
                continue
            for column, cell in enumerate(cells[1:]):
                try:
                    values[column, rows[cells[0]]] = float(cell) if cell.strip() else math.nan
                except ValueError as error:
                    raise ValueError(f"{where}: {header[column + 1]} = {cell!r}") from error
    if not seen & rows.keys():
        raise ValueError(f"{path}: none of its {len(seen)} names is an adapter of the bank")
    return dict(zip(header[1:], values, strict=True))


def direction_of(coefficients: np.ndarray, labels: np.ndarray, attribute: str, k: int) -> Direction:
    """Calibrated direction of an attribute from the adapters whose label is known."""
    known = np.isfinite(labels)
    if np.count_nonzero(known) < 3:
        raise ValueError(f"attribute {attribute!r} has {np.count_nonzero(known)} labels, need 3")
    leading = coefficients[known, :k]
    raw = directions.least_squares(leading, labels[known], intercept=True)
    return directions.calibrate(directions.pad(raw, coefficients.shape[1]), coefficients)


def edit(config: ConfigDict, inputs: dict[str, pathlib.Path], out: pathlib.Path) -> None:
    """Stage: chosen adapters, moved along attributes by chosen strengths."""
    bank = open_bank(inputs)
    space, training = open_space(inputs)
    planted = inputs.get("adapters")
    path = pathlib.Path(config.labels) if planted is None else planted / "labels.csv"
    labels = read_labels(path, bank.names)
    if unknown := set(config.attributes) - set(labels):
        raise ValueError(f"{path} has no {sorted(unknown)}; it has {', '.join(labels)}")
    samples, header = load_arrays(inputs["sample"] / "models.safetensors")
    start = {MEAN: np.zeros(space.k, np.float32)}
    start |= dict(zip(header["names"], samples["coefficients"], strict=True))
    if "invert" in inputs:
        inverted, header = load_arrays(inputs["invert"] / "models.safetensors")
        start |= dict(zip(header["names"], inverted["coefficients"], strict=True))
    start |= dict(zip(bank.names, training, strict=True))
    if unknown := set(config.models) - set(start):
        raise ValueError(
            f"no model {sorted(unknown)}; there are {MEAN}, samples, inversions and adapters"
        )

    names, rows, moved, units = [], [], [], {}
    k = min(config.components or space.k, space.k)
    for attribute in config.attributes or tuple(labels):
        direction = direction_of(training, labels[attribute], attribute, k)
        units[attribute] = direction.unit
        for model in config.models:
            rows.append((attribute, model))
            for strength in config.strengths:
                coefficients = jnp.asarray(start[model])
                moved.append(directions.edit(coefficients, direction, strength))
                names.append(f"{model}-{attribute}{strength:+g}")
    coefficients = jnp.stack(moved)
    arrays = {"coefficients": coefficients, "vectors": subspace.unproject(space, coefficients)}
    arrays |= {f"direction.{attribute}": unit for attribute, unit in units.items()}
    header = {"names": names, "rows": rows, "strengths": list(config.strengths)}
    save_arrays(out / "models.safetensors", arrays, header)


def export(config: ConfigDict, inputs: dict[str, pathlib.Path], out: pathlib.Path) -> None:
    """Stage: every sampled, inverted and edited model as an adapter file, read back, compared."""
    bank = open_bank(inputs)
    folder = out / "adapters"
    files, worst = [], 0.0
    for stage in ("sample", "invert", "edit"):
        if stage not in inputs:
            continue
        arrays, header = load_arrays(inputs[stage] / "models.safetensors")
        for name, vector in zip(header["names"], arrays["vectors"], strict=True):
            safe = name.replace("/", "_")
            path = folder / (safe if config.format in ("peft", "w2w") else f"{safe}.safetensors")
            if path.relative_to(out).as_posix() in files:
                raise ValueError(f"two models would be exported as {path.name}, one is {name!r}")
            adapters.save(
                path,
                vector,
                bank.layout,
                alpha=bank.alpha,
                format=config.format,
                fold=config.fold,
                dtype=jnp.dtype(config.dtype),
            )
            # A folded file in a header-less format states no alpha: its own is the rank.
            missing = bank.layout.rank if config.fold else None
            back = adapters.read(path, bank.layout, Reading(bank.alpha, missing_alpha=missing))
            worst = max(worst, float(np.abs(back.vector - vector).max()))
            files.append(path.relative_to(out).as_posix())
    summary = {"files": files, "format": config.format, "alpha": bank.alpha}
    save_json(out / "export.json", {**summary, "max_abs_error": worst})
    print(f"exported {len(files)} adapters in format {config.format}")


def load_import(inputs: dict[str, pathlib.Path]) -> dict[str, Any]:
    """The report of the import stage."""
    return load_json(inputs["import"] / "import.json")
