"""Where a pipeline's files are: a local folder, or a snapshot of a hub repository."""

import fnmatch
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import logging

from w2w.diffusion import weight_files

# What is needed of each folder of a pipeline besides weights.
_CONFIGS = {
    "scheduler": ("scheduler_config.json",),
    "tokenizer": ("*.json", "*.txt"),
    "tokenizer_2": ("*.json", "*.txt"),
    "unet": ("config.json",),
    "vae": ("config.json",),
    "text_encoder": ("config.json",),
    "text_encoder_2": ("config.json",),
}
_LIBRARIES = {
    "unet": "diffusers",
    "vae": "diffusers",
    "text_encoder": "transformers",
    "text_encoder_2": "transformers",
}


def locate(path_or_hub_id: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The local folder of a pipeline, after downloading what is needed of a hub repository.

    Without a connection, the copy that an earlier download left in the hub's cache is used, and
    logged.

    Args:
      path_or_hub_id: a folder, or ``owner/name``.
      revision: branch, tag or commit of the repository.

    Raises:
      FileNotFoundError: neither a folder nor the form of a hub id.
      ValueError: a revision of a folder.
      ImportError: ``huggingface_hub`` is not installed.
      ConnectionError: the hub cannot be reached and there is no copy, or it refuses.
    """
    path = Path(path_or_hub_id)
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"{path} is a folder; revision {revision!r} is of hub repositories")
        return path
    name = str(path_or_hub_id)
    if path.exists() or not re.fullmatch(r"\w[\w.\-]*/\w[\w.\-]*", name):
        raise FileNotFoundError(f"{name} is neither a folder nor a hub id such as owner/name")
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"{name} is not a folder, and hub ids need huggingface_hub: "
            "pip install 'manifoldry[w2w]'"
        ) from error
    return _snapshot(huggingface_hub, name, revision)


def _snapshot(hub: Any, name: str, revision: str | None) -> Path:
    try:
        files = hub.HfApi().list_repo_files(name, revision=revision)
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=needed(files)))
    except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConnectionError(f"the hub refuses {name}: {reason}") from error
    except (hub.errors.OfflineModeIsEnabled, OSError) as error:
        return _cached(hub, name, revision, error)
    except Exception as error:
        # The hub's client passes on what its HTTP library raises, which has changed.
        if type(error).__module__.split(".")[0] not in ("httpx", "httpcore", "requests"):
            raise
        return _cached(hub, name, revision, error)


def _cached(hub: Any, name: str, revision: str | None, reason: Exception) -> Path:
    try:
        path = hub.snapshot_download(name, revision=revision, local_files_only=True)
    except hub.errors.LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"{name} is not a folder, and the hub cannot be reached "
            f"({type(reason).__name__}) and holds no copy in its cache; download the repository "
            "where there is a connection and give its folder"
        ) from error
    logging.warning("the hub cannot be reached (%s); using the copy %s", reason, path)
    return Path(path)


def needed(files: Iterable[str]) -> list[str]:
    """Of a repository's files, those that a pipeline is loaded from: one copy of the weights.

    Raises:
      FileNotFoundError: a component without weights, or no ``model_index.json``.
    """
    files = list(files)
    if "model_index.json" not in files:
        raise FileNotFoundError("the repository has no model_index.json; not a diffusers pipeline")
    chosen = ["model_index.json"]
    for folder, patterns in _CONFIGS.items():
        names = [file[len(folder) + 1 :] for file in files if file.startswith(f"{folder}/")]
        if not names:
            continue
        wanted = [n for n in names if any(fnmatch.fnmatch(n, pattern) for pattern in patterns)]
        if folder in _LIBRARIES:
            weights = weight_files.choose(names, _LIBRARIES[folder], folder)
            wanted.append(weights)
            if weights.endswith(".json"):
                # Shards are "<stem>[.<variant>]-00001-of-00002.<suffix>".
                suffix = "bin" if ".bin." in weights else "safetensors"
                variant = ".fp16" if "fp16" in weights else ""
                stem = weights.split(".")[0]
                shard = re.compile(rf"{stem}{re.escape(variant)}-\d+-of-\d+\.{suffix}")
                wanted += [n for n in names if shard.fullmatch(n)]
        chosen += [f"{folder}/{name}" for name in wanted]
    return chosen
