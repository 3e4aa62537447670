"""What runs: one record a subhost, /run/overlay-boot/NAME (overlay-boot(8), files-records).

A record is known by its inode: the lock on it (flock(2)) is held as long as the subhost's keeper
lives, so of several boots at once exactly one wins, and a record without a lock tells of a crash.
Its first line has the pid and the start time of pid 1, zeros until there is one, and a 1 once that
has been executed in its own root (reaper.c reads this, too); "key=value" items follow, each ended by
a zero byte, and a last one that shows that all of them are there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from overlay_boot import OverlayBootError, cgroup, lines_of
from overlay_boot.processes import name_of, open_process, start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from overlay_boot.subhost import Subhost

FOLDER = "/run/overlay-boot"
NETNS = "/run/netns"
END = "."
LIMIT = 1 << 22  # bytes of a record


def interface_index(name: str) -> int:
    """The index of an interface in the current network namespace, 0 if there is none
    (if_nametoindex(3)); /sys may be that of another namespace."""
    from _socket import if_nametoindex  # importing the module socket takes ten times as long

    try:
        return if_nametoindex(name)
    except OSError:
        return 0


def interface_name(index: int) -> str:
    """The name of the interface with that index, empty if there is none (if_indextoname(3))."""
    from _socket import if_indextoname

    try:
        return if_indextoname(index)
    except OSError:
        return ""


class NotARecord(OverlayBootError):
    """Something in the folder that no boot has put there."""


class Link:
    """An interface of the main host that a boot made: its index, and that of its other end or, for
    a VLAN, of its carrier tell it from others that come to have its name."""

    def __init__(self, name: str, index: int, peer: int) -> None:
        self.name = name
        self.index = index
        self.peer = peer

    def __str__(self) -> str:
        return f"{self.name}/{self.index}/{self.peer}"

    @classmethod
    def parse(cls, text: str) -> Link:
        """The opposite of str(link)."""
        name, index, peer = text.split("/")
        return cls(name, int(index), int(peer))

    def exists(self) -> bool:
        """Whether the interface is there, even under another name. On its way out it loses its
        index and its name some time before it is gone from /sys, where no more is to be read of it."""
        name = interface_name(self.index)
        if name:
            return name == self.name or self._is_renamed()
        try:
            lines_of(f"/sys/class/net/{self.name}/ifindex")
        except OSError as error:
            return error.errno == errno.EINVAL
        return False  # another one has that name

    def _is_renamed(self) -> bool:
        """Whether what has its index by now is this one, and no other."""
        from overlay_boot.net import is_there

        return is_there(self)


class Record:
    """An open record, and what it says as of the last read."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.path = f"{FOLDER}/{name}"
        self.netns = f"{NETNS}/{name}"
        self.fd = fd
        self.pid = 0
        """The subhost's pid 1 as the main host numbers it; 0 while it is being made."""
        self.started = 0
        """When pid 1 started, in clock ticks since boot."""
        self.entered = False
        """Whether pid 1 is in its own root, and no program of the main host any more."""
        self.conf = ""
        self.log = ""
        self.root_kind = ""
        self.since = 0
        """When it was booted, in seconds since 1970."""
        self.start: list[str] = []
        self.cables: list[Link] = []
        self.upper = ""
        self.lower = ""
        self.holds: list[str] = []
        """UPPER and WORK, by device and inode."""
        self.ifdown = False
        """Whether its keeper runs ifdown in the end."""
        self.cgroup = ""
        self.keeper = 0
        self.systemd = False
        """Whether pid 1 is, or is about to be, systemd."""

    # --- its contents

    def describe(self, subhost: Subhost, since: int) -> None:
        """Take from a subhost what other commands need to know of it."""
        self.conf = subhost.conf
        self.log = subhost.log
        self.root_kind = subhost.root_kind
        self.since = since
        self.start = subhost.start
        self.systemd = subhost.init.systemd
        self.upper, self.lower = subhost.upper, subhost.lower
        self.ifdown = any(not cable.bridge for cable in subhost.cables)
        self.holds = [identity(subhost.upper)]
        if self.root_kind == "overlay":
            self.holds.append(identity(subhost.work))

    def write(self) -> None:
        """Write all of the record, or raise OSError."""
        items = {
            "name": self.name,
            "holds": " ".join(self.holds),
            "upper": self.upper,
            "lower": self.lower,
            "conf": self.conf,
            "log": self.log,
            "root_kind": self.root_kind,
            "since": str(self.since),
            "start": " ".join(self.start),
            "ifdown": "yes" if self.ifdown else "",
            "cgroup": self.cgroup,
            "systemd": "yes" if self.systemd else "",
            "keeper": str(self.keeper),
            "cables": " ".join(map(str, self.cables)),
        }
        text = self._head() + "".join(f"{key}={value}\0" for key, value in items.items())
        data = os.fsencode(f"{text}{END}\0")
        written = 0
        while written < len(data):
            written += os.pwrite(self.fd, data[written:], written)
        os.ftruncate(self.fd, written)

    def _head(self) -> str:
        return f"{self.pid:010} {self.started:020} {self.entered:d}\n"

    def set_pid(self, pid: int) -> None:
        """Enter pid 1. Nothing of this can fail for want of room, since the line is there."""
        self.pid = pid
        self.started = start_time(pid)
        self._write_head()

    def set_entered(self) -> None:
        """Let others enter the subhost."""
        self.entered = True
        self._write_head()

    def _write_head(self) -> None:
        os.pwrite(self.fd, self._head().encode(), 0)

    def read(self) -> None:
        """Read the record anew. Raises NotARecord."""
        head, _, body = os.fsdecode(_read(self.fd)).partition("\n")
        try:
            pid, started, entered = map(int, head.split())
            # Until there is a pid 1 the boot may be writing a longer one over it.
            whole, end, _ = body.partition(f"\0{END}\0")
            if pid and not end:
                raise ValueError
            items = dict(item.split("=", 1) for item in whole.split("\0") if pid or "=" in item)
            if pid:
                self.name = items["name"]
                self.conf = items["conf"]
                self.log = items["log"]
                self.root_kind = items["root_kind"]
                self.since = int(items["since"])
                self.start = items["start"].split()
                self.cables = [Link.parse(text) for text in items["cables"].split()]
                self.ifdown = bool(items["ifdown"])
                self.keeper = int(items["keeper"])
            self.holds = items.get("holds", "").split()
            self.cgroup = items.get("cgroup", "")
            self.systemd = bool(items.get("systemd"))
            self.upper, self.lower = items.get("upper", ""), items.get("lower", "")
        except (ValueError, KeyError) as error:
            raise NotARecord(f"{self.path} is not a record of a subhost: remove it") from error
        self.pid, self.started, self.entered = pid, started, bool(entered)

    # --- its file

    def close(self) -> None:
        """Close this descriptor; the lock stays while another process holds a copy of it."""
        os.close(self.fd)

    def is_free(self) -> bool:
        """Take the lock if nobody holds it: neither a boot nor a keeper is there any more."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def lock(self) -> bool:
        """Take the lock if nobody holds it and the file still stands; True if so."""
        return self.is_free() and self.stands()

    def is_being_started(self) -> bool:
        """Whether a boot is still at it. Until then pid 1 may be in the main host's root, so nobody
        is to enter. Where even the keeper was killed, the lock is free once pid 1 was executed."""
        if self.entered or self.is_free():
            return False
        return self.alive() if self.pid else self.stands()

    def stands(self) -> bool:
        """True while the path leads to this very record."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.lstat(self.path))
        except FileNotFoundError:
            return False

    def clear(self) -> None:
        """Remove what a crash left of it: the namespace's name, cables, cgroup and this record."""
        self.forget_netns(self.pid)
        if left := self.left_cables():
            from overlay_boot.net import delete_links

            delete_links(left)
        if self.cgroup:
            cgroup.remove(self.cgroup)
        if self.stands():
            os.unlink(self.path)

    def forget_netns(self, pid: int) -> None:
        """Remove the name of the network namespace if it leads to this process."""
        if pid and read_link(self.netns) == f"/proc/{pid}/ns/net":
            os.unlink(self.netns)

    def left_cables(self) -> list[Link]:
        """Those of its cables that are there."""
        return [link for link in self.cables if link.exists()]

    # --- its process

    def open_process(self) -> int | None:
        """A pidfd of pid 1, or None when that very process has ended."""
        return open_process(self.pid, self.started)

    def alive(self) -> bool:
        """True while pid 1 has not ended."""
        process = self.open_process()
        if process is not None:
            os.close(process)
        return process is not None


