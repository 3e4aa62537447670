"""The way of one boot, from a Draft to a running pid 1 (decisions 15, 16, 20 to 22).

Four processes take part, and only the two smallest stay:

    overlay-boot   claims the name, makes the cables, returns when pid 1 has been exec'ed
    keeper         its child; becomes a static program that waits for the end of the subhost and
                   removes its name (reaper.c)
    builder        the keeper's child, in the new namespaces: sets the root up, starts pid 1, ends
    pid 1          the builder's child, left to the keeper: changes its root, runs INIT's commands

overlay-boot and the builder work at the same time. "up" tells the first that the namespaces stand
and how it ended; "down" tells the second that the cables stand. Whoever fails or dies closes its
end, and the other takes back what it has made.
"""

from __future__ import annotations

import os
import time

from overlay_boot import PATH, OverlayBootError, explain, root
from overlay_boot.config import Draft, Subhost
from overlay_boot.linux import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    MS_NODEV,
    MS_NOEXEC,
    MS_PRIVATE,
    MS_REC,
    SIGKILL,
    SIGTERM,
    become_subreaper,
    default_signals,
    detach,
    ignore_signal,
    kill_process,
    loopback_up,
    mount,
    pivot_root,
    sethostname,
    unshare,
)
from overlay_boot.log import open_log, say
from overlay_boot.records import FOLDER, NETNS, Record, claim, name_of, start_time
from overlay_boot.steps import BROKEN_OFF, Step, run, take_back
from overlay_boot.tree import REAPER, Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

NAMESPACES = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
GO = b"g"


