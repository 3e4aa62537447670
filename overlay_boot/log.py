"""LOG: the subhost's log file (overlay-boot(8), LOG)."""

from __future__ import annotations

import os
import stat
import time

from overlay_boot import OverlayBootError

FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_log(path: str) -> int:
    """A descriptor that appends to the log, which is made with mode 0640 where there is none; never
    through a symbolic link, and never to a file that another user, or another name, has too: anyone
    could have put it into /tmp. Raises OverlayBootError."""
    try:
        try:
            fd = os.open(path, FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
            os.fchmod(fd, 0o640)  # whatever the umask
        except FileExistsError:
            fd = os.open(path, FLAGS)
    except OSError as error:
        reason = "it is a symbolic link" if os.path.islink(path) else error.strerror
        raise OverlayBootError(
            f"LOG {path} cannot be written: {reason}: remove it, or set LOG"
        ) from error
    status = os.fstat(fd)
    problem = ""
    if not stat.S_ISREG(status.st_mode):
        problem = "is not a regular file"
    elif status.st_uid != os.geteuid():
        problem = f"belongs to user id {status.st_uid}"
    elif status.st_nlink > 1:
        problem = "has another name too, as a hard link"
    if problem:
        os.close(fd)
        raise OverlayBootError(f"LOG {path} {problem}: remove it, or set LOG")
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
        raise OverlayBootError(f"LOG {self.path} cannot be written: {reason}: fix it or set LOG")
