"""Small archives of every kind, for the tests of the registry and of what unpacks them."""

import io
import pathlib
import tarfile
import zipfile

FILES = {
    "pkg/a.bin": b"alpha" * 100,
    "pkg/sub/1.txt": b"one",
    "pkg/sub/2.txt": b"two",
    "pkg/setup.py": b"raise SystemExit('executed')",
}
MEMBERS = {"pkg/a.bin": "a.bin", "pkg/sub/*.txt": "texts/"}
UNPACKED = {"a.bin": FILES["pkg/a.bin"], "texts/1.txt": b"one", "texts/2.txt": b"two"}


def write_zip(path: pathlib.Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in files.items():
            opened.writestr(name, data)


def tar_bytes(files: dict[str, bytes], mode: str, extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as opened:
        for info in extra:
            opened.addfile(info)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_deb(path: pathlib.Path, data_name: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(b"!<arch>\n")
        for name, content in (("debian-binary", b"2.0"), (data_name, data)):  # odd size: padded
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{0o100644:<8o}{len(content):<10}`\n".encode())
            file.write(content + b"\n" * (len(content) % 2))


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
