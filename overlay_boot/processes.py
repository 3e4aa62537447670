"""Processes as /proc shows them (proc(5)). One is known by its pid and its start time, since pids are
given again."""

from __future__ import annotations

import os

from overlay_boot import lines_of


def open_process(pid: int, started: int) -> int | None:
    """A pidfd of the process that has this pid and start time, None when it has ended."""
    if not pid:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if start_time(pid) == started:
        return pidfd
    os.close(pidfd)
    return None


def name_of(pid: int) -> str:
    """A process's name (proc_pid_comm(5)); empty if it has ended."""
    try:
        return "\n".join(lines_of(f"/proc/{pid}/comm")[:-1])
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _stat(pid: int) -> list[str]:
    """A process's fields of proc_pid_stat(5) from the third on, its state; none if it has ended."""
    try:
        return "".join(lines_of(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def process_status(pid: int) -> tuple[str, int, int]:
    """A process's state, parent and start time in clock ticks since boot; ("", 0, 0) if it has
    ended, be it a zombie still."""
    fields = _stat(pid)
    if not fields or fields[0] in "ZX":
        return "", 0, 0
    return fields[0], int(fields[1]), int(fields[19])


def is_ending(pid: int) -> bool:
    """Whether a process has ended or is about to, having closed its files (PF_EXITING)."""
    fields = _stat(pid)
    return not fields or fields[0] in "ZX" or bool(int(fields[6]) & 4)


def start_time(pid: int) -> int:
    """When a process started, see process_status."""
    return process_status(pid)[2]
