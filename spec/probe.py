"""python3 probe.py [WORD...]: try, as root in a subhost, what could reach the main host's kernel or processes.

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
import struct
import sys
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {  # of system calls that the C library has no function for
    "x86_64": {
        "add_key": 248,
        "bpf": 321,
        "delete_module": 176,
        "finit_module": 313,
        "iopl": 172,
        "keyctl": 250,
    },
    "aarch64": {
        "add_key": 217,
        "bpf": 280,
        "delete_module": 106,
        "finit_module": 273,
        "keyctl": 219,
    },
}[platform.machine()]
KEYCTL_GET_KEYRING_ID, KEYCTL_SEARCH, SESSION, USER = 0, 10, -3, -4
UEVENTS = 15  # of netlink(7)
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
        path = f"/dev/probe-{major}-{minor}"
        os.mknod(path, 0o600 | kind, os.makedev(major, minor))
        try:
            os.close(os.open(path, flags))
        finally:
            os.unlink(path)

    return attempt


def abstract(name: str) -> Callable[[], None]:
    """An attempt to connect to an abstract socket."""
    return lambda: socket.socket(socket.AF_UNIX).connect(f"\0{name}")


def map_of_bpf() -> None:
    """An array of one."""
    call("bpf", 0, struct.pack("=IIII", 2, 4, 4, 1) + bytes(112), 128)


def watch_files() -> None:
    """Every file of the file system on which a given one is; nothing is waited for."""
    group = check(libc.fanotify_init(0, os.O_RDONLY))
    mark, opened = 0x1 | 0x100, ctypes.c_uint64(0x20)  # ADD, FILESYSTEM; FAN_OPEN
    check(libc.fanotify_mark(group, mark, opened, -100, b"/"))


def raw_disk() -> None:
    """The first that the kernel has."""
    with open("/proc/partitions") as lines:
        major, minor = next(line.split() for line in list(lines)[2:])[:2]
    device(0o060000, int(major), int(minor), os.O_RDONLY)()


def watch_devices() -> None:
    """The next event of a device of the machine's."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, UEVENTS) as events:
        events.bind((0, 1))
        events.settimeout(10)
        with open("/watching", "w"):
            pass
        events.recv(1 << 16)


def key_of(name: str) -> Callable[[], object]:
    """An attempt to find a key in root's own keyring."""
    return lambda: call("keyctl", KEYCTL_SEARCH, USER, b"user", name.encode(), 0)


def keep_key(name: str) -> Callable[[], object]:
    """Puts a key there."""
    return lambda: call("add_key", b"user", name.encode(), b"x", 1, USER)


def handle_of(path: str) -> str:
    """What names a file of a file system: open_by_handle_at(2)."""
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 136)
    check(libc.name_to_handle_at(-100, path.encode(), handle, ctypes.byref(ctypes.c_int()), 0))
    return handle.raw.hex()


def read_handle(handle: str, mount: str) -> str:
    """The contents of a file, by its handle and a folder on the same file system."""
    place = os.open(mount, os.O_RDONLY)
    with open(check(libc.open_by_handle_at(place, bytes.fromhex(handle), os.O_RDONLY))) as file:
        return file.read()


OPEN: dict[str, Callable[[], object]] = {
    "a device": device(0o020000, 1, 3, os.O_RDWR),
    "a disk": raw_disk,
    "BPF": map_of_bpf,
    "watch files": watch_files,
}
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
    found: dict[str, object] = {}
    match sys.argv[1:]:
        case ["open"]:
            found |= {name: outcome(attempt) for name, attempt in OPEN.items()}
        case ["watch devices"]:
            found["event"] = outcome(watch_devices)
        case ["key", name]:
            found["key"] = outcome(key_of(name))
        case ["keep key", name]:
            found["key"] = outcome(keep_key(name))
        case ["handle", path]:
            found["handle"] = handle_of(path)
        case ["handle", handle, mount]:
            found["text"] = read_handle(handle, mount)
        case _:
            found |= {name: outcome(attempt) for name, attempt in ATTEMPTS.items()}
            found["session keyring"] = call("keyctl", KEYCTL_GET_KEYRING_ID, SESSION, 0)
    print(json.dumps(found))
