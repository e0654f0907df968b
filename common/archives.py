"""Unpacking chosen members of zip, tar and Debian archives, without trusting the archives.

Only regular files that a pattern asks for are written, under the name the caller chose, so that
neither `../` paths nor links nor devices of an archive can reach anything outside the target
folder.
"""

import fnmatch
import hashlib
import io
import lzma
import pathlib
import re
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from typing import IO

_BLOCK = 1 << 20


class ArchiveError(ValueError):
    """An archive is damaged, of an unknown type, unsafe, or lacks a needed member."""


def sha256_of(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(folder: pathlib.Path, files: Iterable[str]) -> str:
    """Returns one digest of several files: SHA-256 over the lines `<sha256>  <relative path>`.

    The lines are sorted by path (as bytes), which is the output of `sha256sum` in the C locale.
    """
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in sorted(files, key=str.encode)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_safe(name: str) -> bool:
    """Whether a member's path is relative, stays below the folder, and has no drive or NUL."""
    parts = name.replace("\\", "/").split("/")
    return (
        bool(name)
        and not name.startswith(("/", "\\"))
        and ".." not in parts
        and "\0" not in name
        and not re.match(r"^[A-Za-z]:", name)
    )


def assign(names: Iterable[str], members: Mapping[str, str], archive: str) -> dict[str, str]:
    """Maps the paths of an archive's members to the targets that `members` gives them.

    Args:
        names: paths of the regular files in the archive.
        members: patterns and targets as in `common.artefacts.Artefact.members`.
        archive: file name, for error messages.

    Returns:
        path in the archive -> relative target path; members that no pattern names are left out.

    Raises:
        ArchiveError: a pattern matches nothing, a name is unsafe, or two members share a target.
    """
    found: dict[str, str] = {}
    names = list(names)
    for pattern, target in members.items():
        if "*" in pattern:
            # fnmatch lets `*` match `/` too; equal depth restricts it to one folder.
            matched = [
                name
                for name in names
                if name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)
            ]
            targets = {name: target + name.rsplit("/", 1)[-1] for name in matched}
        else:
            targets = {name: target for name in names if name == pattern}
        if not targets:
            raise ArchiveError(f"{archive}: no member {pattern!r} among its {len(names)} files")
        for name, goal in targets.items():
            if not is_safe(name) or not is_safe(goal):
                raise ArchiveError(f"{archive}: unsafe member path {name!r} -> {goal!r}")
            if goal in found.values():
                raise ArchiveError(f"{archive}: several members are to become {goal!r}")
            found[name] = goal
    return found


def unpack(archive: pathlib.Path, members: Mapping[str, str], folder: pathlib.Path) -> list[str]:
    """Writes the needed members of an archive below `folder`.

    Args:
        archive: `.whl`/`.zip`, `.tar*`/`.tgz` or `.deb` file; the first bytes tell which.
        members: patterns and targets as in `common.artefacts.Artefact.members`.
        folder: existing folder.

    Returns:
        The relative paths written, sorted.

    Raises:
        ArchiveError: see `assign`; also if the archive is damaged or its type is unknown.
    """
    with open(archive, "rb") as file:
        magic = file.read(8)
    try:
        if magic == b"!<arch>\n":
            with _debian_data(archive) as data:
                return _unpack_tar(data, archive.name, members, folder)
        if magic[:4] == b"PK\x03\x04":
            return _unpack_zip(archive, members, folder)
        with open(archive, "rb") as file:
            return _unpack_tar(file, archive.name, members, folder)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        lzma.LZMAError,
        zlib.error,
        EOFError,
        OSError,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ArchiveError(
            f"{archive}: damaged or not a zip, tar or Debian archive "
            f"({archive.stat().st_size} bytes): {error}"
        ) from error


def _unpack_zip(
    archive: pathlib.Path, members: Mapping[str, str], folder: pathlib.Path
) -> list[str]:
    with zipfile.ZipFile(archive) as opened:
        names = [info.filename for info in opened.infolist() if not info.is_dir()]
        targets = assign(names, members, archive.name)
        for name, target in targets.items():
            with opened.open(name) as source:
                _write(folder / target, source)
    return sorted(targets.values())


def _unpack_tar(
    file: IO[bytes], label: str, members: Mapping[str, str], folder: pathlib.Path
) -> list[str]:
    with tarfile.open(fileobj=file, mode="r:*") as opened:
        # Links and devices are not regular files and so are never candidates.
        infos = {info.name.removeprefix("./"): info for info in opened.getmembers() if info.isreg()}
        targets = assign(infos, members, label)
        # In the order of the archive: a compressed tar cannot seek backwards cheaply.
        for name, info in infos.items():
            if name in targets:
                source = opened.extractfile(info)
                assert source is not None  # a regular file always has a stream
                with source:
                    _write(folder / targets[name], source)
    return sorted(targets.values())


def _write(path: pathlib.Path, source: IO[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as target:
        shutil.copyfileobj(source, target, _BLOCK)


def _debian_data(archive: pathlib.Path) -> IO[bytes]:
    """Returns the data tar of a `.deb`, which is an `ar` archive with 60-byte headers (deb(5))."""
    with open(archive, "rb") as file:
        file.seek(8)
        while header := file.read(60):
            if len(header) < 60 or header[58:] != b"`\n":
                raise ArchiveError(f"{archive}: damaged ar header at byte {file.tell()}")
            name = header[:16].decode("ascii", "replace").strip().rstrip("/")
            size = int(header[48:58])
            if name.startswith("data.tar"):
                data = file.read(size)
                if len(data) != size:
                    raise ArchiveError(f"{archive}: {name} has {len(data)} of {size} bytes")
                return io.BytesIO(_zstd(data) if name.endswith(".zst") else data)
            file.seek(size + size % 2, io.SEEK_CUR)  # members start at even offsets
    raise ArchiveError(f"{archive}: no data.tar member")


def _zstd(data: bytes) -> bytes:
    """Decompresses zstandard data (Ubuntu's packages) by the command line tool `zstd`."""
    if shutil.which("zstd") is None:
        raise ArchiveError("this Debian archive is compressed by zstd; install the command `zstd`")
    done = subprocess.run(["zstd", "-d", "-c"], input=data, capture_output=True, check=False)
    if done.returncode:
        raise ArchiveError(f"zstd failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
