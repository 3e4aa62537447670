"""The builder, which sets a subhost's root up in the new namespaces, and pid 1, which it starts
(overlay-boot(8), STARTING AND ENDING). What comes before and stays is told in boot.py."""

from __future__ import annotations

import os
import stat

from overlay_boot import HELPER, PATH, OverlayBootError, explain
from overlay_boot.commands import duplicate_above
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
    SYSFS_MAGIC,
    bind,
    default_signals,
    detach,
    loopback_up,
    magic_of,
    mount,
    pivot_root,
    set_read_only,
    sethostname,
    setns,
    unshare,
)
from overlay_boot.processes import is_ending
from overlay_boot.records import NETNS, Record
from overlay_boot.root import Root
from overlay_boot.signals import SIGKILL
from overlay_boot.steps import Step, roll_back, run
from overlay_boot.tree import Tree
from overlay_boot.waiting import Aborted, Waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from overlay_boot.subhost import Subhost

GO = b"g"
KERNEL_FILES = ("sys", "sysrq-trigger", "irq", "bus")  # of /proc


def tell(up: int, word: str, text: str = "") -> None:
    """Send overlay-boot one message; a pipe's packet holds 4096 bytes (pipe(7))."""
    os.write(up, os.fsencode(f"{word} {text}")[:4096])


def is_null(path: str) -> bool:
    """Whether that is the device, and not what a root without our POSTMOUNT may have in its place."""
    try:
        found = os.stat(path)
        return stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 3)
    except OSError:
        return False


def take_root() -> None:
    """Take the root of the mount namespace for one's own, and for the current folder: they differ in
    a chroot(2)."""
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    setns(namespace, CLONE_NEWNS)
    os.close(namespace)


def make_mounts_private() -> None:
    """Let no mount propagate to the main host any more, nor from there: also none of those around a
    chroot(2), whose root need not be a mount."""
    kept = [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in ("/", ".")]
    take_root()
    mount("", "/", flags=MS_REC | MS_PRIVATE)
    os.fchdir(kept[0])
    os.chroot(".")
    os.fchdir(kept[1])
    for folder in kept:
        os.close(folder)


def leave_chroot() -> None:
    """`take_root`, but stay in the current folder: pivot_root(2) would leave the namespace's root to
    whoever enters (pid1-chroot)."""
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    take_root()
    os.fchdir(here)
    os.close(here)


def protect_kernel(tree: Tree) -> None:
    """Make read-only what changes the main host's kernel (kernel-files): in the tree's new /proc by
    mounts of these files on themselves, and the sysfs on /sys, but nothing that is mounted on it."""
    proc = tree.open("proc")
    os.fchdir(proc)
    os.close(proc)
    for name in KERNEL_FILES:
        try:
            bind(name, name, recursive=False)
        except FileNotFoundError:
            continue  # this kernel has none
        if name == "sys":  # the network is the subhost's own
            bind("sys/net", "sys/net", recursive=False)
        file = os.open(name, os.O_PATH | os.O_CLOEXEC)
        set_read_only(file)
        os.close(file)
    if tree.has("sys"):
        sys = tree.open("sys")
        if magic_of(sys) == SYSFS_MAGIC:
            set_read_only(sys)
        os.close(sys)


