"""Into a running subhost: all its namespaces and its root (overlay-go(8), decision 19)."""

from __future__ import annotations

import os
import sys

from overlay_boot import NotRunning
from overlay_boot.linux import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    setns,
)
from overlay_boot.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ALL = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWPID


def enter(record: Record) -> None:
    """Join the subhost's namespaces and root; processes forked from now on are in its pid
    namespace. Nothing can be imported any more: it would be the subhost's files that are found."""
    process = record.open_process()
    if process is None:
        raise NotRunning(f"{record.name} is not running")
    sys.meta_path.clear()
    setns(process, ALL)
    os.close(process)
    os.chdir("/")


def status_of(wait_status: int) -> int:
    """The exit status that a shell would show: 128 and the signal's number for a killed one."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


def inside(record: Record, do: Callable[[], None]) -> int:
    """Run do in a process inside the subhost and return its exit status."""
    middle = os.fork()
    if middle == 0:
        status = 1
        try:
            enter(record)
            inner = os.fork()
            if inner == 0:
                do()
                os._exit(0)
            status = status_of(os.waitpid(inner, 0)[1])
        finally:
            os._exit(status)
    return status_of(os.waitpid(middle, 0)[1])
