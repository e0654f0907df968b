"""Walking a folder through links to other folders, each real folder once."""

import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any


def natural(name: str) -> tuple[Any, ...]:
    """Sorting key in which runs of digits count as numbers."""
    parts = re.split(r"(\d+)", name)
    return (*((int(p), "") if p.isdigit() else (-1, p) for p in parts), (-1, name))


def walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Everything below a folder but folders, in a fixed order; links to folders are followed.

    A folder that can be reached by several ways is entered once: by its real place if that is below
    ``folder`` too, else by the way of the fewest links, of those by the shortest, of those by the
    first in natural order. So a link never changes the path of what stands in a real place, and
    links that lead in a circle end.

    A sub-folder (or ``folder`` itself) that may not be read is yielded in place of its content, as
    are links that lead nowhere: what yields is a folder only if it cannot be read.
    """
    entered: set[tuple[int, int]] = set()
    level = [folder]
    while level:
        links: list[pathlib.Path] = []
        for start in sorted(level, key=lambda path: (len(path.parts), natural(path.as_posix()))):
            yield from _real(start, entered, links)
        level = links


def _real(
    start: pathlib.Path, entered: set[tuple[int, int]], links: list[pathlib.Path]
) -> Iterator[pathlib.Path]:
    """Walks real folders; appends the links to folders that it meets to ``links``."""
    waiting = [start]
    while waiting:
        place = waiting.pop()
        try:
            status = os.stat(os.path.join(place, "."))  # fails where entries cannot be looked at
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError:
            yield place
            continue
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        for entry in entries:
            path = place / entry.name
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif os.path.isdir(path):
                links.append(path)
            else:
                yield path


def is_dangling(path: pathlib.Path) -> bool:
    """Whether a path is a link that leads nowhere (or where it may not be followed)."""
    return os.path.islink(path) and not os.path.exists(path)


def reason(path: pathlib.Path) -> str:
    """Why a folder that :func:`walk` yields cannot be read, as the operating system says it.

    Empty if it can be read by now.
    """
    try:
        os.stat(os.path.join(path, "."))
        os.listdir(path)
    except OSError as error:
        return error.strerror or str(error)
    return ""
