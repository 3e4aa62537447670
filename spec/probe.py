"""python3 probe.py: try, as root in a subhost, what could reach the main host's kernel or processes.

Prints one JSON object: for each attempt "done", or the name of the error. Each is harmless where it
succeeds: a module that is not there is removed, a clock gets a rate that no clock can have, files are
opened and not written to.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import socket
import sys
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {  # of system calls that the C library has no function for
    "x86_64": {"delete_module": 176, "finit_module": 313, "keyctl": 250, "iopl": 172},
    "aarch64": {"delete_module": 106, "finit_module": 273, "keyctl": 219},
}[platform.machine()]
KEYCTL_GET_KEYRING_ID, SESSION = 0, -3
ADJ_TICK = 0x4000


def check(result: int) -> int:
    """A call's result, or its error as OSError."""
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result


def call(name: str, *arguments: object) -> int:
    """A system call by its name."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return check(libc.syscall(ctypes.c_long(NUMBERS[name]), *words))


def set_clock() -> None:
    """EINVAL where it would be allowed, since no clock ticks so fast."""
    timex = (ctypes.c_long * 64)()
    timex[0], timex[11] = ADJ_TICK, 1
    check(libc.adjtimex(timex))


def load_module() -> None:
    """EBADF where it would be allowed."""
    call("finit_module", -1, b"", 0)


def remove_module() -> None:
    """ENOENT where it would be allowed."""
    call("delete_module", b"overlay_boot_none", os.O_NONBLOCK)


def ports() -> None:
    """All of the machine's ports for this process."""
    call("iopl", 3)


def opened(path: str, flags: int) -> Callable[[], None]:
    """An attempt to open a file."""
    return lambda: os.close(os.open(path, flags))


def device(kind: int, major: int, minor: int, flags: int) -> Callable[[], None]:
    """An attempt to make a device and to open it."""

    def attempt() -> None:
        path = f"/probe-{major}-{minor}"
        os.mknod(path, 0o600 | kind, os.makedev(major, minor))
        try:
            os.close(os.open(path, flags))
        finally:
            os.unlink(path)

    return attempt


def abstract(name: str) -> Callable[[], None]:
    """An attempt to connect to an abstract socket."""
    return lambda: socket.socket(socket.AF_UNIX).connect(f"\0{name}")


ATTEMPTS: dict[str, Callable[[], object]] = {
    "set the clock": set_clock,
    "load a module": load_module,
    "remove a module": remove_module,
    "memory": device(0o020000, 1, 1, os.O_RDONLY),
    "kcore": opened("/proc/kcore", os.O_RDONLY),
    "abstract socket": abstract(sys.argv[1] if len(sys.argv) > 1 else "overlay-boot-none"),
}
if "iopl" in NUMBERS:
    ATTEMPTS["ports"] = ports


def outcome(attempt: Callable[[], object]) -> str:
    """What came of an attempt."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


if __name__ == "__main__":
    found: dict[str, object] = {name: outcome(attempt) for name, attempt in ATTEMPTS.items()}
    found["session keyring"] = call("keyctl", KEYCTL_GET_KEYRING_ID, SESSION, 0)
    print(json.dumps(found))
