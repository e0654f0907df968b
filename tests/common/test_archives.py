"""Archives: every kind is read, only what is asked for comes out, and nothing else is touched."""

import os
import shutil
import subprocess
import tarfile

import pytest

from common import archives
from tests.common.toy_archives import (
    FILES,
    MEMBERS,
    UNPACKED,
    tar_bytes,
    tree,
    write_deb,
    write_zip,
)


@pytest.mark.parametrize(
    "kind", ["zip", "tar", "gz", "xz", "bz2", "deb.gz", "deb.xz", "deb.zst", "deb"]
)
def test_every_kind_of_archive(tmp_path, kind):
    path, folder = tmp_path / "archive", tmp_path / "out"
    folder.mkdir()
    if kind == "zip":
        write_zip(path, FILES)
    elif kind.startswith("deb"):
        dotted = {f"./{name}": data for name, data in FILES.items()}
        suffix = kind.removeprefix("deb")
        data = tar_bytes(dotted, "w:" if suffix in ("", ".zst") else f"w:{suffix[1:]}")
        if suffix == ".zst":
            if shutil.which("zstd") is None:
                pytest.skip("the command zstd is not installed")
            data = subprocess.run(
                ["zstd", "-c"], input=data, capture_output=True, check=True
            ).stdout
        write_deb(path, f"data.tar{suffix}", data)
    else:
        path.write_bytes(tar_bytes(FILES, "w:" if kind == "tar" else f"w:{kind}"))
    assert archives.unpack(path, MEMBERS, folder) == sorted(UNPACKED)
    assert tree(folder) == UNPACKED


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "..\\evil.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_paths_that_leave_the_folder_are_refused(tmp_path, name, kind):
    path, folder = tmp_path / "archive", tmp_path / "deep" / "out"
    folder.mkdir(parents=True)
    if kind == "zip":
        write_zip(path, {name: b"evil"})
    else:
        path.write_bytes(tar_bytes({name: b"evil"}, "w:gz"))
    with pytest.raises(archives.ArchiveError, match="unsafe"):
        archives.unpack(path, {name: "fine.txt"}, folder)
    assert tree(tmp_path / "deep") == {}


def test_links_and_devices_are_no_members(tmp_path):
    link = tarfile.TarInfo("pkg/link")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
    device = tarfile.TarInfo("pkg/device")
    device.type = tarfile.CHRTYPE
    path, folder = tmp_path / "archive", tmp_path / "out"
    folder.mkdir()
    path.write_bytes(tar_bytes({"pkg/link/evil": b"evil"}, "w:gz", (link, device)))
    for name in ("pkg/link", "pkg/device"):
        with pytest.raises(archives.ArchiveError, match=f"no member '{name}'"):
            archives.unpack(path, {name: "x"}, folder)
    archives.unpack(path, {"pkg/link/evil": "harmless"}, folder)
    assert tree(folder) == {"harmless": b"evil"} and not (tmp_path / "evil").exists()


def test_a_missing_member_is_named(tmp_path):
    path = tmp_path / "archive"
    write_zip(path, FILES)
    with pytest.raises(archives.ArchiveError, match=r"archive: no member 'pkg/\*.npy' among its 4"):
        archives.unpack(path, {"pkg/*.npy": ""}, tmp_path)


def test_two_members_with_one_target_are_refused(tmp_path):
    path = tmp_path / "archive"
    write_zip(path, FILES)
    with pytest.raises(archives.ArchiveError, match="several members are to become 'x'"):
        archives.unpack(path, {"pkg/a.bin": "x", "pkg/setup.py": "x"}, tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "deb", "text"])
def test_a_damaged_archive_is_an_error(tmp_path, kind):
    path, folder = tmp_path / "archive", tmp_path / "out"
    folder.mkdir()
    files = {"pkg/a.bin": os.urandom(50_000), **{k: v for k, v in FILES.items() if "sub" in k}}
    if kind == "zip":
        write_zip(path, files)
    elif kind == "deb":
        write_deb(path, "data.tar.xz", tar_bytes(files, "w:xz"))
    elif kind == "tar.gz":
        path.write_bytes(tar_bytes(files, "w:gz"))
    else:
        path.write_bytes(b"<html>not found</html>" * 100)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(archives.ArchiveError, match="archive"):
        archives.unpack(path, MEMBERS, folder)
