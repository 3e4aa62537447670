"""overlay-stop: the services in reverse, SIGTERM, SIGKILL, and wait until all is gone
(overlay-stop(8)).

Nothing here depends on the goodwill of the inside: every wait has a deadline, and in the end pid 1
is killed from outside, with all that is in its pid namespace.
"""

from __future__ import annotations

import fcntl
import os
import time

from overlay_boot import PATH, OverlayBootError, commands, explain, lines_of, printable
from overlay_boot.enter import CANNOT, Inside
from overlay_boot.log import Log
from overlay_boot.processes import name_of, open_process, process_status, start_time
from overlay_boot.records import Record, identity
from overlay_boot.running import KEEPER
from overlay_boot.signals import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, kill_process
from overlay_boot.waiting import Deadline, Waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SERVICE = 90.0  # seconds for each service's stop script, unless told otherwise
GRACE = 10.0  # seconds after SIGTERM
STARTING = 7.0  # seconds for the end of a start script that is under way
TELLING = 5.0  # seconds for sending SIGTERM, before it is tried again
SETTLE = 10.0  # seconds for the kernel to clear up after the last process
POWER_OFF = 38  # the signal that systemd takes for that, SIGRTMIN+4 (systemd(1))
NAMES = 8  # processes that are told by name
DESCRIPTORS = 64  # that are enough for all of it


