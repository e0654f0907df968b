"""Configurations: load `FILE[:variant]` and apply `--config.key=value` overrides to it.

A configuration file defines `get_config(variant: str = "") -> ml_collections.ConfigDict`. The
dictionary holds at least `name` (str) and `experiment` (str), the module whose
`run(config, workdir)` is called. Whatever a user can get wrong on the command line raises
`ConfigError`, whose message is one line.
"""

import ast
import difflib
import importlib.util
import inspect
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

PREFIX = "config"
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


class ConfigError(Exception):
    """A mistake of the user's in the command line or a configuration; the message is one line."""


def load(flag_value: str) -> ConfigDict:
    """Loads a configuration.

    Args:
      flag_value: `FILE` or `FILE:variant`, for instance `configs/w2w.py:smoke`.

    Returns:
      What the file's `get_config(variant)` returns.

    Raises:
      ConfigError: no such file, no `get_config`, a variant it refuses with ValueError, or a result
        without `name` and `experiment`.
    """
    file, variant = split(flag_value)
    path = pathlib.Path(file)
    if not path.is_file():
        found = sorted(path.parent.glob("*.py"))
        siblings = [str(sibling) for sibling in found if not sibling.name.startswith("_")]
        near = difflib.get_close_matches(file, siblings, n=2, cutoff=0.7)
        raise ConfigError(f"no configuration file {file}{_hint(near, siblings, 'files')}")
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    if get_config is None:
        raise ConfigError(f"{file} does not define get_config(variant)")
    if not variant:
        config = get_config()
    elif not inspect.signature(get_config).parameters:
        raise ConfigError(f"{file} has no variants, so :{variant} means nothing to it")
    else:
        try:
            config = get_config(variant)
        except ValueError as error:
            raise ConfigError(f"{file}:{variant}: {one_line(error)}") from error
    for key in ("name", "experiment"):
        if not isinstance(config.get(key), str):
            raise ConfigError(f"{file}: its configuration has no string {key!r}")
    return config


def split(flag_value: str) -> tuple[str, str]:
    """Splits `FILE:variant` into file and variant (empty if none is given)."""
    file, _, variant = flag_value.partition(":")
    return file, variant


def apply_variant(
    config: ConfigDict, variant: str, variants: Mapping[str, Mapping[str, Any]]
) -> ConfigDict:
    """Changes `config` to one of its variants, in place.

    Args:
      config: The default configuration.
      variant: Name of the variant; the empty string leaves the default.
      variants: For each variant, the dotted keys it changes and their values.

    Returns:
      `config`.

    Raises:
      ValueError: The variant is unknown (the message lists the known ones).
      ConfigError: A variant changes a key that does not exist or gives it another type.
    """
    if variant and variant not in variants:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(sorted(variants))}")
    for key, value in variants.get(variant, {}).items():
        _assign(config, key, value)
    return config


