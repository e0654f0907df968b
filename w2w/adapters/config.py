"""The strength of an adapter as stated by the fields of a ``peft.LoraConfig``, in JSON.

PEFT writes them to ``adapter_config.json``, diffusers into the header of its files. A field that
asks for anything but plain LoRA is refused by name, also one that is not known yet.
"""

import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from w2w.adapters.formats import AdapterError

CONFIG = "adapter_config.json"
METADATA = "lora_adapter_metadata"

# Fields of peft.LoraConfig that say nothing about the update, or that are read here.
_NEUTRAL = {
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules"),
    *("inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform"),
    *("lora_alpha", "lora_dropout", "megatron_core", "peft_type", "peft_version", "r"),
    *("qalora_group_size", "rank_pattern", "revision", "runtime_config", "target_modules"),
    *("task_type", "use_rslora", "eva_config", "velora_config", "ensure_weight_tying"),
    *("ephemeral_gpu_offload",),
}
# These initialisations also change the base weights, so that the update is not relative to them.
_CHANGES_BASE = re.compile(r"pissa.*|olora|corda|loftq|lora_ga")


def fields_of(
    path: pathlib.Path, config: pathlib.Path | None, header: Mapping[str, str]
) -> tuple[str, dict[str, Any] | None]:
    """Where the fields of a LoraConfig stand, and the fields."""
    if config is None and METADATA not in header:
        return "", None
    source = str(config or f"{path}: {METADATA}")
    try:
        fields = json.loads(header[METADATA] if config is None else config.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{source}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise AdapterError(f"{source}: {type(fields).__name__} instead of an object")
    if any(key.startswith("unet.") for key in fields):
        fields = {k.removeprefix("unet."): v for k, v in fields.items() if k.startswith("unet.")}
    return source, fields


def scales(source: str, fields: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, float]:
    """Scales by the fields of a ``peft.LoraConfig``.

    Raises:
      AdapterError: a field asks for something other than plain LoRA, or the ranks differ.
    """
    for key, value in fields.items():
        if key not in _NEUTRAL and value:
            raise AdapterError(f"{source}: {key} = {value!r:.80} is not supported")
    for key, plain in (("peft_type", "LORA"), ("bias", "none")):
        if fields.get(key, plain) != plain:
            raise AdapterError(f"{source}: {key} = {fields[key]!r} is not supported")
    start = fields.get("init_lora_weights")
    if isinstance(start, str) and _CHANGES_BASE.fullmatch(start):
        raise AdapterError(f"{source}: init_lora_weights = {start!r} changes the base weights")
    for key in ("r", "lora_alpha"):
        _positive(source, key, fields.get(key))
    result = {}
    for module, rank in ranks.items():
        stated = _by_pattern(source, fields, "rank_pattern", module, fields["r"])
        if stated != rank:
            raise AdapterError(f"{source}: rank {stated} for {module}, its lora_A has {rank}")
        alpha = _by_pattern(source, fields, "alpha_pattern", module, fields["lora_alpha"])
        result[module] = alpha / (math.sqrt(rank) if fields.get("use_rslora") else rank)
    return result


def _by_pattern(
    source: str, fields: Mapping[str, Any], key: str, module: str, default: float
) -> float:
    """A module's value: of the first pattern that matches the end of its name, as in PEFT."""
    patterns = fields.get(key) or {}
    if not isinstance(patterns, dict):
        raise AdapterError(f"{source}: {key} = {patterns!r:.80}, expected an object")
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return _positive(source, f"{key}[{pattern!r}]", value)
        except re.error as error:
            raise AdapterError(f"{source}: {key} has a bad pattern {pattern!r}: {error}") from error
    return default


def _positive(source: str, key: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise AdapterError(f"{source}: {key} = {value!r}, expected a positive number")
    return value
