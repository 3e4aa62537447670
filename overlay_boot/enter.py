"""Commands inside a running subhost (overlay-go(8), overlay-stop(8)).

The static program brings them there (helper.c, "enter"): of the main host no interpreter, no
environment, no descriptor and no terminal is ever seen inside, not even while a command works.
"""

from __future__ import annotations

import os

from overlay_boot import HELPER, PATH, NotRunning, commands
from overlay_boot.records import Record
from overlay_boot.signals import SIGKILL
from overlay_boot.waiting import Deadline, Waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

UNKILLABLE = 5.0  # seconds for a command to die that has been sent SIGKILL
CANNOT = 125  # the exit status of a command that could not even be tried


class Inside:
    """A command inside a subhost. With the role "--enter" it is a command with its words, or
    without any root's shell; "--hold" is only there, "--terminate" sends SIGTERM to all others."""

    def __init__(
        self,
        record: Record,
        role: str,
        command: Sequence[str],
        fds: Sequence[int],
        environment: dict[str, str] | None = None,
        cgroup: str = "",
        terminal: int = -1,
        name: str = "overlay-go",
    ) -> None:
        process = record.open_process()
        if process is None:
            raise NotRunning(f"{record.name} is not running")
        try:  # what root may do there at most is told in it (go-capabilities)
            status = os.open(f"/proc/{record.pid}/status", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(process)
            raise NotRunning(f"{record.name} is not running") from None
        control, self.control = os.pipe()
        self.reports, reports = os.pipe()
        more = {3: process, 4: control, 5: reports, 8: status}
        if cgroup:
            try:
                more[6] = os.open(f"{cgroup}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            except OSError:
                pass  # somebody has removed it
        if terminal >= 0:  # the caller's, to be put right should the caller be killed
            more[7] = os.dup(terminal)
        words = [name, role, *command]
        self.pid = 0
        try:
            self.pid = commands.spawn(words, environment or {"PATH": PATH}, fds, more, HELPER)
        finally:
            for fd in more.values():
                os.close(fd)

    def send(self, number: int) -> None:
        """Send a signal to the command, or to all of its process group where a terminal would."""
        try:
            os.write(self.control, bytes([number]))
        except BrokenPipeError:
            pass  # it has ended

    def report(self) -> str:
        """What self.reports has: "ready", "inside" (of "--hold" alone), "stopped", or "ended" when
        the status can be had."""
        return {b"r": "ready", b"i": "inside", b"s": "stopped"}.get(
            os.read(self.reports, 1), "ended"
        )

    def wait_until_inside(self, seconds: float) -> None:
        """Return when there is a process in the subhost, or none can be any more."""
        deadline = Deadline(seconds)
        while Waiter().wait(self.reports, seconds=deadline.left):
            if self.report() in ("inside", "ended"):
                return

    def status(self) -> int:
        """Wait for its end; its exit status as a shell shows it."""
        os.close(self.reports)
        self._let_go()
        return commands.status_of(os.waitpid(self.pid, 0)[1])

    def status_within(self, seconds: float) -> int | None:
        """Its exit status, or None if it did not end in time: it is ended then. One that even SIGKILL
        does not end, since it waits for a file system that does not answer, is left to the end of
        the subhost."""
        if self._ends_within(seconds):
            return self.status()
        self._let_go()
        if not self._ends_within(UNKILLABLE):
            os.kill(self.pid, SIGKILL)
        self.status()
        return None

    def _ends_within(self, seconds: float) -> bool:
        deadline = Deadline(seconds)
        while Waiter().wait(self.reports, seconds=deadline.left):
            if self.report() == "ended":
                return True
            if deadline.passed:
                break
        return False

    def _let_go(self) -> None:
        """Let the command end: SIGHUP, and SIGKILL to its process group when that is ignored."""
        if self.control >= 0:
            os.close(self.control)
            self.control = -1
