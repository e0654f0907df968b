"""Huge pages for the arrays of a process on a CPU.

XLA asks the C library for the buffers of a program each time it runs, and returns them. Large ones
are then new pages every time, which the kernel clears and maps one by one; in pages of 2 MiB
instead of 4 KiB this takes a small part of the time. The C library of GNU (2.35 and newer) asks for
them if an environment variable said so when the process started.
"""

import os
import sys

VARIABLE = "GLIBC_TUNABLES"
SETTING = "glibc.malloc.hugetlb=1"


def supported() -> bool:
    """Whether this process's C library knows the setting."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (AttributeError, ValueError):  # not on this system, or another C library
        return False
    return name == "glibc" and tuple(int(part) for part in version.split(".")[:2]) >= (2, 35)


def use_huge_pages() -> None:
    """Starts this process again with the setting; call it before anything else happens.

    Process number, arguments and open files stay. Without effect where the setting is unknown, and
    where the user has set the variable, to whatever value.
    """
    if VARIABLE in os.environ or not supported():
        return
    os.environ[VARIABLE] = SETTING
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
