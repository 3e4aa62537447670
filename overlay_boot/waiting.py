"""Waiting, with an end to it: a signal, the loss of the process that asked, or a time limit.

Signals are taken here and nowhere else, so that nothing is cut off half made: every process of a
boot waits through its Waiter, and what it was told to end ends it there (overlay-boot(8),
interrupted).
"""

from __future__ import annotations

import select
import time

from overlay_boot import OverlayBootError
from overlay_boot.signals import read_signal


class Interrupted(OverlayBootError):
    """A signal told this command to end. The exit status is a shell's for that signal."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted")
        self.status = 128 + number


class Aborted(OverlayBootError):
    """The process that this one works for has given up, or died."""

    def __init__(self) -> None:
        super().__init__("the boot was aborted")


class Waiter:
    """Waits for descriptors, until it is told to end: by a signal of `signals`, a signalfd(2), or
    by the loss of whoever holds the other end of the pipe `asked`."""

    def __init__(self, *, signals: int = -1, asked: int = -1) -> None:
        self.signals = signals
        self.asked = asked

    def wait(self, *fds: int, seconds: float | None = None) -> list[int]:
        """Those of the descriptors that are readable or closed at their other end, at the latest
        after so many seconds. Raises Interrupted or Aborted."""
        poll = select.poll()
        if self.signals >= 0:
            poll.register(self.signals, select.POLLIN)
        if self.asked >= 0:
            poll.register(self.asked, 0)  # its end is told all the same
        for fd in fds:
            poll.register(fd, select.POLLIN)
        found = dict(poll.poll(None if seconds is None else max(seconds, 0) * 1000))
        if self.signals in found:
            raise Interrupted(read_signal(self.signals))
        if found.get(self.asked, 0) & select.POLLHUP:
            raise Aborted
        return list(found)

    def ended(self, process: int, seconds: float | None = None) -> bool:
        """Whether the process of a pidfd has ended, now or within so many seconds."""
        return bool(self.wait(process, seconds=seconds))


def on_signals(*numbers: int) -> Waiter:
    """A Waiter that these signals end; anywhere else they wait."""
    from overlay_boot.linux import signals_as_file

    return Waiter(signals=signals_as_file(numbers))


class Deadline:
    """A moment so many seconds from now; without any, never."""

    def __init__(self, seconds: float | None) -> None:
        self.at = None if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float | None:
        """Seconds until then, 0 when it has passed."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether it has come."""
        return self.left == 0.0