class Builder:
    """The builder of one subhost."""

    record: Record
    up: int
    down: int
    joined: int
    waiter: Waiter

    def __init__(self, subhost: Subhost) -> None:
        self.subhost = subhost
        self.root = Root(subhost, Waiter())
        self.pid = 0  # as overlay-boot knows it, once the namespaces stand

    def steps(self) -> list[Step]:
        """What the builder does, from the namespaces to pid 1."""
        name = self.subhost.name
        return [
            Step(
                f"make namespaces: mount, network, ipc, uts (hostname {name}) and pid",
                self._make_namespaces,
            ),
            Step(
                f"name the network namespace {NETNS}/{name}", self._name_netns, self._forget_netns
            ),
            *self.root.steps(),
            Step(f"get the commands of pid 1 from INIT {self.subhost.init}", self._get_script),
            Step(
                f"start pid 1{self.subhost.capability}: "
                "mount /proc, change the root, run the commands with /bin/sh",
                self._start_pid1,
            ),
        ]

    def work(self, record: Record, up: int, down: int, joined: int) -> NoReturn:
        """Be the builder: overlay-boot is told by the pipe up what it needs to know, and says by down
        when pid 1 may start, as the keeper says by joined. Ends this process."""
        self.record, self.up, self.down, self.joined = record, up, down, joined
        self.waiter = self.root.waiter = Waiter(asked=down)
        done: list[Step] = []
        status = 1
        try:
            run(self.steps(), done)
            tell(self.up, "ok")
            status = 0
        except BaseException as error:  # noqa: BLE001
            problems = roll_back(done)
            self.root.undo_files()
            tell(self.up, "failed", "; ".join([explain(error), *problems]))
        finally:
            os._exit(status)

    def _make_namespaces(self) -> None:
        # The cgroup and user namespaces stay the main host's (ns-shared).
        unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
        make_mounts_private()
        sethostname(self.subhost.name)
        loopback_up()

    def _name_netns(self) -> None:
        """A symbolic link into /proc rather than a mount: it shows in no mount table and keeps no
        namespace alive (netns-name)."""
        os.symlink(f"/proc/{os.getpid()}/ns/net", self.record.netns)
        tell(self.up, "ready", str(os.getpid()))

    def _forget_netns(self) -> None:
        self.record.forget_netns(os.getpid())

    def _get_script(self) -> None:
        self.script = self.root.init_script()

    def _start_pid1(self) -> None:
        """Start pid 1 and enter it into the record; returns when it runs the script."""
        for told in (self.down, self.joined):
            self.waiter.wait(told)
            if os.read(told, 1) != GO:
                raise Aborted
        unshare(CLONE_NEWPID)  # of the next child, which is number 1 there (pid_namespaces(7))
        result_read, result = os.pipe()
        go_read, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(go)
            self._as_pid1(go_read, result)
        os.close(result)
        try:
            self.record.set_pid(pid)  # first: whoever clears up knows the name below by it
            self._forget_netns()
            os.symlink(f"/proc/{pid}/ns/net", self.record.netns)
            try:
                os.write(go, GO)
            except BrokenPipeError:
                pass  # it was killed, which is told below
            self.waiter.wait(result_read)
            if failure := os.read(result_read, 65536):
                raise OverlayBootError(os.fsdecode(failure).rstrip())
            if is_ending(pid):  # it may have been killed before it ran anything
                ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                if ended and ended.si_code != os.CLD_EXITED:
                    raise OverlayBootError(f"pid 1 was killed by signal {ended.si_status}")
            self.record.set_entered()
        except BaseException:
            os.kill(pid, SIGKILL)
            os.waitpid(pid, 0)
            self.record.forget_netns(pid)
            raise

    # --- pid 1

    def _as_pid1(self, go: int, result: int) -> None:
        """Change the root to LIVE and run the script with the subhost's own /bin/sh.

        The root is changed in a mount namespace of pid 1's own, since pivot_root(2) changes it for
        every process of the namespace, the builder too.
        """
        try:
            live = self.subhost.live
            os.setsid()
            unshare(CLONE_NEWNS)
            with Tree(live) as tree:
                tree.mount("proc", "proc", MS_NODEV | MS_NOEXEC)
                if not self.subhost.capability.all:
                    protect_kernel(tree)
            program = os.open(HELPER, os.O_RDONLY | os.O_CLOEXEC)
            os.chdir(live)
            leave_chroot()
            # Onto itself, and then the old root, now below it, is let go: no path leads back.
            pivot_root(".", ".")
            detach(".")
            os.chdir("/")
            if is_null("/dev/null"):
                os.dup2(os.open("/dev/null", os.O_RDWR), 0)
            if os.read(go, 1) != GO:
                return
            result = duplicate_above(result, 10)
            program = duplicate_above(program, 10)
            default_signals()
            os.dup2(result, 3)
            os.set_inheritable(3, True)
            # Priority, limits and keyring of the caller end there (pid1-limits), and so do the
            # capabilities that CAPABILITY does not keep, for pid 1 and all that it starts.
            kept = f"{self.subhost.capability.kept:x}"
            os.execve(program, ["overlay-boot", "--run", kept, self.script], {"PATH": PATH})
        except BaseException as error:  # noqa: BLE001
            os.write(result, os.fsencode(f"cannot start pid 1: {explain(error)}"))
        finally:
            os._exit(1)
