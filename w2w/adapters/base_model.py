"""The Stable Diffusion pipeline that adapters belong to: loading it, and whether they fit it."""

import functools
import hashlib
import pathlib
import re

import jax.numpy as jnp
from flax import traverse_util

from common.config import ConfigError
from w2w import folders
from w2w.adapters import AdapterError
from w2w.diffusion.pipeline import Pipeline, load_pipeline
from w2w.lora_layout import Layout, LoraConfig, Params, flax_path


@functools.lru_cache(maxsize=1)  # stages of one run share it
def load(path: str, dtype: str = "float32", remat: bool = False) -> Pipeline:
    """The pipeline of a folder in diffusers' layout or of a hub repository.

    Args:
      path: folder, or ``owner/name``.
      dtype: of parameters and computation, "float32" or "bfloat16".
      remat: gradient checkpointing in the UNet.

    Raises:
      ConfigError: there is no such pipeline, or it is not supported; the message has the reason.
    """
    try:
        kind = jnp.dtype(dtype)
        return load_pipeline(path, dtype=kind, param_dtype=kind, remat=remat)
    except (OSError, ValueError, ImportError, TypeError) as error:
        raise ConfigError(f"config.base.pipeline: {error}") from error


def digest(path: str) -> str:
    """Digest of a pipeline's files by name, size and time of change; of a hub id, the id itself.

    Raises:
      ConfigError: neither a folder with a ``model_index.json`` nor the form of a hub id.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        if folder.exists() or not re.fullmatch(r"\w[\w.\-]*/\w[\w.\-]*", path):
            raise ConfigError(f"config.base.pipeline: {path} is no folder and no hub id")
        return path
    if not (folder / "model_index.json").is_file():
        raise ConfigError(
            f"config.base.pipeline: {folder} has no model_index.json; it is not the folder of a "
            "pipeline in diffusers' layout"
        )
    lines = []
    for file in sorted(folders.walk(folder)):  # components may be links to folders
        if file.is_file():
            status = file.stat()
            lines.append(f"{file.relative_to(folder)} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def lora_config(layout: Layout, alpha: float, params: Params, where: str) -> LoraConfig:
    """The configuration under which adapters of a UNet have the layout.

    Args:
      layout: of the adapters.
      alpha: of the adapters.
      params: of the UNet; arrays or their abstract shapes.
      where: the pipeline, for messages.

    Raises:
      AdapterError: the UNet lacks a module of the layout, or has it in another size: the adapters
        are of another base model.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    for name, fan_in, fan_out in layout.modules:
        kernel = flat.get(f"{flax_path(name)}/kernel")
        found = None if kernel is None else tuple(kernel.shape)
        if found != (fan_in, fan_out):
            raise AdapterError(
                f"{where}: the adapters are of another base model: {name} has in and out "
                f"({fan_in}, {fan_out}) in the adapters, {found or 'no place'} in the model"
            )
    targets = tuple(re.escape(name) for name, _, _ in layout.modules)
    return LoraConfig(layout.rank, alpha, targets)
