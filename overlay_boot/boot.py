"""The way of one boot, from a configuration to a running pid 1 (overlay-boot(8), STARTING AND
ENDING).

Four processes take part, and only the two smallest stay:

    overlay-boot   claims the name, makes the cables, returns when pid 1 has been exec'ed
    keeper         its child; becomes a static program that waits for the end of the subhost and
                   clears up after it (reaper.c, helper.c)
    builder        the keeper's child, in the new namespaces: sets the root up, starts pid 1, ends
    pid 1          the builder's child, left to the keeper: changes its root, runs INIT's commands

The first two are told here, the other two in builder.py.

overlay-boot and the builder work at the same time. "up" tells the first that the namespaces stand
and how it ended; "down" tells the second that the cables stand. Whoever fails or dies closes its
end, and the other rolls back what it has made.
"""

from __future__ import annotations

import os
import time

from overlay_boot import (
    HELPER,
    PATH,
    REAPER,
    ConfigError,
    OverlayBootError,
    cgroup,
    commands,
    explain,
)
from overlay_boot.builder import GO, Builder, tell
from overlay_boot.commands import duplicate_above
from overlay_boot.linux import become_subreaper, default_signals, open_in_root
from overlay_boot.log import Log
from overlay_boot.processes import name_of
from overlay_boot.records import FOLDER, Record
from overlay_boot.running import claim, hold
from overlay_boot.signals import SIGKILL, kill_process
from overlay_boot.steps import Step, roll_back, run
from overlay_boot.waiting import Aborted, Interrupted, Waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from overlay_boot.config import ConfigFile
    from overlay_boot.net import Cables
    from overlay_boot.subhost import Subhost

IFDOWN = 90  # seconds
SCRIPT = ("overlay-boot", "sh", "overlay-init")  # names of pid 1 while it runs INIT's commands


def boot(conf: ConfigFile, waiter: Waiter) -> Boot:
    """Boot the subhost of a configuration; returns once pid 1 runs INIT's commands.

    Raises ConfigError with nothing touched, OverlayBootError with everything rolled back.
    """
    subhost = conf.check()
    booting = Boot(waiter)
    done: list[Step] = []
    try:
        # A boot that is refused runs no command of the configuration but BASE's and NAME's.
        if conf.has_commands:
            named = lambda name: run(booting.name_steps(name), done)
            subhost = conf.resolve(conf.run(waiter), named)
        else:
            run(booting.name_steps(subhost.name), done)
        booting.warnings = conf.foreseen
        booting.prepare(subhost)
        run(booting.own_steps(), done)
        booting.finish()
    except BaseException as error:
        raise booting.roll_back(done, error) from error
    return booting


def plan(subhost: Subhost) -> list[str]:
    """The names of a boot's steps, in order, for --check."""
    booting = Boot(Waiter())
    booting.prepare(subhost)
    steps = booting.name_steps(subhost.name) + booting.own_steps()
    steps += booting.builder.steps()
    return [step.name for step in steps]


