"""The system calls that change something, and the errors that each is made to fail with.

A process that is killed before a call is, for all others, in the same state as one that was killed
after the call before it: so a kill at the entry of each, exit_group(2) included, is one at every exit.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

KILL = "kill"


class Where(NamedTuple):
    """A condition on an argument: its number, a mask, and what is to be left under it."""

    argument: int
    mask: int
    value: int


_ALL = (1 << 64) - 1
_O_PATH = 0o10000000


def _opened(argument: int) -> list[Where]:
    """To create, to write, or as a place: a plain reading of a file changes nothing."""
    return [
        Where(argument, 3, 1),
        Where(argument, 3, 2),
        Where(argument, 0o100, 0o100),
        Where(argument, _O_PATH, _O_PATH),
    ]


CONDITIONS: dict[str, list[Where]] = {
    "open": _opened(1),
    "openat": _opened(2),
    "fcntl": [Where(1, _ALL, 0), Where(1, _ALL, 1030)],  # F_DUPFD, F_DUPFD_CLOEXEC
    "ioctl": [Where(1, _ALL, 0x8914)],  # SIOCSIFFLAGS
    "prctl": [Where(0, _ALL, 36), Where(0, _ALL, 24)],  # PR_SET_CHILD_SUBREAPER, PR_CAPBSET_DROP
}

_ROOM = ("ENOSPC", "EPERM")
_FILES = ("EMFILE", "ENOMEM")
_OPEN = ("EMFILE", "ENOSPC", "EINTR")
_FORK = ("EAGAIN", "ENOMEM")
_BUSY = ("EBUSY", "EPERM")
_NOT = ("EPERM",)
ERRORS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(["open", "openat", "openat2"], _OPEN),
    **dict.fromkeys(["mkdir", "mkdirat", "mknod", "mknodat", "symlink", "symlinkat"], _ROOM),
    **dict.fromkeys(["link", "linkat", "rename", "renameat", "renameat2"], _ROOM),
    **dict.fromkeys(["ftruncate", "truncate"], ("ENOSPC", "EINTR")),
    **dict.fromkeys(["write", "writev", "pwrite64", "sendto", "sendmsg"], ("ENOSPC", "EINTR")),
    **dict.fromkeys(["unlink", "unlinkat", "rmdir", "umount2"], _BUSY),
    **dict.fromkeys(["chmod", "fchmod", "fchmodat", "chown", "fchown", "fchownat"], _NOT),
    **dict.fromkeys(
        ["mount", "mount_setattr", "move_mount", "pivot_root"], ("EBUSY", "ENOMEM", "EPERM")
    ),
    **dict.fromkeys(["open_tree", "memfd_create", "pidfd_open", "signalfd4"], _FILES),
    **dict.fromkeys(["pipe", "pipe2", "dup", "dup2", "dup3", "fcntl", "socket", "bind"], _FILES),
    **dict.fromkeys(["fork", "vfork", "clone", "clone3"], _FORK),
    **dict.fromkeys(["execve", "unshare", "setns"], ("ENOMEM", "EPERM")),
    **dict.fromkeys(["chdir", "fchdir", "chroot", "sethostname", "ioctl", "prctl"], _NOT),
    **dict.fromkeys(["capset"], _NOT),
    **dict.fromkeys(["setsid", "setpgid", "kill", "pidfd_send_signal"], _NOT),
    **dict.fromkeys(["wait4", "waitid"], ("EINTR",)),
    "flock": ("EINTR", "ENOLCK"),
    "exit_group": (),
}
"""By system call; what a kernel does not have is passed over."""

ARGUMENT_PATHS = {
    **dict.fromkeys(["openat", "openat2", "mkdirat", "mknodat", "unlinkat", "fchmodat"], 1),
    **dict.fromkeys(["mount", "linkat", "symlink", "link", "rename", "symlinkat"], 1),
    **dict.fromkeys(["open", "mkdir", "unlink", "rmdir", "umount2", "chdir", "execve"], 0),
    **dict.fromkeys(["pivot_root", "write", "pwrite64", "open_tree", "memfd_create"], 0),
} | {"write": 1, "pwrite64": 1, "open_tree": 1}
"""Which argument tells a reader most: a path, or what is written."""


def number_of(error: str) -> int:
    """The errno(3) of a name."""
    return int(getattr(errno, error))