def take_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Separates `--config.key=value` arguments from the others.

    Returns:
      The other arguments, and the (dotted key without the prefix, text) pairs in their order.

    Raises:
      ConfigError: An override has no `=`.
    """
    rest, overrides = [], []
    for argument in argv:
        name = argument.lstrip("-")
        if not argument.startswith("-") or not name.startswith(f"{PREFIX}."):
            rest.append(argument)
            continue
        key, equals, text = name.removeprefix(f"{PREFIX}.").partition("=")
        if not equals:
            raise ConfigError(f"{argument} has no value; write --{PREFIX}.{key}=VALUE")
        overrides.append((key, text))
    return rest, overrides


def apply_overrides(config: ConfigDict, overrides: Sequence[tuple[str, str]]) -> ConfigDict:
    """Sets keys from text, in place; every value must have the type of the key's default.

    A float accepts an integer, a tuple or list accepts `1,2,3` or `(1, 2, 3)` with elements of the
    default's element type, a key without a default value (None) accepts any literal or text, and
    only such a key can be set to None.

    Args:
      config: The configuration.
      overrides: (dotted key, text) pairs.

    Returns:
      `config`.

    Raises:
      ConfigError: Unknown key (with the nearest known ones) or a value of the wrong type.
    """
    for key, text in overrides:
        owner, leaf = _find(config, key)
        name = f"{PREFIX}.{key}"
        _assign(config, key, _parse(name, text, owner[leaf], owner.get_type(leaf)))
    return config


def to_plain(value: Any, name: str = "value") -> Any:
    """Turns configurations, mappings, sequences, paths and numpy values into what JSON knows.

    Args:
      value: What to convert.
      name: Its name in error messages.

    Raises:
      TypeError: Something in it has no JSON form; the message has its key.
      ValueError: A float in it is not finite; the message has its key.
    """
    if isinstance(value, ConfigDict | Mapping):
        return {str(key): to_plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, np.generic) or hasattr(value, "__array__"):
        return to_plain(np.asarray(value).tolist(), name)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not np.isfinite(value):
        raise ValueError(f"{name} is {value}, which JSON cannot hold; use None")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} has type {type(value).__name__}, which JSON cannot hold")


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of every leaf of a configuration."""
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _find(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    """Finds the group that holds a dotted key, and the last part of the key."""
    *groups, leaf = key.split(".")
    node: Any = config
    for depth, part in enumerate([*groups, leaf]):
        if not isinstance(node, ConfigDict):
            parent = ".".join([PREFIX, *groups[:depth]])
            raise ConfigError(f"{PREFIX}.{key}: {parent} is a value, it has no keys of its own")
        if part not in node:
            known = [name for name, _ in flatten(config)]
            near = [name for name in known if name.rpartition(".")[2] == leaf]
            near = near or difflib.get_close_matches(key, known, n=2, cutoff=0.7)
            hint = _hint([f"{PREFIX}.{name}" for name in near], known, "keys")
            raise ConfigError(f"unknown key {PREFIX}.{key}{hint}")
        owner, node = node, node[part]
    if isinstance(node, ConfigDict):
        keys = ", ".join(f"{PREFIX}.{key}.{name}" for name, _ in flatten(node))
        raise ConfigError(f"{PREFIX}.{key} is a group; set one of its keys: {keys}")
    return owner, leaf


def _assign(config: ConfigDict, key: str, value: Any) -> None:
    """Sets a dotted key to a value of the type it has; ConfigDict makes a float of an int."""
    owner, leaf = _find(config, key)
    try:
        owner[leaf] = value
    except TypeError as error:
        raise ConfigError(f"{PREFIX}.{key}: {one_line(error)}") from error


def _parse(name: str, text: str, default: Any, kind: type) -> Any:
    """Reads `text` as a value of type `kind`; `default` gives the element type of sequences."""
    if default is None and text in ("None", "none"):
        return None
    if kind is type(None):
        return _literal(text)
    if kind is str:
        return text
    if kind is bool:
        if text.lower() in (*_TRUE, *_FALSE):
            return text.lower() in _TRUE
        raise ConfigError(f"{name} expects true or false, got {text!r}")
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ConfigError(f"{name} expects {_article(kind)}, got {text!r}") from None
    if kind in (tuple, list):
        return _parse_sequence(name, text, default, kind)
    raise ConfigError(f"{name} is {_article(kind)} and cannot be set on the command line")


def _parse_sequence(name: str, text: str, default: Any, kind: type) -> Any:
    """Reads `1,2`, `(1, 2)`, `[1, 2]` or an empty text as a tuple or list."""
    inner = text.strip()
    if inner[:1] + inner[-1:] in ("()", "[]"):
        inner = inner[1:-1]
    if any(isinstance(item, list | tuple) for item in default or ()):  # nested: a Python literal
        value = _literal(f"[{inner}]")
        if not isinstance(value, list):
            raise ConfigError(f"{name} expects a Python literal like {default!r}, got {text!r}")
        return kind(value)
    parts = [part.strip() for part in inner.split(",")]
    if parts[-1] == "":  # a trailing comma, or nothing at all
        parts.pop()
    types = {type(item) for item in default or ()}
    if types == {int, float}:
        types = {float}
    if len(types) != 1:
        return kind(_literal(part) for part in parts)
    item_type = types.pop()
    parts = [part.strip("'\"") for part in parts] if item_type is str else parts
    return kind(_parse(f"{name}[{i}]", part, default[0], item_type) for i, part in enumerate(parts))


def _literal(text: str) -> Any:
    """A Python literal if the text is one, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _hint(near: Sequence[str], known: Sequence[str], what: str) -> str:
    """`; did you mean ...?` if something known is near, else the list of what is known."""
    if near:
        return f"; did you mean {' or '.join(near[:3])}?"
    return f"; known {what}: {', '.join(known)}" if known else ""


def _article(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'aeiou' else 'a'} {kind.__name__}"


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())
