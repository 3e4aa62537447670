"""What runs: one record a subhost, /run/overlay-boot/NAME (decisions 16 to 18).

The record's lock (flock(2)) is held as long as the subhost's keeper lives, so of several boots at
once exactly one wins, and a record without a lock tells of a crash. It holds "KEY=value" items
ended by zero bytes. Processes are named by pid and start time together, never by pid alone.
"""

from __future__ import annotations

import fcntl
import os
import time

from overlay_boot import NotRunning, OverlayBootError
from overlay_boot.linux import interface_exists

FOLDER = "/run/overlay-boot"
NETNS = "/run/netns"


class Record:
    """An open record file, and what it says (a copy as of the last read)."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.path = f"{FOLDER}/{name}"
        self.netns = f"{NETNS}/{name}"
        self.fd = fd
        self.read()

    def read(self) -> None:
        """Read the record anew."""
        text = os.fsdecode(os.pread(self.fd, 1 << 20, 0))
        self.items = dict(item.split("=", 1) for item in text.split("\0") if item)

    def write(self, items: dict[str, str]) -> None:
        """Fill the record, once, in one write: readers see all of it or nothing."""
        text = "".join(f"{key}={value}\0" for key, value in items.items())
        os.pwrite(self.fd, os.fsencode(text), 0)
        self.items = items

    def close(self) -> None:
        """Close this descriptor; the lock stays while another process holds a copy of it."""
        os.close(self.fd)

    def lock(self) -> bool:
        """Take the lock if nobody holds it and the file still stands; True if it was taken."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.read()
        return self.stands()

    def stands(self) -> bool:
        """True while the path leads to this very record."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    @property
    def pid(self) -> int:
        """The subhost's pid 1 as the main host numbers it; 0 while it is being made."""
        return int(self.items.get("PID", 0))

    @property
    def hosts(self) -> list[str]:
        """The host ends of its cables."""
        return self.items.get("INTERFACES", "").split()

    def open_process(self) -> int | None:
        """A pidfd of pid 1, or None when that very process has ended."""
        if not self.pid:
            return None
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if start_time(self.pid) == self.items["STARTED"]:
            return pidfd
        os.close(pidfd)
        return None

    def alive(self) -> bool:
        """True while pid 1 has not ended."""
        process = self.open_process()
        if process is not None:
            os.close(process)
        return process is not None

    def interfaces(self) -> list[str]:
        """Those host ends of its cables that are there."""
        return [host for host in self.hosts if interface_exists(host)]

    def clear(self) -> None:
        """Remove what a crash left: the namespace's name, cables and this record."""
        if os.path.islink(self.netns):
            os.unlink(self.netns)
        if left := self.interfaces():
            from overlay_boot.net import delete_links

            delete_links(left)
        if self.stands():
            os.unlink(self.path)


def name_of(pid: int) -> str:
    """A process's name (proc_pid_comm(5)); empty if it has ended."""
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def start_time(pid: int) -> str:
    """When a process started, in clock ticks since boot (proc_pid_stat(5), field 22); empty if it
    has ended, be it a zombie still."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, *fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in "ZX" else fields[18]


def claim(name: str) -> Record:
    """The locked record of a subhost about to boot. What a crash left under the name is cleared.

    Raises OverlayBootError if the subhost runs, or the namespace's name is taken by another.
    """
    os.makedirs(FOLDER, 0o700, exist_ok=True)
    os.makedirs(NETNS, 0o755, exist_ok=True)
    deadline = time.monotonic() + 10
    while (record := _create(name)) is None:
        found = _look_up(name)
        if found is None:
            continue  # it ended just now
        alive = found.alive()
        if not alive and found.lock():
            found.clear()
        elif found.pid and not alive and time.monotonic() < deadline:
            time.sleep(0.005)  # its keeper is clearing up
        elif alive or found.stands():
            what = "is running" if found.pid else "is being started"
            raise OverlayBootError(
                f"{name} {what} already: stop it first with overlay-stop {name}"
            )
        found.close()
    if os.path.islink(record.netns) and not os.path.exists(record.netns):
        os.unlink(record.netns)  # of a subhost long gone
    if os.path.lexists(record.netns):
        os.unlink(record.path)
        raise OverlayBootError(
            f"{record.netns} is there already, as another network namespace: "
            "choose another NAME, or remove it with ip netns delete"
        )
    return record


def _create(name: str) -> Record | None:
    """A new record, born locked; None if the name has one."""
    fd = os.open(FOLDER, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        # src_dir_fd means nothing to an absolute path, but without it Python calls link(2),
        # which does not follow the link in /proc.
        os.link(f"/proc/self/fd/{fd}", f"{FOLDER}/{name}", src_dir_fd=fd)
    except FileExistsError:
        os.close(fd)
        return None
    return Record(name, fd)


def running() -> list[Record]:
    """The records of all subhosts that run, by name."""
    found = []
    for name in sorted(os.listdir(FOLDER)) if os.path.isdir(FOLDER) else []:
        record = _look_up(name)
        if record and record.alive():
            found.append(record)
    return found


def _look_up(name: str) -> Record | None:
    path = f"{FOLDER}/{name}"
    try:
        return Record(name, os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
    except FileNotFoundError:
        return None


def find(name_or_conf: str, seconds: float = 10) -> Record:
    """The record of a subhost given by NAME or configuration file (decision 17).

    Waits up to so many seconds for one that is being started. Raises NotRunning, after clearing
    what a crash left.
    """
    record = None if "/" in name_or_conf else _look_up(name_or_conf)
    if record is None:
        conf = os.path.realpath(name_or_conf)
        match = [r for r in running() if os.path.realpath(r.items["CONFIG"]) == conf]
        record = match[0] if match else None
    if record is None and os.path.isfile(name_or_conf):
        from overlay_boot.config import Draft

        name = Draft(name_or_conf).values()["NAME"]
        record = None if "/" in name else _look_up(name)
    if record is None:
        raise NotRunning(f"{name_or_conf} is not running")
    deadline = time.monotonic() + seconds
    while not record.pid and not record.lock():
        if time.monotonic() > deadline:
            raise OverlayBootError(f"{record.name} is still being started: try again later")
        time.sleep(0.01)
        record.read()
    if record.alive():
        return record
    if record.lock():
        record.clear()
        raise NotRunning(f"{record.name} is not running; what a crash left has been cleared")
    raise NotRunning(f"{record.name} is not running")
