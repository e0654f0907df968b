"""Downloading archives by the package registries' own clients: pip, npm and apt-get.

None of them installs or executes what it downloads.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys

from common.artefact import Artefact

_TIMEOUT = 1800.0  # seconds for one download

# pip asks the build backend of a source distribution for its metadata, which would run the
# package's setup.py. This stand-in for setuptools answers from the table instead, so that no
# fetched code runs.
_BACKEND = """\
import os, pathlib, sys
def get_requires_for_build_wheel(config_settings=None):
    return []
def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    name, version = {name!r}, {version!r}
    folder = pathlib.Path(metadata_directory, f"{{name.replace('-', '_')}}-{{version}}.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\\nName: {{name}}\\nVersion: {{version}}\\n")
    return folder.name
__legacy__ = sys.modules[__name__]
"""


class RegistryError(RuntimeError):
    """An artefact could not be obtained; the message names the command and the way around it."""


class ChecksumMismatch(RegistryError):
    """An archive or its unpacked members are not the ones in the table."""


def download(artefact: Artefact, folder: pathlib.Path) -> pathlib.Path:
    """Downloads the archive into the new folder by the registry's client and returns its path."""
    folder.mkdir()
    command, environment = _command(artefact, folder)
    print(
        f"fetching {artefact.name} ({artefact.size / 1e6:.1f} MB) by {artefact.client}: "
        f"{artefact.package} {artefact.version}",
        file=sys.stderr,
    )
    hint = (
        f"To supply it by hand, put {artefact.filename} (SHA-256 {artefact.sha256}) into a folder "
        f"and set MANIFOLDRY_LOCAL to that folder."
    )
    shown = " ".join(command)
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            text=True,
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except FileNotFoundError as error:
        raise RegistryError(
            f"{artefact.name}: the client {command[0]!r} is not installed, needed for "
            f"`{shown}`. {hint}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise RegistryError(
            f"{artefact.name}: `{shown}` did not finish in {_TIMEOUT:.0f} s. {hint}"
        ) from error
    files = [path for path in folder.iterdir() if path.suffix in (".whl", ".gz", ".tgz", ".deb")]
    if done.returncode or len(files) != 1:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        kind = ChecksumMismatch if "DO NOT MATCH THE HASHES" in done.stderr else RegistryError
        raise kind(
            f"{artefact.name}: `{shown}` failed (exit code {done.returncode}, {len(files)} "
            f"archives): {' / '.join(line.strip() for line in lines[-8:])}. {hint}"
        )
    return files[0]


def _command(artefact: Artefact, folder: pathlib.Path) -> tuple[list[str], dict[str, str]]:
    """Returns the download command, to be run in `folder`, and what it adds to the environment."""
    if artefact.client == "npm":
        return [
            "npm",
            "pack",
            "--ignore-scripts",
            "--silent",
            f"{artefact.package}@{artefact.version}",
        ], {}
    if artefact.client == "apt":
        return ["apt-get", "download", f"{artefact.package}={artefact.version}"], {}
    # A hash in the requirement makes pip refuse other bytes before it looks into them.
    requirement = folder / "requirement.txt"
    requirement.write_text(
        f"{artefact.package}=={artefact.version} --hash=sha256:{artefact.sha256}\n"
    )
    pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else ["pip"]
    command = [
        *pip,
        "download",
        "--no-deps",
        "--ignore-requires-python",
        "--progress-bar=off",
        "--disable-pip-version-check",
        "-r",
        requirement.name,
        "-d",
        ".",
    ]
    if artefact.client == "pip":
        return [*command, "--only-binary=:all:"], {}
    backend = folder / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").write_text("")
    (backend / "build_meta.py").write_text(
        _BACKEND.format(name=artefact.package, version=artefact.version)
    )
    return (
        [*command, "--no-binary=:all:", "--no-build-isolation", "--use-pep517"],
        {"PYTHONPATH": str(backend.parent)},
    )
