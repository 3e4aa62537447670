"""The two folders that machines live in, and who may remove what in them.

The cache keeps images (VM_CACHE, else /var/cache/disposable-vm for root, else the user's own cache
folder). The run folder keeps what belongs to running machines; it is of mode 0700. Every folder in
it holds a file `lock` that is locked for as long as its owner lives, so what an aborted run left
is told from what is in use without guessing.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vm.machine import MachineError


def cache() -> Path:
    """The folder of images, made when missing."""
    if named := os.environ.get("VM_CACHE"):
        folder = Path(named)
    elif os.geteuid() == 0:
        folder = Path("/var/cache/disposable-vm")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "disposable-vm"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run() -> Path:
    """The folder of running machines (VM_RUN, else one per user in /tmp), made when missing."""
    return private(Path(os.environ.get("VM_RUN") or f"/tmp/vm-{os.geteuid()}"))


def memory() -> Path:
    """Where the memory of machines is kept: in memory where there is room, else the run folder."""
    shm = _shared_memory()
    if os.access(shm.parent, os.W_OK) and shutil.disk_usage(shm.parent).free > 2 << 30:
        return private(shm)
    return run()


def _shared_memory() -> Path:
    """The run folder's counterpart in /dev/shm."""
    return Path("/dev/shm") / str(run()).strip("/").replace("/", "-")


def private(folder: Path) -> Path:
    """Make a folder of mode 0700, or make sure that it is one and ours."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not folder.is_dir() or folder.is_symlink() or status.st_uid != os.geteuid():
        raise MachineError(f"{folder}: not a folder of user {os.geteuid()}; remove it")
    if status.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


class Lock:
    """An exclusive lock on a file, held until `release` or the process' end."""

    def __init__(self, path: Path, *, wait: bool = False, make: bool = True) -> None:
        """Raises BlockingIOError when another holds it and `wait` is not set."""
        self.path = path
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if make else 0)
        self.fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            os.close(self.fd)
            raise

    def release(self) -> None:
        """Give the lock up (a process that inherited `fd` holds it on)."""
        os.close(self.fd)


def claim(parent: Path, prefix: str) -> tuple[Path, Lock]:
    """A new folder of our own in a parent, locked."""
    with_lock = Lock(parent / ".claims", wait=True)  # no sweep may see it before it is locked
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=parent))
        return folder, Lock(folder / "lock")
    finally:
        with_lock.release()


def abandoned(parent: Path) -> Iterator[Path]:
    """The claimed folders in a parent whose owner is gone."""
    guard = Lock(parent / ".claims", wait=True)
    try:
        for file in sorted(parent.glob("*/lock")):
            try:
                Lock(file, make=False).release()
            except (BlockingIOError, FileNotFoundError):
                continue
            yield file.parent
    finally:
        guard.release()


def sweep() -> list[str]:
    """Clear what aborted runs left: their processes, machines and half-built images; names them."""
    gone = []
    for parent in (run(), _shared_memory(), cache() / "building"):
        if not parent.exists():
            continue
        for folder in abandoned(private(parent)):
            for file in folder.glob("*pid"):
                kill_recorded(file)
            remove(folder)
            gone.append(folder.name)
    return gone


def as_root() -> list[str]:
    """What makes a command root over its own files: nothing for root, else a user namespace."""
    return [] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--map-auto", "--"]


def remove(folder: Path) -> None:
    """Remove a folder and all in it, or a file; one that is not there is fine."""
    if folder.is_dir():
        try:
            shutil.rmtree(folder)
        except PermissionError:  # of another user of our user namespace
            subprocess.run([*as_root(), "rm", "-rf", str(folder)], check=True)
    else:
        folder.unlink(missing_ok=True)


def started(pid: int) -> str | None:
    """When a process started, in the kernel's clock ticks; None when there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


def record(file: Path, pid: int) -> None:
    """Write down which process belongs to a folder, so that a later run can end just that one."""
    file.write_text(f"{pid} {started(pid)}\n")


def recorded(file: Path) -> int | None:
    """The process that was written down, if it still runs."""
    try:
        pid, when = file.read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    return int(pid) if started(int(pid)) == when else None


def kill_recorded(file: Path) -> None:
    """End the process that was written down, if it still is that one."""
    pid = recorded(file)
    if pid is None:
        return
    fd = os.pidfd_open(pid)
    try:
        if recorded(file) == pid:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        select.select([fd], [], [], 10)  # until its last thread has let go of all it held
    finally:
        os.close(fd)