class Boot:
    """One subhost on its way up: what the processes that take part share."""

    def __init__(self, subhost: Subhost, record: Record, log: int) -> None:
        self.subhost = subhost
        self.record = record
        self.log = log
        # Packets: two messages never run into one.
        self.up_read, self.up = os.pipe2(os.O_CLOEXEC | os.O_DIRECT)
        self.down, self.down_write = os.pipe()
        self.keeper = 0
        self.builder = 0

    # --- overlay-boot itself

    def start(self) -> None:
        """Boot; returns when pid 1 runs INIT's commands. Raises with everything taken back."""
        subhost = self.subhost
        say(self.log, f"{subhost.name}: booting {subhost.conf}")
        self.keeper = os.fork()
        if self.keeper == 0:
            self._as_keeper()
        os.close(self.up)
        os.close(self.down)
        cables: list[Step] = []
        try:
            self.builder = int(self._hear("ready"))
            run(cable_steps(subhost, lambda: self.builder, self._say), cables)
            os.write(self.down_write, GO)
            self._hear("ok")
            while os.read(self.up_read, 4096):
                pass  # until the builder has ended and the keeper is no Python any more
            self.record.read()
            self.record.close()  # its lock is the keeper's alone now
        except BaseException as caught:
            failure = self._give_up()
            # Where the builder failed, what broke here followed from it.
            why = OverlayBootError(failure) if failure not in ("", BROKEN_OFF) else caught
            message = take_back(cables, why)
            say(self.log, f"{subhost.name}: {message}")
            if isinstance(caught, KeyboardInterrupt):
                raise
            raise OverlayBootError(message) from caught

    def _say(self, message: str) -> None:
        say(self.log, message)

    def _tell(self, word: str, text: str = "") -> None:
        """Send overlay-boot one message; a pipe's packet holds 4096 bytes (pipe(7))."""
        os.write(self.up, os.fsencode(f"{word} {text}")[:4096])

    def _hear(self, expected: str) -> str:
        """The rest of the builder's next message, whose first word is to be the expected one."""
        word, _, rest = os.fsdecode(os.read(self.up_read, 4096)).partition(" ")
        if word == "failed":
            raise OverlayBootError(rest)
        if word != expected:
            raise OverlayBootError(
                f"{self.subhost.name}: the boot broke off: see {self.subhost.log}"
            )
        return rest

    def _give_up(self) -> str:
        """End the builder and what it started, wait until the keeper has cleared up, and return
        what the builder said it failed of."""
        os.close(self.down_write)
        if self.builder:
            try:
                os.kill(self.builder, SIGTERM)  # the keeper reaps it only when it has ended
            except ProcessLookupError:
                pass
        failure = ""
        while message := os.fsdecode(os.read(self.up_read, 4096)):
            word, _, rest = message.partition(" ")
            failure = rest if word == "failed" else failure
        self.record.read()
        process = self.record.open_process()
        if process is not None:
            kill_process(process, SIGKILL)
        os.waitpid(self.keeper, 0)
        if self.record.stands():  # the keeper itself failed
            self.record.clear()
        return failure

    def wait_for_reaper(self) -> None:
        """Return when pid 1 has become /.reaper: START's services have been started."""
        while self.record.alive():
            if name_of(self.record.pid) == ".reaper":
                return
            time.sleep(0.005)
        raise OverlayBootError(
            f"{self.subhost.name}: it ended before /.reaper ran: see {self.subhost.log}"
        )

    def wait_for_end(self) -> None:
        """Return when the subhost has ended and all of it is gone."""
        os.waitpid(self.keeper, 0)

    # --- the keeper

    def _as_keeper(self) -> None:
        try:
            os.setsid()
            os.umask(0o022)
            null = os.open("/dev/null", os.O_RDWR)
            for number, fd in enumerate((null, self.log, self.log)):
                os.dup2(fd, number)
            kept = [2, *sorted((self.record.fd, self.up, self.down)), 1 << 20]
            for place, fd in enumerate(kept[1:]):
                os.closerange(kept[place] + 1, fd)
            os.chdir("/")
            become_subreaper()
            builder = os.fork()
            if builder == 0:
                self._as_builder()
            os.set_inheritable(self.record.fd, True)
            arguments = ["--keep", str(builder), self.record.netns, self.record.path]
            default_signals()
            os.execve(REAPER, ["overlay-boot", *arguments, *self._ifdown()], {"PATH": PATH})
        except BaseException as error:  # noqa: BLE001  a forked child returns to nobody
            self._tell("failed", f"cannot start the keeper: {explain(error)}")
        finally:
            os._exit(1)

    def _ifdown(self) -> list[str]:
        """The command that takes down what ifup took up; it passes over what ifup did not."""
        names = [cable.host for cable in reversed(self.subhost.cables) if not cable.bridge]
        ifdown = [folder + "/ifdown" for folder in PATH.split(":")]
        found = [path for path in ifdown if os.access(path, os.X_OK)]
        return [found[0], *names] if names and found else []

    # --- the builder

    def _as_builder(self) -> None:
        ignore_signal(SIGTERM)  # but for hooks of one's own, see run_command
        done: list[Step] = []
        status = 1
        try:
            run(namespace_steps(self.subhost.name), done)
            self._tell("ready", str(os.getpid()))
            run(root.steps(self.subhost), done)
            script = root.init_script(self.subhost)
            if os.read(self.down, 1) != GO:
                raise OverlayBootError(BROKEN_OFF)
            self._start_pid1(script)
            done.clear()
            self._tell("ok")
            status = 0
        except BaseException as error:  # noqa: BLE001
            self._tell("failed", take_back(done, error))
        finally:
            os._exit(status)

    def _start_pid1(self, script: str) -> None:
        """Start pid 1 and enter it into the record; returns when it runs the script."""
        unshare(CLONE_NEWPID)
        result_read, result = os.pipe()
        go_read, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(go)
            self._as_pid1(script, go_read, result)
        os.close(result)
        try:
            new = f"{self.record.netns} {pid}"  # no subhost's name has a space
            os.symlink(f"/proc/{pid}/ns/net", new)
            os.rename(new, self.record.netns)
            self._write_record(pid)
            os.write(go, GO)
            failure = os.read(result_read, 65536)
            if failure:
                raise OverlayBootError(os.fsdecode(failure))
        except BaseException:
            os.kill(pid, SIGKILL)
            os.waitpid(pid, 0)
            raise

    def _write_record(self, pid: int) -> None:
        subhost = self.subhost
        self.record.write(
            {
                "PID": str(pid),  # first: the keeper looks for it there
                "STARTED": start_time(pid),
                "SINCE": str(int(time.time())),
                "ROOT": subhost.kind,
                "INTERFACES": " ".join(cable.host for cable in subhost.cables),
                "CONFIG": subhost.conf,
                **subhost.values,
            }
        )

    # --- pid 1

    def _as_pid1(self, script: str, go: int, result: int) -> None:
        """Change the root to LIVE and run the script with the subhost's own /bin/sh.

        The root is changed in a mount namespace of pid 1's own, since pivot_root(2) changes it for
        every process of the namespace, the builder too.
        """
        at = "start pid 1"
        try:
            live = self.subhost.live
            os.setsid()
            unshare(CLONE_NEWNS)
            with Tree(live, self.subhost.upper, []) as tree:
                tree.mount("proc", "proc", MS_NODEV | MS_NOEXEC)
            os.chdir(live)
            pivot_root(".", ".")
            detach(".")
            os.chdir("/")
            if os.path.exists("/dev/null"):
                os.dup2(os.open("/dev/null", os.O_RDWR), 0)
            if os.read(go, 1) != GO:
                return
            default_signals()
            at = "run the subhost's /bin/sh"
            os.execve("/bin/sh", ["/bin/sh", "-c", script, "overlay-init"], {"PATH": PATH})
        except BaseException as error:  # noqa: BLE001
            os.write(result, os.fsencode(f"cannot {at}: {explain(error)}"))
        finally:
            os._exit(1)


