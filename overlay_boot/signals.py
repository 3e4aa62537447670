"""Signals by number, and how one is sent and read, see signal(7). Python's own module signal takes as
long to import as all mounts of a boot, for the sake of its enumerations.
"""

from __future__ import annotations

import os
from _signal import (  # type: ignore[import-not-found]
    SIG_UNBLOCK,
    pidfd_send_signal,
    pthread_sigmask,
)

SIGHUP = 1
SIGINT = 2
SIGQUIT = 3
SIGKILL = 9
SIGTERM = 15
SIGCONT = 18
SIGSTOP = 19
SIGNALS_FORWARDED = (SIGHUP, SIGINT, SIGQUIT, 10, SIGTERM, 12)  # 10 and 12: SIGUSR1, SIGUSR2
SIGNALS = [*range(1, 32), *range(35, 65)]  # but the two that the C library keeps for itself

_SIZE_OF_SIGNALFD_SIGINFO = 128


def kill_process(pidfd: int, number: int) -> None:
    """pidfd_send_signal(2); a process that has ended takes it in silence."""
    try:
        pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass


def take_interrupts() -> None:
    """From now on SIGINT is KeyboardInterrupt, also one that came while the command was loaded."""
    pthread_sigmask(SIG_UNBLOCK, (SIGINT,))


def read_signal(fd: int) -> int:
    """The number of the next signal of linux.signals_as_file."""
    return int.from_bytes(os.read(fd, _SIZE_OF_SIGNALFD_SIGINFO)[:4], "little")
