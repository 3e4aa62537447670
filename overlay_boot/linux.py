"""The kernel's calls that Python 3.11 lacks, one thin function each, over glibc 2.36. Of ctypes only
the half in C is imported: the other one takes a tenth of a boot.

Every function raises OSError naming the call and the path. Paths and strings are str; data that
the kernel takes as text is encoded as file names are. See the man page of section 2 by each name.
"""

from __future__ import annotations

import _ctypes
import errno
import fcntl
import os
import sys

from overlay_boot.signals import SIGNALS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
SYSFS_MAGIC = 0x62656572

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_PR_SET_CHILD_SUBREAPER = 36
_SIG_BLOCK = 0
_SIG_SETMASK = 2
_SIG_IGN = 1
_SFD_CLOEXEC = 0o2000000
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_IN_ROOT = 0x10
RESOLVE_CACHED = 0x20
_SYS_OPENAT2 = 437  # the one call here that glibc does not have
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_AT_SYMLINK_NOFOLLOW = 0x100
_STATX_BTIME = 0x800
_AT_EMPTY_PATH = 0x1000
_MOUNT_ATTR_RDONLY = 1
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_AF_INET = 2
_SOCK_DGRAM = 2


def _number(letter: str) -> Any:
    """The C type that the module struct has this letter for."""
    return type(letter, (_ctypes._SimpleCData,), {"_type_": letter})


_Int, _UInt, _Long, _ULong, _Int64, _Pointer = map(_number, "iIlLqP")


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int


class _Library:
    """What this process has loaded; as attributes, its functions."""

    def __init__(self) -> None:
        self._handle = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]  # dlopen(3)

    def __getattr__(self, name: str) -> _Function:
        return _Function((name, self))  # type: ignore[arg-type]  # its type for this is in ctypes


_libc = _Library()


def _check(result: int, call: str, path: str | None = None) -> int:
    if result == -1:
        number = _ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", path)
    return result


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); data is the file system's own option string."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode(),
        _ULong(flags),
        os.fsencode(data),
    )
    _check(result, "mount", target)


def bind(source: str, target: str, recursive: bool = True) -> None:
    """Bind source onto target, with its submounts by default."""
    mount(source, target, flags=MS_BIND | (MS_REC if recursive else 0))


def make_read_only(target: str) -> None:
    """Make the mount that target leads to read-only, whatever its source is elsewhere."""
    mount("", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def set_read_only(target: int) -> None:
    """mount_setattr(2): make the mount read-only whose root an open file is, and nothing that is
    mounted on it."""
    attributes = _MOUNT_ATTR_RDONLY.to_bytes(8, sys.byteorder) + bytes(24)  # struct mount_attr
    flags = _UInt(_AT_EMPTY_PATH)
    result = _libc.mount_setattr(target, b"", flags, attributes, _ULong(32))
    _check(result, "mount_setattr")


def magic_of(file: int) -> int:
    """The kind of file system that an open file is on, by its number in fstatfs(2)."""
    found = (_Long * 15)()
    _check(_libc.fstatfs(file, found), "fstatfs")
    return int(found[0])


def detach(target: str) -> None:
    """umount2(2) with MNT_DETACH: target and all below it leave the tree at once."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), "umount2", target)


def open_tree(path: str, recursive: bool = True) -> int:
    """open_tree(2) OPEN_TREE_CLONE: a detached copy of the mounts at path, or of the one that path
    is on alone."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    result = _libc.open_tree(_AT_FDCWD, os.fsencode(path), _UInt(flags))
    return _check(result, "open_tree", path)


def move_mount(tree: int, target: int) -> None:
    """move_mount(2): attach a detached tree of mounts to an open directory or file."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _check(_libc.move_mount(tree, b"", target, b"", _UInt(flags)), "move_mount")


class _Statx(_ctypes.Structure):  # the fields that are read, and what is between them
    _fields_ = (
        ("mask", _UInt),
        ("to_80", _UInt * 19),
        ("seconds", _Int64),
        ("nanoseconds", _UInt),
        ("to_256", _UInt * 41),
    )


def birth_time(name: str, folder: int) -> int:
    """When a file in an open folder was made, in nanoseconds since 1970; 0 where its file system
    does not tell (statx(2)). No link is followed."""
    found = _Statx()
    path, flags = os.fsencode(name), _AT_SYMLINK_NOFOLLOW
    _check(_libc.statx(folder, path, flags, _STATX_BTIME, _ctypes.byref(found)), "statx", name)
    known = found.mask & _STATX_BTIME
    return found.seconds * 10**9 + found.nanoseconds if known else 0


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    result = _libc.pivot_root(os.fsencode(new_root), os.fsencode(put_old))
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
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def signals_as_file(numbers: tuple[int, ...]) -> int:
    """A descriptor that becomes readable when one of the signals arrives, of those that this
    process was not told to ignore (nohup(1)). From now on they do nothing else (signalfd(2))."""
    mask = 0
    signal = _libc.signal
    signal.restype = _Pointer
    for number in numbers:
        if signal(number, None) == _SIG_IGN:
            signal(number, _Pointer(_SIG_IGN))
        else:
            mask |= 1 << number - 1
    signals = mask.to_bytes(8, "little") + bytes(120)
    _check(_libc.sigprocmask(_SIG_BLOCK, signals, None), "sigprocmask")
    return _check(_libc.signalfd(-1, signals, _SFD_CLOEXEC), "signalfd")


def default_signals() -> None:
    """Every signal at its default action and unblocked, as a first process expects them."""
    for number in SIGNALS:
        _libc.signal(number, None)
    _check(_libc.sigprocmask(_SIG_SETMASK, bytes(128), None), "sigprocmask")


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


def open_in_root(root: int, path: str, flags: int, links: bool = True, more: int = 0) -> int:
    """openat2(2): open path as if the directory root were "/", symbolic links and ".." included;
    without links none is followed, and one on the way is an error. `more` is RESOLVE_CACHED for a
    path that is not to be waited for. What is renamed meanwhile, be it elsewhere, makes the kernel
    refuse, and is no reason to give up (openat2(2), EAGAIN)."""
    resolve = _RESOLVE_IN_ROOT | (_RESOLVE_NO_MAGICLINKS if links else _RESOLVE_NO_SYMLINKS) | more
    fields = (flags | os.O_CLOEXEC, 0, resolve)  # struct open_how
    how = b"".join(field.to_bytes(8, sys.byteorder) for field in fields)
    for _ in range(100):
        result = _libc.syscall(
            _Long(_SYS_OPENAT2),
            root,
            os.fsencode(path),
            how,
            _ULong(len(how)),
        )
        if result != -1 or _ctypes.get_errno() not in (errno.EAGAIN, errno.EXDEV):
            break
    return _check(result, "openat2", path)
