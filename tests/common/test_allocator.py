"""A process that starts itself again with huge pages."""

import os
import subprocess
import sys

import pytest

from common import allocator

SCRIPT = """
import os, sys
from common import allocator
print("start", flush=True)
allocator.use_huge_pages()
print(os.getpid(), os.environ.get(allocator.VARIABLE), *sys.argv[1:], sys.flags.dev_mode)
"""


def run(tmp_path, value=None):
    """Lines that the script prints, and its process number."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k != allocator.VARIABLE}
    environment["PYTHONPATH"] = os.getcwd()
    environment |= {} if value is None else {allocator.VARIABLE: value}
    command = [sys.executable, "-X", "dev", str(path), "--a=b c", "d"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        out = process.communicate()[0]
    assert process.returncode == 0
    return out.splitlines(), process.pid


def test_starts_once_more_with_all_arguments(tmp_path):
    lines, pid = run(tmp_path)
    known = allocator.supported()
    assert lines[:-1] == (["start", "start"] if known else ["start"])
    assert lines[-1] == f"{pid} {allocator.SETTING if known else None} --a=b c d True"


def test_the_users_setting_stays(tmp_path):
    lines, pid = run(tmp_path, "glibc.malloc.hugetlb=0")
    assert lines == ["start", f"{pid} glibc.malloc.hugetlb=0 --a=b c d True"]


@pytest.mark.parametrize(
    ("version", "expected"),
    [("glibc 2.35", True), ("glibc 3.0", True), ("glibc 2.4", False), ("", False), (None, False)],
)
def test_versions(monkeypatch, version, expected):
    monkeypatch.setattr(os, "confstr", lambda name: version, raising=False)
    assert allocator.supported() is expected


def test_other_systems_are_left_alone(monkeypatch):
    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", unknown, raising=False)
    monkeypatch.delenv(allocator.VARIABLE, raising=False)
    monkeypatch.setattr(os, "execv", lambda *args: pytest.fail("started again"))
    assert not allocator.supported()
    allocator.use_huge_pages()
    assert allocator.VARIABLE not in os.environ
