"""Networks and generators of the user's own, named in a configuration as `MODULE:FUNCTION`.

MODULE is an importable name (`mypackage.nets`) or a Python file (`nets.py`). The function of a
network takes the size of its input in pixels and returns a `Tapped`; that of a generator takes
nothing and returns a `Generator`.
"""

import hashlib
import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from common.archives import sha256_of
from rosetta.zoo.tapped import Generator, Tapped

__all__ = ["find", "fingerprint", "generator", "is_own", "network"]

# Marks of other things in the names of tables, nulls and twins.
_FORBIDDEN = "/~!*"


def is_own(name: str) -> bool:
    """Whether a name in a configuration is `MODULE:FUNCTION`."""
    return ":" in name


def find(reference: str) -> Callable[..., Any]:
    """The function that `MODULE:FUNCTION` names.

    Raises:
      ValueError: no such module, file or function; what the module itself raises comes with it.
    """
    where, _, name = reference.rpartition(":")
    function = getattr(_module(where, reference), name, None)
    if not callable(function):
        raise ValueError(f"{reference}: {where} has no function {name!r}")
    return function


def fingerprint(reference: str) -> str:
    """SHA-256 of the source file of a reference, so that a changed one is mined again.

    Raises:
      ValueError: see `find`.
    """
    file = _module(reference.rpartition(":")[0], reference).__file__
    return "" if file is None else sha256_of(pathlib.Path(file))


def network(reference: str, size: int) -> Tapped:
    """The network that a reference makes, for images resized to `size x size`.

    Raises:
      ValueError: no such function, or one that returns something else or a name that cannot be
        used.
    """
    return _made(reference, find(reference)(size), Tapped)


def generator(reference: str) -> Generator:
    """The generator that a reference makes.

    Raises:
      ValueError: as `network`.
    """
    return _made(reference, find(reference)(), Generator)


def _made(reference: str, found: Any, kind: type) -> Any:
    if not isinstance(found, kind):
        raise ValueError(
            f"{reference} returns a {type(found).__name__}, expected rosetta.zoo.tapped."
            f"{kind.__name__}"
        )
    name = found.name  # type: ignore[attr-defined]
    if not name or any(mark in name for mark in _FORBIDDEN):
        raise ValueError(f"{reference}: the name {name!r} is empty or has one of {_FORBIDDEN}")
    return found


def _module(where: str, reference: str) -> ModuleType:
    if where.endswith(".py"):
        return _file(pathlib.Path(where), reference)
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{where}.".startswith(f"{error.name}."):
            raise ValueError(f"{reference}: {where} imports {error.name}, not found") from error
        raise ValueError(f"{reference}: no module {where!r}") from error


def _file(path: pathlib.Path, reference: str) -> ModuleType:
    """A Python file as a module; once in a process."""
    if not path.is_file():
        raise ValueError(f"{reference}: no file {path}")
    name = f"_own_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a name that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
