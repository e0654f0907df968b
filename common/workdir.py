"""Working directories: each belongs to one configuration and to one running process at a time."""

import errno
import fcntl
import os
import pathlib
from typing import IO

from ml_collections import ConfigDict

from common.config import ConfigError, one_line
from common.storage import load_json, save_json

_locks: list[IO[str]] = []  # held open until the process ends


def claim(workdir: str | os.PathLike[str], config: ConfigDict) -> pathlib.Path:
    """Makes `workdir` the home of this configuration's runs and holds it until the process ends.

    Writes `workdir/config.json` (the configuration's name and values). A directory that was used
    with other values of the same configuration is accepted: the stages decide what to do again.

    Returns:
      The directory.

    Raises:
      ConfigError: It is a file, belongs to another configuration, or another process runs in it.
    """
    path = pathlib.Path(workdir)
    record = path / "config.json"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(f"--workdir={path} cannot be a directory: {error.strerror}") from error
    if record.exists():
        try:
            owner = load_json(record)["name"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{record} is damaged ({one_line(error)}); remove it") from error
        if owner != config.name:
            raise ConfigError(
                f"--workdir={path} holds a run of {owner!r}, not of {config.name!r}; choose another"
            )
    _lock(path)
    save_json(record, {"name": config.name, "values": config})
    return path


def _lock(path: pathlib.Path) -> None:
    """Takes the directory's lock for the life of this process."""
    handle = open(path / ".lock", "a+", encoding="utf-8")  # noqa: SIM115  (closed at exit)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        holder = handle.read().strip()
        handle.close()
        raise ConfigError(f"--workdir={path} is in use by another run (process {holder})") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        print(f"{path}: this file system has no locks; do not start a second run in it")
    handle.truncate(0)
    handle.write(f"{os.getpid()}\n")
    handle.flush()
    _locks.append(handle)