class Stop:
    """The end of one subhost; `problems` is what did not end by itself."""

    def __init__(self, record: Record, timeout: float) -> None:
        self.record = record
        self.timeout = timeout
        self.waiter = Waiter()
        self.keeper_lost = False
        self.problems: list[str] = []
        self.warnings: list[str] = []
        _allow_descriptors()
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            self.log: Log | None = Log(record.log)
        except OverlayBootError as error:
            self.log = None
            self.warnings.append(f"{error}; what is said while it stops is lost")

    def run(self) -> None:
        """Stop it; returns when its processes, mounts, cables, name and record are gone."""
        process = self.record.open_process()
        if process is not None and not self._alone(process):
            process = None  # it has ended, by another overlay-stop
        if process is not None:
            pinned = self._pin_namespace()
            try:
                if self.record.systemd and not self._runs_systemd():
                    self._end_script(process)
                if self._runs_systemd():
                    self._power_off(process)
                elif not self._ended(process, 0):
                    self._stop_start(process)
                if not self._ended(process, 0):
                    self._terminate(process)
            finally:  # whatever went wrong with asking
                kill_process(process, SIGKILL)
            if not self._ended(process, SETTLE):
                raise OverlayBootError(
                    f"{self.record.name}: pid {self.record.pid} does not die: see its state"
                )
            if pinned is not None:
                self._ifdown()
                os.close(pinned)
        self._wait_until_clear()
        if process is not None:
            self._say("stopped")

    def _alone(self, process: int) -> bool:
        """Whether it falls to this overlay-stop: another one that is at work is waited for, and what
        is left is done if that one gives up."""
        while not self._ended(process, 0):
            try:
                fcntl.lockf(self.record.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError:
                self._ended(process, 0.05)
        return False

    def _pin_namespace(self) -> int | None:
        """Where the keeper is lost: what keeps the cables until ifdown has run."""
        if not self.record.is_free():
            return None
        self.keeper_lost = True
        try:
            return os.open(f"/proc/{self.record.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None

    def _ifdown(self) -> None:
        """In place of the keeper: take down what ifup took up."""
        program = commands.find("ifdown")
        names = [link.name for link in reversed(self.record.left_cables())]
        if self.record.ifdown and program and names:
            command = [program, *names]
            done = commands.run(
                command,
                {"PATH": PATH},
                self.waiter,
                capture=True,
                errors_too=True,
                seconds=SERVICE,
            )
            self._say(" ".join(os.fsdecode(done.output).split()) or "ifdown has run")

    def _say(self, message: str) -> None:
        """A line in the log; one that cannot be written is warned about, once."""
        if self.log is None:
            return
        try:
            self.log.say(f"{self.record.name}: {message}")
        except OverlayBootError as error:
            self.warnings.append(str(error))
            self.log = None

    def _problem(self, message: str) -> None:
        self.problems.append(message)
        self._say(message)

    def _ended(self, process: int, seconds: float | None) -> bool:
        return self.waiter.ended(process, seconds)

    def _runs_systemd(self) -> bool:
        """Whether pid 1 is systemd, be it on its way down by now."""
        return name_of(self.record.pid).startswith("systemd")

    def _end_script(self, process: int) -> None:
        """End a pid 1 that is just about to be systemd, and so has started nothing."""
        kill_process(process, SIGSTOP)  # or else it might go on between the look and the end
        if not self._runs_systemd():
            kill_process(process, SIGKILL)
            self._say("stopped before systemd was executed")
            self._ended(process, SETTLE)
        kill_process(process, SIGCONT)

    def _power_off(self, process: int) -> None:
        """Ask systemd to stop all units in their order, and to end (stop-systemd). It passes over
        the signal before it is ready for it."""
        begun = time.monotonic()
        seconds = self.timeout * max(len(self.record.start), 1) + min(GRACE, self.timeout)
        deadline = Deadline(seconds)
        while not _awaits(self.record.pid, POWER_OFF) and not deadline.passed:
            if self._ended(process, 0.02):
                return
        kill_process(process, POWER_OFF)
        if self._ended(process, deadline.left):
            self._say(f"systemd has powered off: {time.monotonic() - begun:.2f} s")
        else:
            self._problem(f"systemd did not power off within {seconds:g} s")

    def _stop_start(self, process: int) -> None:
        """Stop START's services, and have sysvinit end if that is pid 1. Meanwhile a process of ours
        is inside, or else pid 1 would end with the last one of a service, or with the start that is
        ended."""
        held = self._inside("--hold") if self.record.start else None
        if held:
            held.wait_until_inside(2)
        self._stop_services(process, self._end_start())
        if held:
            held.status()
        if name_of(self.record.pid) == "init" and not self._ended(process, 0):
            self._change_runlevel(process)

    def _change_runlevel(self, process: int) -> None:
        """Ask sysvinit to end by its own way; what else has that name has no telinit(8)."""
        asked = self._inside("--enter", ["telinit", "0"])
        if not asked or asked.status_within(self.timeout):
            return
        if not self._ended(process, self.timeout):
            self._problem(f"pid 1 did not reach runlevel 0 within {self.timeout:g} s")

    def _end_start(self) -> list[str]:
        """End the start of services if that still goes on; those that were begun (stop-starting)."""
        services = self.record.start
        if name_of(self.record.pid) == ".reaper" or not services:
            return services
        for pid in _children(self.record.pid):
            begun = _begun(pid)
            process = open_process(pid, start_time(pid)) if begun else None
            if process is None:
                continue
            kill_process(process, SIGTERM)
            begun = _begun(pid) or begun
            if not self._ended(process, STARTING):
                kill_process(process, SIGKILL)
            os.close(process)
            self._say(f"stopped while its services were started, after {begun} of {len(services)}")
            return services[:begun]
        return services

    def _stop_services(self, process: int, services: list[str]) -> None:
        """Run each stop script, the last service's first."""
        for service in reversed(services):
            command = (
                [service, "stop"] if service.startswith("/") else ["service", service, "stop"]
            )
            begun = time.monotonic()
            ended = self._ended(process, 0)
            running = None if ended else self._inside("--enter", command)
            status = running.status_within(self.timeout) if running else CANNOT
            if status is None:
                self._problem(
                    f"the stop script of {service} did not end within {self.timeout:g} s"
                )
            elif status == CANNOT:
                self._problem(f"{service} could not be told to stop")
            else:
                how = f" failed: exit status {status}, after" if status else ":"
                self._say(f"stop of {service}{how} {time.monotonic() - begun:.2f} s")

    def _inside(self, role: str, command: Sequence[str] = ()) -> Inside | None:
        """A command inside, its messages into the log; None where none can be started any more. It
        gets nothing of the caller's, least of all the terminal."""
        out = self.log.fd if self.log else self.null
        try:
            fds = (self.null, out, out)
            return Inside(self.record, role, command, fds, name="overlay-stop")
        except OSError as error:
            message = f"no process can be started inside: {explain(error)}"
            if message not in self.problems:
                self._problem(message)
        except OverlayBootError as error:  # it has ended by itself
            self._say(str(error))
        return None

    def _tell_to_end(self) -> bool:
        """SIGTERM to every process; whether that was sent."""
        messenger = self._inside("--terminate")
        return messenger is not None and messenger.status_within(TELLING) == 0

    def _terminate(self, process: int) -> None:
        """SIGTERM to every process; those that do not end within the grace period are named. It is
        sent again where it could not be, or where pid 1 may have started dummy_service since: for a
        moment pid 1 is .reaper before it has, and then not."""
        grace = min(GRACE, self.timeout)
        deadline = Deadline(grace)
        sent = all_told = False
        while True:
            reaps = name_of(self.record.pid) == ".reaper"
            if (reaps or not sent) and self._tell_to_end():
                deadline = deadline if sent else Deadline(grace)
                sent = True
                all_told = reaps and name_of(self.record.pid) == ".reaper"
            if self._ended(process, deadline.left if all_told else 0.02):
                return
            if all_told or deadline.passed:
                break
        left = [name_of(pid) for pid in _processes(self.record.pid)]
        more = f" and {len(left) - NAMES} more" if len(left) > NAMES else ""
        names = ", ".join(map(printable, sorted(filter(None, left))[:NAMES])) + more
        how = (
            f"did not end within {grace:g} s after SIGTERM" if sent else "could not be told to end"
        )
        self._problem(f"{names or 'pid 1'} {how}: killed")

    def _wait_until_clear(self) -> None:
        """Wait for the keeper, and do its work where it cannot."""
        record = self.record
        deadline = Deadline(KEEPER if record.ifdown else SETTLE)
        keeper = self._open_keeper()
        while not record.is_free():
            if deadline.passed or process_status(record.keeper)[0] in ("T", "t"):
                if keeper is not None:
                    kill_process(keeper, SIGKILL)
                    self._ended(keeper, 2)  # a frozen one dies when it is thawed
                self.keeper_lost = True
                break
            if keeper is None or self._ended(keeper, 0.05):
                self.waiter.wait(seconds=0.001)
        if self.keeper_lost or record.stands():
            record.clear()
        deadline = Deadline(SETTLE)
        while left := record.left_cables():
            if deadline.passed:
                names = " ".join(link.name for link in left)
                raise OverlayBootError(f"{names} did not go away: remove it by hand")
            self.waiter.wait(seconds=0.001)

    def _open_keeper(self) -> int | None:
        """A pidfd of the keeper; none where that pid is not, or no more, the one with this record."""
        keeper = self.record.keeper
        process = open_process(keeper, start_time(keeper))
        try:
            ours = os.path.samestat(os.stat(f"/proc/{keeper}/fd/3"), os.fstat(self.record.fd))
        except OSError:
            ours = False
        return process if ours else None


def _allow_descriptors() -> None:
    """A limit of the caller's must not keep the services from being told (stop-descriptors)."""
    if os.sysconf("SC_OPEN_MAX") < DESCRIPTORS:
        import resource

        hard = max(DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
        except (OSError, ValueError):
            pass  # not even root may raise a hard limit everywhere: what cannot be done is told


def _numbers() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _children(parent: int) -> list[int]:
    """The children of a process."""
    return [pid for pid in _numbers() if process_status(pid)[1] == parent]


def _awaits(pid: int, number: int) -> bool:
    """Whether a process blocks or catches a signal: as pid 1 of its namespace it passes over any
    other (pid_namespaces(7))."""
    try:
        lines = lines_of(f"/proc/{pid}/status")
    except OSError:
        return False
    masks = [int(line[7:], 16) for line in lines if line.startswith(("SigBlk:", "SigCgt:"))]
    return any(mask >> number - 1 & 1 for mask in masks)


def _begun(pid: int) -> int:
    """How many services a process has begun to start, which its name tells; 0 if it is not the one
    that does this for the default INIT: the subhost's second process (reaper.c, start)."""
    word, _, count = name_of(pid).partition(" ")
    try:
        lines = lines_of(f"/proc/{pid}/status")
        numbers = next(line for line in lines if line.startswith("NSpid:")).split()
    except (OSError, StopIteration):
        return 0
    known = word == "starting" and count.isascii() and count.isdigit() and numbers[-1] == "2"
    return int(count) if known else 0


def _processes(first: int) -> list[int]:
    """The processes in the pid namespace of a process, but for that one."""
    found = []
    try:
        namespace = identity(f"/proc/{first}/ns/pid")
    except OSError:
        return []
    for pid in _numbers():
        try:
            if pid != first and identity(f"/proc/{pid}/ns/pid") == namespace:
                found.append(pid)
        except OSError:
            pass  # it ended just now
    return found


def stop(record: Record, timeout: float = SERVICE) -> Stop:
    """Stop a running subhost, with so many seconds for each stop script. What did not end by itself
    is in the result. Raises OverlayBootError where it does not come to an end at all."""
    stopping = Stop(record, timeout)
    try:
        stopping.run()
    except OSError as error:
        raise OverlayBootError(f"{record.name}: cannot be stopped: {explain(error)}") from error
    return stopping