class Boot:
    """One subhost on its way up: what the processes that take part share."""

    subhost: Subhost
    record: Record
    builder: Builder
    log: Log
    cables: Cables | None = None

    def __init__(self, waiter: Waiter) -> None:
        self.waiter = waiter
        self.keeper = 0
        self.warnings: list[str] = []
        self.failure = ""  # what the builder says it failed of

    # --- overlay-boot itself

    def prepare(self, subhost: Subhost) -> None:
        """Take on a resolved subhost. The network's modules are loaded only if it has cables."""
        self.subhost = subhost
        self.builder = Builder(subhost)
        self.cgroup = cgroup.wanted(subhost.name)
        if subhost.cables:
            from overlay_boot.net import Cables

            self.cables = Cables(subhost, self.waiter, lambda text: self.log.say(text))

    def name_steps(self, name: str) -> list[Step]:
        """What comes before any of the configuration's commands but NAME's and BASE's."""

        def do() -> None:
            self.record = claim(name, self.waiter)

        return [Step(f"claim the name {name} in {FOLDER}", do, lambda: self.record.clear())]

    def own_steps(self) -> list[Step]:
        """What overlay-boot does itself."""
        subhost = self.subhost
        steps = [
            Step(f"open the log {subhost.log}", self._open_log),
            Step("hold UPPER and WORK for this subhost alone", self._hold),
        ]
        if self.cgroup:
            steps.append(
                Step(f"make the cgroup {self.cgroup}", self._make_cgroup, self._remove_cgroup)
            )
        steps += [
            Step("start the keeper and the builder", self._launch, self._give_up),
            Step("wait for the builder's namespaces", self._meet_builder),
        ]
        return steps + (self.cables.steps() if self.cables else [])

    def _open_log(self) -> None:
        if self.cables:
            from overlay_boot.net import check_host

            check_host(self.subhost)
        self.log = Log(self.subhost.log)
        self.log.say(f"{self.subhost.name}: booting {self.subhost.conf}")
        for warning in self.warnings:
            self.log.say(warning)
        self.log_start = os.fstat(self.log.fd).st_size

    def _hold(self) -> None:
        self.record.describe(self.subhost, int(time.time()))
        self.record.cgroup = self.cgroup  # before it is made: whoever clears up has to know it
        folders = [self.subhost.upper, self.subhost.work]
        self.locked = hold(self.record, folders, self.waiter)

    def _make_cgroup(self) -> None:
        os.makedirs(self.cgroup, exist_ok=True)  # a crash may have left it

    def _remove_cgroup(self) -> None:
        cgroup.remove(self.cgroup)

    def _launch(self) -> None:
        # Packets: two messages never run into one.
        self.up_read, self.up = os.pipe2(os.O_CLOEXEC | os.O_DIRECT)
        self.down, self.down_write = os.pipe()
        self.keeper = os.fork()
        if self.keeper == 0:
            self._as_keeper()
        os.close(self.up)
        os.close(self.down)

    def _meet_builder(self) -> None:
        if self.cables:
            self.cables.load()
        self.builder.pid = int(self._hear("ready"))
        if self.cables:
            self.cables.pid = self.builder.pid

    def finish(self) -> None:
        """Let pid 1 start; returns when it has, the builder has ended and the keeper is no Python
        any more."""
        record = self.record
        record.keeper = self.keeper
        record.cables = self.cables.links if self.cables else []
        record.write()
        os.write(self.down_write, GO)
        self._hear("ok")
        while self.waiter.wait(self.up_read) and os.read(self.up_read, 4096):
            pass
        record.read()
        ended, status = os.waitpid(self.keeper, os.WNOHANG)
        if ended:
            self.keeper = 0
        if status:
            raise OverlayBootError(f"{self.subhost.name}: its keeper was killed during the boot")
        record.close()  # its lock is the keeper's alone now

    def roll_back(self, done: list[Step], error: BaseException) -> BaseException:
        """Undo what was done; the error to raise. It tells what could not be undone as well, and
        where the builder failed, why: what broke here followed from it."""
        problems = roll_back(done)
        if self.failure and not isinstance(error, (Interrupted, ConfigError)):
            error = OverlayBootError(self.failure)
        elif isinstance(error, OSError):
            error = OverlayBootError(explain(error))
        message = "; ".join([explain(error), *problems])
        if isinstance(error, OverlayBootError):
            error.args = (message,)
        try:
            self.log.say(f"{self.subhost.name}: {message}")
        except (AttributeError, OverlayBootError):
            pass  # there is no log, or no room in it: the message is on its way to the user
        return error

    def _hear(self, expected: str) -> str:
        """The rest of the builder's next message, whose first word is to be the expected one."""
        self.waiter.wait(self.up_read)
        word, _, rest = os.fsdecode(os.read(self.up_read, 4096)).partition(" ")
        if word == "failed":
            raise OverlayBootError(rest)
        if word != expected:
            raise OverlayBootError(
                f"{self.subhost.name}: the boot ended halfway: see {self.subhost.log}"
            )
        return rest

    def _give_up(self) -> None:
        """End the builder and what it started, and wait until the keeper has cleared up."""
        os.close(self.down_write)
        while message := os.fsdecode(os.read(self.up_read, 4096)):
            word, _, rest = message.partition(" ")
            self.failure = rest if word == "failed" and rest != str(Aborted()) else self.failure
        self.record.read()
        process = self.record.open_process()
        if process is not None:
            kill_process(process, SIGKILL)
            Waiter().ended(process)
        if self.keeper:
            os.waitpid(self.keeper, 0)
        self.record.forget_netns(self.builder.pid)
        self.builder.root.undo_files()  # if the builder was killed before it could

    def wait_for_start(self) -> None:
        """Return when pid 1 has become /.reaper, or another program, and START's services have been
        started."""
        process = self.record.open_process()
        seen, pause = 0, 0.0
        while process is not None and not self.waiter.ended(process, pause):
            name = name_of(self.record.pid)
            starting = name in SCRIPT or name != ".reaper" and self._systemd_starts()
            seen = 0 if starting else seen + 1
            if seen == 2:  # for a moment it is .reaper before it has a process to wait for
                return
            pause = 0.02 if self.record.systemd else 0.003
        raise OverlayBootError(
            f"{self.subhost.name}: it ended before its services had been started: "
            f"see {self.subhost.log}"
        )

    def _systemd_starts(self) -> bool:
        """Whether systemd is still at it: what systemd.py has put there goes with the last word of
        what was started."""
        try:
            root = os.open(f"/proc/{self.record.pid}/root", os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            return False  # it has ended
        try:
            os.close(open_in_root(root, "run/overlay-init", os.O_PATH))
        except FileNotFoundError:
            return False
        finally:
            os.close(root)
        return True

    def not_started(self) -> list[str]:
        """The services that /.reaper has told in the log to have failed in this boot (reaper.c)."""
        found = {}
        with open(f"/proc/self/fd/{self.log.fd}", "rb") as log:
            log.seek(self.log_start)
            for line in log:
                told = line.partition(b"overlay-boot: start of ")[2]
                service, failed, _ = told.partition(b" failed: ")
                if failed:
                    found[os.fsdecode(service)] = True
        return list(found)

    def notify(self) -> None:
        """Tell systemd, where it has started this, that the subhost runs and which process stays
        as long as it does (sd_notify(3))."""
        address = os.environ.get("NOTIFY_SOCKET", "")
        if not address:
            return
        import socket

        message = f"MAINPID={self.keeper}\nREADY=1\n".encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(message, address.replace("@", "\0", 1))

    def wait_for_end(self) -> None:
        """Return when the subhost has ended and all of it is gone."""
        if self.keeper:
            self.waiter.wait(os.pidfd_open(self.keeper))

    # --- the keeper

    def _as_keeper(self) -> None:
        try:
            # Neither the caller's terminal and session nor its folder and umask are the subhost's.
            os.setsid()
            os.umask(0o022)
            os.chdir("/")
            os.close(self.up_read)
            os.close(self.down_write)
            null = os.open("/dev/null", os.O_RDWR)
            for number, fd in enumerate((null, self.log.fd, self.log.fd)):
                os.dup2(fd, number)
            become_subreaper()  # so that pid 1 is its child when the builder has ended
            joined_read, joined = os.pipe()
            builder = os.fork()
            if builder == 0:
                os.close(joined)
                self.builder.work(self.record, self.up, self.down, joined_read)
            if self.cgroup:
                self._join_cgroup(builder)
            os.write(joined, GO)
            self.up = duplicate_above(self.up, 10)
            helper = os.open(HELPER, os.O_PATH | os.O_CLOEXEC)
            kept = dict(zip((3, 4, 6, 7), (self.record.fd, helper, *self.locked), strict=False))
            for number, fd in [(n, duplicate_above(fd, 10)) for n, fd in kept.items()]:
                os.dup2(fd, number)
            arguments = ["--keep", str(builder), self.record.path, self.record.netns]
            arguments += [self.cgroup, "cables" if self.subhost.cables else "", str(IFDOWN)]
            default_signals()
            os.execve(REAPER, ["overlay-boot", *arguments, *self._ifdown()], {"PATH": PATH})
        except OverlayBootError as error:
            tell(self.up, "failed", str(error))
        except BaseException as error:  # noqa: BLE001  a forked child returns to nobody
            tell(self.up, "failed", f"cannot start the keeper: {explain(error)}")
        finally:
            os._exit(1)

    def _join_cgroup(self, builder: int) -> None:
        """Put the builder, and so all that it starts, into the cgroup. The kernel takes as long for
        that as for a third of a boot, in which the builder and overlay-boot do their work."""
        try:
            cgroup.join(self.cgroup, builder)
        except OSError as error:
            what = f"{self.cgroup} cannot be used: {explain(error)}"
            if self.subhost.init.systemd:
                raise OverlayBootError(
                    f"{what}: systemd needs it, the default INIT does not"
                ) from error
            self.log.say(what)

    def _ifdown(self) -> list[str]:
        """The command that takes down what ifup took up; it passes over what ifup did not."""
        names = [cable.host for cable in reversed(self.subhost.cables) if not cable.bridge]
        program = commands.find("ifdown") if names else ""
        return [program, *names] if program else []
