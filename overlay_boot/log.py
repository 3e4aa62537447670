"""LOG: the subhost's log file (overlay-boot(8), LOG)."""

from __future__ import annotations

import os
import stat
import time

from overlay_boot import OverlayBootError


def open_log(path: str) -> int:
    """A descriptor that appends to the log, made with mode 0640; never through a symbolic link and
    never a file of another user, which anyone could put into /tmp. Raises OverlayBootError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o640)
    except OSError as error:
        reason = "it is a symbolic link" if os.path.islink(path) else error.strerror
        raise OverlayBootError(
            f"LOG {path} cannot be written: {reason}: remove it, or set LOG"
        ) from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(fd)
        what = "is not a regular file"
        if stat.S_ISREG(status.st_mode):
            what = f"belongs to user id {status.st_uid}"
        raise OverlayBootError(f"LOG {path} {what}: remove it, or set LOG")
    os.fchmod(fd, 0o640)
    os.set_blocking(fd, True)
    return fd


class Log:
    """An open log: overlay-boot's own lines in it, each with the time."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = open_log(path)

    def say(self, message: str) -> None:
        """Write one line. Raises OverlayBootError where it cannot be written whole."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        line = os.fsencode(f"{stamp} overlay-boot: {message}\n")
        try:
            if os.write(self.fd, line) == len(line):
                return
            reason = "No space left on device"
        except OSError as error:
            reason = str(error.strerror)
        raise OverlayBootError(f"LOG {self.path} cannot be written: {reason}: or set LOG")
