"""A subhost of either version of overlay-boot, timed and weighed from outside by the same rules."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, STDOUT

CONF = "BASE= .\nSTART= none\nLOG= {log}\nCABLES= {cables}\n"
LIMIT = 60.0  # seconds for any one thing to happen


class Unavailable(Exception):
    """Something cannot be measured here, and why."""


def now() -> float:
    """Milliseconds since some moment."""
    return time.perf_counter() * 1000


def run(*command: str | Path) -> None:
    """Run a command to its end; raises Unavailable with the last line that it said."""
    try:
        done = subprocess.run(
            command, stdin=DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(str(error)) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(said[-1] if said else f"{command[0]}: exit status {done.returncode}")


def until(condition: Callable[[], object], what: str) -> None:
    """Return as soon as a condition holds; raises Unavailable when it does not for LIMIT. Looks
    every half millisecond: all the time would take a processor from what is measured."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        time.sleep(0.0005)
        if time.monotonic() > deadline:
            raise Unavailable(f"{what} did not happen within {LIMIT:.0f} s")


def read(path: str) -> bytes:
    """A file of /proc; empty when its process has ended."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # ENOENT, ESRCH or EINVAL, by how far its end has got
        return b""


def pids() -> set[str]:
    """Every process."""
    return set(filter(str.isdigit, os.listdir("/proc")))


class Subhost:
    """One subhost, its folder, and the commands of the version that it belongs to."""

    def __init__(self, commands: Path, folder: Path, name: str) -> None:
        self.commands = commands
        self.name = name
        self.conf = folder / name / f"{name}.conf"
        for part in ("root", "work", "live"):
            (self.conf.parent / part).mkdir(parents=True)

    def boot(self, cables: str) -> float:
        """Milliseconds from the command until pid 1 is /.reaper, where both versions end up."""
        before = pids()
        log = (
            self.conf.parent / "log"
        )  # Debian's has a relative LOG start from the caller's folder
        self.conf.write_text(CONF.format(cables=cables, log=log))
        with open(log, "ab") as output:
            started = now()
            command = [self.commands / "overlay-boot", self.conf]
            with subprocess.Popen(command, stdin=DEVNULL, stdout=output, stderr=STDOUT) as boot:
                until(
                    lambda: boot.poll() or any(map(self._is_reaper, pids() - before)),
                    f"/.reaper of {self.name}, see {log},",
                )
                taken = now() - started
        if boot.returncode:
            raise Unavailable(f"overlay-boot: {log.read_text().splitlines()[-1]}")
        return taken

    def _is_reaper(self, pid: str) -> bool:
        """True for /.reaper on the root of this subhost: others may be booting as well."""
        root = f"upperdir={self.conf.parent}/root".encode()
        return read(f"/proc/{pid}/comm") == b".reaper\n" and root in read(f"/proc/{pid}/mountinfo")

    def processes(self) -> list[int]:
        """The processes that are there because of the subhost: those in its network namespace,
        and those whose command line names its configuration or its namespace."""
        netns = f"/run/netns/{self.name}"
        marks = (os.fsencode(self.conf) + b"\0", netns.encode() + b"\0")
        found = []
        for pid in pids():
            command = read(f"/proc/{pid}/cmdline")
            try:
                inside = os.path.samefile(f"/proc/{pid}/ns/net", netns)
            except OSError:  # the process or the namespace's name is gone
                inside = False
            if inside or any(mark in command for mark in marks):
                found.append(int(pid))
        return sorted(found)

    def memory(self) -> float:
        """KiB that the idle subhost's processes hold: their proportional set size, in which a page
        that n processes share counts 1/n."""
        seen = [self.processes()]

        def settled() -> bool:  # the processes that only boot have ended
            time.sleep(0.1)
            seen.append(self.processes())
            return seen[-1] == seen[-2]

        until(settled, "the end of the boot's processes")
        rollups = [read(f"/proc/{pid}/smaps_rollup") for pid in seen[-1]]
        return float(sum(int(text.split(b"\nPss:")[1].split()[0]) for text in rollups))

    def traces(self) -> list[str]:
        """What is there of it beside processes."""
        paths = [f"/run/{folder}/{self.name}" for folder in ("netns", "overlay-boot")]
        paths.append(f"/sys/class/net/{self.name}0")
        return [path for path in paths if os.path.lexists(path)]

    def stop(self) -> float:
        """Milliseconds until overlay-stop has returned and processes, namespace, cable and record
        are gone."""
        watch = select.poll()
        waiting = {os.pidfd_open(pid) for pid in self.processes()}
        for fd in waiting:
            watch.register(fd, select.POLLIN)
        started = now()
        run(self.commands / "overlay-stop", self.conf)

        def ended() -> bool:
            for fd, _ in watch.poll(1000):
                watch.unregister(fd)
                waiting.remove(fd)
                os.close(fd)
            return not waiting

        until(ended, f"the end of {self.name}'s processes")
        until(lambda: not self.traces(), f"the end of {self.name}")
        return now() - started

    def clear(self) -> None:
        """Remove what is left, whatever broke off; after a stop there is nothing to do."""
        while left := self.processes():
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it ended just now
        if self.traces():  # both versions' overlay-stop clears up after a crash
            subprocess.run(
                [self.commands / "overlay-stop", self.conf],
                stdout=DEVNULL, stderr=DEVNULL, check=False,
            )  # fmt: skip
        for folder in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
            cgroup = f"{folder}/{self.name}"  # Debian's makes one where cgroup2 is mounted
            until(partial(_removed, cgroup), f"the end of {cgroup}")


def _removed(cgroup: str) -> bool:
    try:
        os.rmdir(cgroup)
    except FileNotFoundError:
        return True
    except OSError:  # ended processes are in it for a moment still
        return False
    return True
