"""Why a machine in QEMU is silent: what it said last, and whether this machine ran out of room."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vm import processes
from vm.errors import MachineError
from vm.qmp import QMP


def console(folder: Path) -> str:
    """All that a guest wrote to its serial console."""
    file = folder / "console.log"
    return file.read_text(errors="replace") if file.exists() else ""


def last_words(folder: Path, process: subprocess.Popen[bytes] | None = None) -> list[str]:
    """The last lines of QEMU and the guest, and those of a panic before them; how QEMU ended."""
    ended = process.returncode if process is not None else None
    killed = "QEMU was killed, as by a kernel that is out of memory: see dmesg"
    fate = [killed] if ended == -signal.SIGKILL else []
    log = folder / "qemu.log"
    said = log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
    lines = console(folder).splitlines()
    panic = [line for line in lines[:-12] if re.search("BUG:|Oops|RIP:|Kernel panic", line)]
    return [*fate, *said, *panic[:20], *lines[-12:]]


def paused(control: Callable[[], QMP]) -> bool | None:
    """Whether QEMU has paused the guest, whose disk it could not write; None where it does not say:
    it is busy, or talks to somebody else."""
    try:
        return bool(control().execute("query-status")["status"] == "io-error")
    except MachineError:
        return None


def shortage(
    folder: Path,
    memory: Path,
    process: subprocess.Popen[bytes] | None,
    control: Callable[[], QMP],
) -> str:
    """What this machine lacks, where that is why the guest is silent; else nothing.

    QEMU pauses a guest whose disk it cannot write, and is ended by SIGBUS where the file system
    of the guest's memory is full. `process` is QEMU where it is a child of this one.
    """
    ended = None
    if process is not None:
        with suppress(subprocess.TimeoutExpired):
            ended = process.wait(0.5)
    if ended is None and processes.recorded(folder / "pid") is not None:
        if paused(control):
            return f"paused, since its disk could not be written: {_room(folder)}"
    elif ended == -signal.SIGBUS or (ended is None and not _free(memory.parent)):
        return f"ended, since it got no more memory: {_room(memory.parent)}"
    return ""


def _free(folder: Path) -> int:
    """MiB that are free where a folder lies; 0 for one that is gone."""
    try:
        return shutil.disk_usage(folder).free >> 20
    except FileNotFoundError:
        return 0


def _room(folder: Path) -> str:
    """What to do about a file system that is full, or broken."""
    free = _free(folder)
    if free < 2:
        return f"no space left in {folder}: free some, or set VM_RUN"
    return f"{folder} ({free} MiB free) could not be written: see dmesg"
