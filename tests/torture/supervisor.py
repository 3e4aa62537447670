"""Numbers the system calls of a command and all that it starts, and kills or fails one of them.

A process is known by how it came to be: "boot" is the command, "boot.1" its first child, "boot.1.1"
that one's first, so that the same number means the same call in the next run. Others go on as
they are: no process is stopped, and none has another parent.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .calls import ARGUMENT_PATHS, ERRORS, KILL, number_of

LAUNCH = str(Path(__file__).with_name("launch.py"))
_RECEIVE = 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV
_SEND = 0xC0182101
_CONTINUE = 1
_SYS_PIDFD_GETFD = 438  # the same everywhere (pidfd_getfd(2))
_libc = ctypes.CDLL(None, use_errno=True)
_libseccomp = ctypes.CDLL("libseccomp.so.2")
NAMES = {_libseccomp.seccomp_syscall_resolve_name(name.encode()): name for name in ERRORS}


class Call(NamedTuple):
    """One call: the process, its number among those of that process, and what it is."""

    process: str
    number: int
    name: str
    comm: str  # the process' name at that time
    detail: str

    def __str__(self) -> str:
        return f"{self.process} #{self.number} {self.name}({self.detail}) in {self.comm}"


class Point(NamedTuple):
    """Where a run is disturbed, and how: "kill" or the name of an error."""

    process: str
    number: int
    name: str
    action: str


@dataclass
class _Process:
    key: str
    calls: int = 0
    children: int = 0


@dataclass
class Done:
    """What a command did."""

    status: int | None  # None: it did not end in time
    out: str
    err: str
    seconds: float

    def __str__(self) -> str:
        return f"status {self.status} after {self.seconds:.1f} s: {self.out}{self.err}".strip()


def wait_for(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a process ends within so many seconds."""
    pidfd = os.pidfd_open(process.pid)
    try:
        if not select.select([pidfd], [], [], seconds)[0]:
            return False
    finally:
        os.close(pidfd)
    process.wait()
    return True


def run(command: list[str], folder: Path, seconds: float = 40) -> Done:
    """Run a command, its output through files: whatever it leaves behind cannot hold us up."""
    return _run(command, folder, seconds, lambda process: None)


def _run(
    command: list[str],
    folder: Path,
    seconds: float,
    started: Callable[[subprocess.Popen[bytes]], None],
) -> Done:
    begun = time.monotonic()
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        started(process)
        status = process.returncode if wait_for(process, seconds) else None
        if status is None:
            process.kill()
            process.wait()
    said, told = ((folder / name).read_text(errors="replace") for name in ("out", "err"))
    return Done(status, said, told, time.monotonic() - begun)


@dataclass
class Supervisor:
    """Serves all commands that it runs, and what they leave running, until it is closed."""

    folder: Path
    point: Point | None = None
    calls: list[Call] = field(default_factory=list)
    hit: Call | None = None
    drifted: str = ""
    """The call that was met in the place of the point's, where a run went another way."""

    def __post_init__(self) -> None:
        self._processes: dict[int, _Process] = {}
        self._listeners = select.poll()
        self._wake_read, self._wake = os.pipe()
        self._listeners.register(self._wake_read, select.POLLIN)
        self._open: set[int] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving: what still runs has each of its calls fail."""
        self._closed = True
        os.write(self._wake, b"x")
        self._thread.join()
        for fd in (*self._open, self._wake, self._wake_read):
            os.close(fd)

    def run(self, key: str, command: list[str], seconds: float = 40) -> Done:
        """Run a command under this key."""

        def started(process: subprocess.Popen[bytes]) -> None:
            self._processes[process.pid] = _Process(key)
            fd = _listener_of(process)
            self._open.add(fd)
            self._listeners.register(fd, select.POLLIN)
            os.write(self._wake, b"x")

        launched = [sys.executable, "-S", "-E", LAUNCH, *command]
        return _run(launched, self.folder, seconds, started)

    def _serve(self) -> None:
        while not self._closed:
            for fd, event in self._listeners.poll():
                if fd == self._wake_read:
                    os.read(fd, 1)
                elif event & select.POLLIN:
                    self._answer(fd)
                else:  # nobody is left
                    self._listeners.unregister(fd)
                    os.close(fd)
                    self._open.discard(fd)

    def _answer(self, fd: int) -> None:
        request = bytearray(80)
        try:
            fcntl.ioctl(fd, _RECEIVE, request)
        except OSError:
            return  # it was killed meanwhile
        identity, pid, _, number, _, _, *arguments = struct.unpack("QIIiIQ6Q", request)
        process = self._known(pid)
        process.calls += 1
        name = NAMES.get(number, str(number))
        action = ""
        if self.point and (process.key, process.calls) == self.point[:2]:
            if name == self.point.name:
                self.hit = self._describe(pid, process, name, arguments)
                action = self.point.action
            else:
                self.drifted = name
        elif self.point is None:
            self.calls.append(self._describe(pid, process, name, arguments))
        if action == KILL:
            os.kill(pid, signal.SIGKILL)
            return
        error = -number_of(action) if action else 0
        try:
            fcntl.ioctl(
                fd, _SEND, struct.pack("QqiI", identity, 0, error, 0 if error else _CONTINUE)
            )
        except OSError:
            pass  # as above

    def _known(self, pid: int) -> _Process:
        if pid not in self._processes:
            parent = self._processes.get(_parent(pid))
            if parent:
                parent.children += 1
            self._processes[pid] = _Process(f"{parent.key}.{parent.children}" if parent else "?")
        return self._processes[pid]

    def _describe(self, pid: int, process: _Process, name: str, arguments: list[int]) -> Call:
        detail, comm = "", ""
        try:
            comm = Path(f"/proc/{pid}/comm").read_text().strip()
            if name in ARGUMENT_PATHS:
                with open(f"/proc/{pid}/mem", "rb") as memory:
                    memory.seek(arguments[ARGUMENT_PATHS[name]])
                    detail = memory.read(100).partition(b"\0")[0].decode(errors="replace")
        except OSError:
            pass  # it ended, or the argument is no pointer that can be read
        return Call(process.key, process.calls, name, comm, detail)


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def _listener_of(process: subprocess.Popen[bytes]) -> int:
    """Take the descriptor that tells of its calls out of a process that has just been launched."""
    deadline = time.monotonic() + 10
    folder = f"/proc/{process.pid}/fd"
    while time.monotonic() < deadline:
        for number in os.listdir(folder):
            try:
                found = os.readlink(f"{folder}/{number}")
            except OSError:
                continue
            if found == "anon_inode:seccomp notify":
                pidfd = os.pidfd_open(process.pid)
                fd = int(_libc.syscall(_SYS_PIDFD_GETFD, pidfd, int(number), 0))
                os.close(pidfd)
                if fd < 0:
                    raise OSError(ctypes.get_errno(), "pidfd_getfd")
                return fd
        time.sleep(0.001)
    raise TimeoutError(f"{process.args!r} does not tell of its calls")
