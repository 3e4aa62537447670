"""The kernel's calls that Python 3.11 lacks, one thin function each.

Every function raises OSError naming the call and the path. Paths and strings are str; data that
the kernel takes as text is encoded as file names are. See the man page of section 2 by each name.
"""

from __future__ import annotations

import ctypes
import fcntl
import os

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

SIGKILL = 9
SIGTERM = 15
SIGCONT = 18

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

PR_SET_CHILD_SUBREAPER = 36
SIG_SETMASK = 2
OVERLAY_TYPE = "overlay"

_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_SYS_PIVOT_ROOT = {"x86_64": 155, "i686": 217, "armv7l": 218, "ppc64le": 203, "s390x": 217}
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_OPENAT2 = 437
_SYS_PIDFD_SEND_SIGNAL = 424
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_AF_INET = 2
_SOCK_DGRAM = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str, path: str | None = None) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", path)
    return result


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); data is the file system's own option string."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode(),
        ctypes.c_ulong(flags),
        os.fsencode(data),
    )
    _check(result, "mount", target)


def bind(source: str, target: str, recursive: bool = True) -> None:
    """Bind source onto target, with its submounts by default."""
    mount(source, target, flags=MS_BIND | (MS_REC if recursive else 0))


def make_read_only(target: str) -> None:
    """Make the mount that target leads to read-only, whatever its source is elsewhere."""
    mount("", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def detach(target: str) -> None:
    """umount2(2) with MNT_DETACH: target and all below it leave the tree at once."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), "umount2", target)


def open_tree(path: str) -> int:
    """open_tree(2) OPEN_TREE_CLONE: a detached copy of the mounts at path."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    result = _libc.syscall(
        ctypes.c_long(_SYS_OPEN_TREE), _AT_FDCWD, os.fsencode(path), ctypes.c_uint(flags)
    )
    return _check(result, "open_tree", path)


def move_mount(tree: int, target: int) -> None:
    """move_mount(2): attach a detached tree of mounts to an open directory or file."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOVE_MOUNT), tree, b"", target, b"", ctypes.c_uint(flags)
    )
    _check(result, "move_mount")


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2), which the C library does not wrap."""
    number = _SYS_PIVOT_ROOT.get(os.uname().machine, 41)  # 41 is the newer, generic table's
    result = _libc.syscall(ctypes.c_long(number), os.fsencode(new_root), os.fsencode(put_old))
    _check(result, "pivot_root", new_root)


def unshare(flags: int) -> None:
    """unshare(2) the CLONE_NEW* namespaces in flags."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int) -> None:
    """setns(2); with a pidfd, flags may name several namespaces to join at once."""
    _check(_libc.setns(fd, flags), "setns")


def sethostname(name: str) -> None:
    """sethostname(2) in the current uts namespace."""
    _check(_libc.sethostname(name.encode(), len(name)), "sethostname")


def become_subreaper() -> None:
    """prctl(2) PR_SET_CHILD_SUBREAPER: orphaned descendants become children of this process."""
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def kill_process(pidfd: int, number: int) -> None:
    """pidfd_send_signal(2); the module signal has it too, but importing that takes 5 ms."""
    result = _libc.syscall(ctypes.c_long(_SYS_PIDFD_SEND_SIGNAL), pidfd, number, None, 0)
    _check(result, "pidfd_send_signal")


def ignore_signal(number: int) -> None:
    """Ignore a signal (signal(2))."""
    _libc.signal(number, ctypes.c_void_p(1))


def loopback_up() -> None:
    """Set lo up in the current network namespace (netdevice(7))."""
    sock = _check(_libc.socket(_AF_INET, _SOCK_DGRAM | os.O_CLOEXEC, 0), "socket")
    try:
        request = bytearray(b"lo".ljust(40, b"\0"))  # struct ifreq: name, then flags
        fcntl.ioctl(sock, _SIOCGIFFLAGS, request)
        request[16] |= _IFF_UP
        fcntl.ioctl(sock, _SIOCSIFFLAGS, request)
    finally:
        os.close(sock)


def interface_exists(name: str) -> bool:
    """Whether the current network namespace has the interface (if_nametoindex(3)); /sys may be
    that of another one."""
    return bool(_libc.if_nametoindex(name.encode()))


def default_signals() -> None:
    """Every signal at its default action and unblocked, as a first process expects them (but the
    two that the C library keeps for itself)."""
    for number in range(1, 65):
        _libc.signal(number, None)
    _check(_libc.sigprocmask(SIG_SETMASK, bytes(128), None), "sigprocmask")


class _OpenHow(ctypes.Structure):
    _fields_ = [
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    ]


def open_in_root(root: int, path: str, flags: int, mode: int = 0) -> int:
    """openat2(2): open path as if the directory root were "/", symbolic links and ".." included."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    result = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        root,
        os.fsencode(path),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    return _check(result, "openat2", path)


def mount_of(fd: int) -> int:
    """The id of the mount that an open file is on (proc(5), fdinfo)."""
    with open(f"/proc/self/fdinfo/{fd}") as lines:
        return int(next(line for line in lines if line.startswith("mnt_id:")).split()[1])


def mount_types() -> dict[int, str]:
    """The file system type of each mount in this namespace, by mount id (proc(5), mountinfo)."""
    types = {}
    with open("/proc/self/mountinfo", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split()
            types[int(fields[0])] = fields[fields.index("-", 6) + 1]
    return types
