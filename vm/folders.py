"""The two folders that machines live in, and who may remove what in them.

The cache keeps images (VM_CACHE, else /var/cache/disposable-vm for root, else the user's own cache
folder). The run folder keeps what belongs to running machines; it is of mode 0700. Every folder in
it, as in the cache's `building`, holds a file `lock` that is locked for as long as its owner lives,
so what an aborted run left is told from what is in use without guessing.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

from vm import processes
from vm.errors import HostError

#: Bytes of the run folder's path: a socket's path has 107 at most, and ssh adds 45 to its own.
LONGEST_RUN = 60


def _named(variable: str, default: Path | None, mode: int, longest: int = 4096) -> Path:
    """The folder that a variable names, else the default, made when missing. Raises HostError.

    What is abandoned in it gets removed, so one that holds other things is refused.
    """
    named = os.environ.get(variable)
    if not (named or default):
        raise HostError(f"{variable}: user {os.geteuid()} has no home folder: name a folder")
    folder = Path(os.path.abspath(named or default or ""))
    if not re.fullmatch(r"[\w./,+@=~:-]+", str(folder)):
        raise HostError(f"{variable}: a path without blanks, quotes and the like: {folder}")
    if len(bytes(folder)) > longest:
        raise HostError(f"{variable}: {folder} is longer than {longest} bytes")
    try:
        mark = own(folder, mode) / ".claims"
        if named and any(folder.iterdir()) and not mark.exists():
            raise HostError(f"{variable}: {folder} holds other things: name an empty folder")
        mark.touch(0o600)
    except OSError as error:
        raise HostError(f"{variable}: {folder}: {error.strerror}: name another folder") from error
    return folder


def cache() -> Path:
    """The folder of images, made when missing."""
    base = Path("/var/cache") if os.geteuid() == 0 else _users_cache()
    return _named("VM_CACHE", base and base / "disposable-vm", 0o755)


def _users_cache() -> Path | None:
    """The user's folder for such things; one without a home may have none."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return None


def check_programs_run() -> None:
    """Raise HostError where an image cannot be made, since no program of it could run there."""
    if os.statvfs(cache()).f_flag & os.ST_NOEXEC:
        raise HostError(
            f"VM_CACHE: {cache()} is mounted noexec, and making an image runs its programs: "
            "name a folder elsewhere"
        )


def building() -> Path:
    """Where images are made. apt's own user has to get into it, to fetch packages."""
    return own(cache() / "building", 0o711)


def run() -> Path:
    """The folder of running machines (VM_RUN, else one per user in /tmp), made when missing."""
    return _named("VM_RUN", Path(f"/tmp/vm-{os.geteuid()}"), 0o700, LONGEST_RUN)


def memory(name: str) -> Path:
    """Where the memory of the machine in run()/name is kept: in memory if there is room."""
    shm = _shared_memory()
    if os.access(shm.parent, os.W_OK) and shutil.disk_usage(shm.parent).free > 2 << 30:
        return own(own(shm) / name)
    return run() / name


def _shared_memory() -> Path:
    """The run folder's counterpart in /dev/shm: a folder in it belongs to its namesake there."""
    return Path("/dev/shm") / quote(str(run()), safe="")


def own(folder: Path, mode: int = 0o700) -> Path:
    """Make a folder of that mode, or make sure that it is one and ours. Raises HostError."""
    with suppress(FileExistsError):
        folder.mkdir(mode=mode, parents=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise HostError(
            f"{folder}: not a folder of user {os.geteuid()}: remove it, or name another"
        )
    if stat.S_IMODE(status.st_mode) != mode:
        folder.chmod(mode)
    return folder


class Lock:
    """A lock on a file, held until `release`, the end of `with`, or the process' end."""

    def __init__(
        self,
        path: Path,
        *,
        shared: bool = False,
        wait: bool = False,
        busy: Callable[[], object] = lambda: None,
        make: bool = True,
    ) -> None:
        """Calls `busy` before it waits; without `wait` raises BlockingIOError instead."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if make else 0)
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self.fd = os.open(path, flags, 0o600)
        try:
            try:
                fcntl.flock(self.fd, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                busy()
                fcntl.flock(self.fd, kind)
        except BaseException:
            os.close(self.fd)
            raise

    def release(self) -> None:
        """Give the lock up, if it is held (a process that inherited `fd` holds it on)."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def claim(parent: Path, prefix: str) -> tuple[Path, Lock]:
    """A new folder of our own in a parent, locked."""
    with Lock(parent / ".claims", wait=True):  # no sweep may see it before it is locked
        folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=parent))
        return folder, Lock(folder / "lock")


@contextmanager
def workspace(prefix: str) -> Iterator[Path]:
    """A folder to make something of the cache in, removed afterwards."""
    folder, lock = claim(building(), prefix)
    with lock:
        try:
            folder.chmod(0o711)
            yield folder
        finally:
            remove(folder)


def in_use(path: Path) -> bool:
    """Whether somebody holds the lock on a file; one that is not there is nobody's."""
    try:
        Lock(path, make=False).release()
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def sweep() -> list[str]:
    """Clear what aborted runs left: their processes, machines and half-built images; names them."""
    gone = []
    for parent in (run(), building()):
        with Lock(parent / ".claims", wait=True):
            for folder in sorted(parent.glob("*/")):
                if not in_use(folder / "lock"):
                    discard(folder)
                    gone.append(folder.name)
    for folder in _shared_memory().glob("*/"):
        if not (run() / folder.name).exists():
            remove(folder)
    return gone


def discard(folder: Path) -> None:
    """Remove a folder of the run folder or of `building` with its processes and its memory."""
    for file in folder.glob("*pid"):
        processes.kill_recorded(file)
    if folder.parent == run():
        remove(_shared_memory() / folder.name)  # first: what has no namesake is swept
    remove(folder)


def remove(path: Path) -> None:
    """Remove a folder and all in it, or a file; one that is not there is fine."""
    while path.is_dir() and not path.is_symlink():
        try:
            shutil.rmtree(path)
        except FileNotFoundError:  # somebody else removes it as well
            continue
        except PermissionError:  # of another user of our user namespace
            processes.run(f"removing {path}", *processes.as_root(), "rm", "-rf", path)
    path.unlink(missing_ok=True)