def _read(fd: int) -> bytes:
    """All that is in a file, which might be any."""
    parts: list[bytes] = []
    size = 0
    while size < LIMIT and (part := os.pread(fd, 1 << 16, size)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def read_link(path: str) -> str:
    """Where a symbolic link leads; empty for anything else."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def identity(path: str) -> str:
    """What a path leads to, however it is spelled: device and inode."""
    return identity_of(os.stat(path))


def identity_of(status: os.stat_result) -> str:
    """Device and inode."""
    return f"{status.st_dev}:{status.st_ino}"


# --- finding them


def look_up(name: str) -> Record | None:
    """The record of that name. Raises NotARecord for anything else that has it."""
    path = f"{FOLDER}/{name}"
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        return None
    except OSError as error:  # a folder, a link, a socket
        raise NotARecord(f"{path} is not a record of a subhost: remove it") from error
    record = Record(name, fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise NotARecord(f"{path} is not a record of a subhost: remove it")
        record.read()
    except BaseException:
        record.close()
        raise
    return record


def records(
    problems: list[str] | None = None, holding: list[str] | None = None
) -> Iterator[Record]:
    """All records in the folder, by name. Others' files are passed over, and told of in problems. No
    more of those is read that have none of the words `holding` in them."""
    for name in sorted(os.listdir(FOLDER)) if os.path.isdir(FOLDER) else []:
        if holding and not _has_one(f"{FOLDER}/{name}", holding):
            continue
        try:
            record = look_up(name)
        except NotARecord as error:
            if problems is not None:
                problems.append(str(error))
            continue
        if record:
            yield record


def _has_one(path: str, words: list[str]) -> bool:
    """Whether there is one of the words in a file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        data = _read(fd)
    except OSError:  # a folder, a pipe
        return False
    finally:
        os.close(fd)
    return any(word.encode() in data for word in words)


def lost() -> Iterator[Record]:
    """The records of running subhosts that somebody has removed: their keepers hold them still.
    All processes are looked through, so this is for where nothing else is found."""
    ours = identity("/proc/self/ns/pid")
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if name_of(int(pid)) != "overlay-keeper":
            continue
        try:
            # Inside a subhost anybody can take that name.
            if identity(f"/proc/{pid}/ns/pid") != ours or os.stat(f"/proc/{pid}").st_uid:
                continue
            record = Record("", os.open(f"/proc/{pid}/fd/3", os.O_RDWR | os.O_CLOEXEC))
        except OSError:
            continue  # it ended just now
        try:
            record.read()
        except NotARecord:
            record.close()
            continue
        record.path, record.netns = f"{FOLDER}/{record.name}", f"{NETNS}/{record.name}"
        if not record.stands():
            yield record


def running(problems: list[str] | None = None) -> list[Record]:
    """The records of all subhosts that run, by name."""
    found = [record for record in (*records(problems), *lost()) if record.alive()]
    return sorted(found, key=lambda record: record.name)
