"""Checkpoint files: a path, or a file of a repository on the Hugging Face hub."""

import os
import pathlib
import re
from typing import Any

__all__ = ["locate"]

_HUB_ID = re.compile(r"(\w[\w.\-]*/\w[\w.\-]*)(?::([\w.\-/]+))?")
_USUAL = ("model.safetensors", "pytorch_model.bin")


def locate(path_or_hub_id: str | os.PathLike[str]) -> pathlib.Path:
    """The local file of a checkpoint, after downloading it where it is on the hub.

    Without a connection, the copy of an earlier download in the hub's cache is used.

    Args:
      path_or_hub_id: a file, `owner/name` (its `model.safetensors`, or else `pytorch_model.bin`),
        or `owner/name:file`.

    Raises:
      FileNotFoundError: neither a file nor the form of a hub id, or the repository has no such
        file.
      ImportError: `huggingface_hub` is not installed.
      ConnectionError: the hub cannot be reached and there is no copy, or it refuses.
    """
    name = str(path_or_hub_id)
    if pathlib.Path(name).is_file():
        return pathlib.Path(name)
    match = _HUB_ID.fullmatch(name)
    if match is None:
        raise FileNotFoundError(f"{name!r} is no file, nor a hub id such as owner/name:file")
    try:
        import huggingface_hub.errors
    except ImportError as error:
        raise ImportError(
            f"{name!r} is no file, and hub ids need huggingface_hub: pip install huggingface_hub"
        ) from error
    repository, file = match[1], match[2]
    for wanted in (file,) if file else _USUAL:
        found = _download(huggingface_hub, repository, wanted, name)
        if found is not None:
            return found
    raise FileNotFoundError(
        f"{name!r} is no file, and the repository {repository} of the hub has no "
        f"{file or ' or '.join(_USUAL)}; name the file as {repository}:FILE"
    )


def _download(hub: Any, repository: str, file: str, name: str) -> pathlib.Path | None:
    """A file of a repository; None if the repository has no such file."""
    errors = hub.errors
    try:
        return pathlib.Path(hub.hf_hub_download(repository, file))
    except errors.LocalEntryNotFoundError as error:  # no connection and no copy
        cached = hub.try_to_load_from_cache(repository, _USUAL[1]) if file == _USUAL[0] else None
        if isinstance(cached, str):
            return pathlib.Path(cached)
        raise ConnectionError(
            f"{name!r} is no file, and the hub cannot be reached and holds no copy of it in its "
            "cache; download the file where there is a connection and give its path"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConnectionError(f"{name!r} is no file, and the hub refuses it: {reason}") from error
