"""Which subhosts run: claiming a name for one that is to, finding one that does."""

from __future__ import annotations

import errno
import fcntl
import os

from overlay_boot import NotRunning, OverlayBootError, lines_of
from overlay_boot.check import name_problem
from overlay_boot.records import (
    FOLDER,
    NETNS,
    NotARecord,
    Record,
    identity,
    look_up,
    lost,
    read_link,
    records,
    running,
)
from overlay_boot.waiting import Deadline, Waiter

LIMIT = 10.0  # seconds to wait for a keeper that is clearing up, or a boot under way
HELD = 60.0  # seconds for which one boot may lock the others out, on a machine that has no time for it
LOOK = 1.0  # seconds after which a boot that waits for others looks whether they go on
KEEPER = 100.0  # seconds for the keeper where it runs ifdown, to which it gives 90


class FolderLock:
    """Held while one boot looks what the others have and writes what it takes: never for long."""

    def __init__(self, waiter: Waiter) -> None:
        self.waiter = waiter

    def __enter__(self) -> None:
        self.fd = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        holder, deadline = "", Deadline(HELD)
        while not _lock(self.fd, LOOK, self.waiter):
            if (now := _holder(self.fd)) != holder:  # it is just not our turn (boot-many)
                holder, deadline = now, Deadline(HELD)
            elif deadline.passed:
                os.close(self.fd)
                raise OverlayBootError(
                    f"{FOLDER} is locked by another boot that is stuck: see fuser {FOLDER}"
                )

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _lock(fd: int, seconds: float, waiter: Waiter) -> bool:
    """Take the lock of a file or folder within so many seconds; whether that was possible."""
    deadline, pause = Deadline(seconds), 0.002
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if deadline.passed:
                return False
        waiter.wait(seconds=pause)
        pause = min(2 * pause, 0.05)  # a hundred that ask would leave no time to whoever has it


def _holder(fd: int) -> str:
    """The pid of the process that has the lock of a file or folder (proc_locks(5)); empty where it
    cannot be told."""
    status = os.fstat(fd)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    rows = map(str.split, lines_of("/proc/locks"))
    return next((row[4] for row in rows if row[1:2] == ["FLOCK"] and row[5] == device), "")


def claim(name: str, waiter: Waiter) -> Record:
    """The locked record of a subhost about to boot. What a crash left under the name is cleared.

    Raises OverlayBootError if the subhost runs, or the namespace's name is taken by another.
    """
    os.makedirs(FOLDER, 0o700, exist_ok=True)
    os.makedirs(NETNS, 0o755, exist_ok=True)
    deadline, with_ifdown = Deadline(LIMIT), Deadline(KEEPER)
    while True:
        with FolderLock(waiter):
            found = look_up(name)
            if found and not found.alive() and found.lock():
                found.clear()
                found.close()
                found = None
            if found is None:
                _free_netns(name)
                return _create(name)
            alive, pid = found.alive(), found.pid
            found.close()
        if alive or not pid:
            raise _already(name, "is running" if pid else "is being started")
        if (with_ifdown if found.ifdown else deadline).passed:
            raise OverlayBootError(f"{name} has ended and is still being cleared up: see its log")
        waiter.wait(seconds=0.005)  # its keeper is clearing up


def _already(name: str, what: str) -> OverlayBootError:
    return OverlayBootError(f"{name} {what} already: stop it first with overlay-stop {name}")


def hold(record: Record, upper_and_work: list[str], waiter: Waiter) -> list[int]:
    """Enter UPPER and WORK into the record, unless another subhost has one of them: the kernel
    does not say what two overlays with one upper layer do (upper-one). Their descriptors, with a
    lock each for the keeper: it shows that they are taken even where the record is removed."""
    with FolderLock(waiter):
        for other in records(holding=record.holds):
            if not other.stands() or other.name == record.name:
                continue
            shared = set(record.holds) & set(other.holds)
            used = shared and (other.alive() or (not other.pid and not other.lock()))
            other.close()
            if used:
                raise _taken(record, other)
        record.write()
    locked = []
    for folder in upper_and_work[: len(record.holds)]:
        locked.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            if _lock(locked[-1], 1, waiter):  # its last keeper may just be ending
                continue
        except OSError:
            continue  # there are file systems without locks
        for other in lost():
            if set(record.holds) & set(other.holds):
                raise _taken(record, other)
        raise OverlayBootError(f"{folder} is locked by another program: see lslocks")
    return locked


def _taken(record: Record, other: Record) -> OverlayBootError:
    what = "UPPER" if record.holds[0] in other.holds else "WORK"
    return OverlayBootError(
        f"{what} is in use by the subhost {other.name}: "
        f"give each its own, or stop that one with overlay-stop {other.name}"
    )


def _free_netns(name: str) -> None:
    """Remove the name of a namespace long gone; raise OverlayBootError if it is another's."""
    path = f"{NETNS}/{name}"
    if not os.path.lexists(path):
        return
    target = read_link(path)
    ours = target.startswith("/proc/") and target.endswith("/ns/net")
    # What leads nowhere, or by a reused pid to the main host, is of a subhost that crashed.
    if ours and (not os.path.exists(path) or identity(path) == identity("/proc/self/ns/net")):
        os.unlink(path)
        return
    if any(record.name == name and record.alive() for record in lost()):
        raise _already(name, "is running")
    raise OverlayBootError(
        f"{path} already exists, as another network namespace: "
        "choose another NAME, or remove it with ip netns delete"
    )


def _create(name: str) -> Record:
    """A new record, born locked."""
    path = f"{FOLDER}/{name}"
    try:
        fd = os.open(FOLDER, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        record = Record(name, fd)
        fcntl.flock(fd, fcntl.LOCK_EX)
        record.write()
        # src_dir_fd means nothing to an absolute path, but without it Python calls link(2),
        # which does not follow the link in /proc.
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd)
    except OSError as error:
        hint = ": free some room in /run" if error.errno == errno.ENOSPC else ""
        raise OverlayBootError(f"cannot write {path}: {error.strerror}{hint}") from error
    return record


def find(name_or_conf: str, waiter: Waiter | None = None) -> Record:
    """The record of a running subhost given by NAME or configuration file; waits for one that is
    being started. Raises NotRunning, after clearing what a crash left."""
    waiter = waiter or Waiter()
    record = _find(name_or_conf)
    if record is None:
        raise NotRunning(f"{name_or_conf} is not running")
    deadline = Deadline(LIMIT)
    while record.is_being_started():
        if deadline.passed:
            raise OverlayBootError(f"{record.name} is still being started: try again later")
        waiter.wait(seconds=0.01)
        record.read()
    if record.alive():
        return record
    if record.lock():
        record.clear()
        raise NotRunning(f"{record.name} is not running; what a crash left has been cleared")
    raise NotRunning(f"{record.name} is not running")


def _find(name_or_conf: str) -> Record | None:
    in_the_way: NotARecord | None = None
    if not name_problem(name_or_conf):
        try:
            if record := look_up(name_or_conf):
                return record
        except NotARecord as error:
            in_the_way = error
    conf = os.path.realpath(name_or_conf)
    for record in running():
        if record.name == name_or_conf or os.path.realpath(record.conf) == conf:
            return record
    if in_the_way:
        raise in_the_way
    if not os.path.isfile(name_or_conf):
        return None
    # One that has crashed, or is being started, says nothing of its configuration.
    from overlay_boot.config import ConfigFile

    given = ConfigFile(name_or_conf).assigned.get("NAME")
    name = given.text if given else os.path.basename(conf).removesuffix(".conf")
    return None if name_problem(name) or given and given.is_command else look_up(name)