def namespace_steps(name: str) -> list[Step]:
    """The namespaces, and the network namespace's name for ip-netns(8).

    The name is a symbolic link into /proc rather than a mount: it shows in no mount table and
    keeps no namespace alive.
    """

    def namespaces() -> None:
        unshare(NAMESPACES)
        mount("", "/", flags=MS_REC | MS_PRIVATE)
        sethostname(name)
        loopback_up()

    def link() -> None:
        os.symlink(f"/proc/{os.getpid()}/ns/net", f"{NETNS}/{name}")

    return [
        Step(f"make namespaces: mount, network, ipc, uts (hostname {name}) and pid", namespaces),
        Step(f"name the network namespace {NETNS}/{name}", link),
    ]


def cable_steps(
    subhost: Subhost, pid: Callable[[], int], say: Callable[[str], None]
) -> list[Step]:
    """What makes the cables; the network's modules are loaded only if there are any."""
    if not subhost.cables:
        return []
    from overlay_boot import net

    return net.steps(subhost, pid, say)


def boot(draft: Draft) -> Boot:
    """Boot the subhost of a configuration; returns once pid 1 runs INIT's commands.

    Raises ConfigError with nothing touched, OverlayBootError with everything taken back.
    """
    draft.subhost()
    draft.evaluate(("BASE", "NAME"))
    record = claim(draft.subhost().name)
    try:
        draft.evaluate()
        subhost = draft.subhost()
        if subhost.cables:
            from overlay_boot.net import check_host

            check_host(subhost)
        started = Boot(subhost, record, open_log(subhost.log))
    except BaseException:
        record.clear()
        raise
    started.start()
    return started


def plan(subhost: Subhost) -> list[str]:
    """The names of a boot's steps, in order, for --check."""
    steps = namespace_steps(subhost.name)
    steps += cable_steps(subhost, os.getpid, print) + root.steps(subhost)
    init = " ".join(subhost.init)
    return [
        f"claim the name {subhost.name} in {FOLDER}",
        f"open the log {subhost.log}",
        *(step.name for step in steps),
        f"get the commands of pid 1 from INIT {init}",
        "start pid 1: mount /proc, change the root, run the commands with /bin/sh",
    ]
