"""One archive of a package registry: where it is, what is needed of it, and its terms."""

from collections.abc import Mapping
from dataclasses import dataclass

CLIENTS = ("pip", "pip-sdist", "npm", "apt")


@dataclass(frozen=True)
class Artefact:
    """One archive of a package registry and the members of it that are needed.

    Attributes:
        name: name under which the project knows it.
        client: registry client that downloads it, one of `CLIENTS`.
        package: name in that registry.
        version: exact version in that registry.
        filename: file name of the archive as the client writes it.
        size: size of the archive in bytes.
        sha256: SHA-256 of the archive, hexadecimal.
        members: pattern of a member's path in the archive -> target. A pattern without `*` names
            one member and the target is its new relative path; a pattern with `*` (never matches
            `/`) must match at least one member, and the target, ending in `/` or empty, is the
            folder in which the members keep their base names.
        content_sha256: digest of the unpacked members, see `common.archives.content_digest`.
        content: one line that says what is in it.
        licence: what the package itself states.
        source: where package and material come from.
        terms: conditions of use known to apply to the material.
    """

    name: str
    client: str
    package: str
    version: str
    filename: str
    size: int
    sha256: str
    members: Mapping[str, str]
    content_sha256: str
    content: str
    licence: str
    source: str
    terms: str

    def __post_init__(self) -> None:
        if self.client not in CLIENTS:
            raise ValueError(
                f"{self.name}: unknown client {self.client!r}, expected one of {CLIENTS}"
            )
        for field in ("sha256", "content_sha256"):
            if len(getattr(self, field)) != 64:
                raise ValueError(f"{self.name}: {field} is not a SHA-256: {getattr(self, field)!r}")
