"""Where subhosts run: a sandbox on this machine, this machine as it is, any machine (a virtual one
is in spec/virtual.py).

A target runs commands as root, each with a time limit, and carries small files. `here` is a
throw-away set of mount, network, pid, ipc and uts namespaces with a /run, /tmp, /opt and
/etc/network of its own: whatever a test leaves there dies with it, also when the tests are killed.
"""

from __future__ import annotations

import base64
import os
import posixpath
import shlex
import signal
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any


class TargetError(Exception):
    """The target itself broke, or cannot be had: no verdict on what was to run there."""


class NoAnswer(TargetError):
    """Something took longer than it was given, and nothing shows whose fault that is."""


@dataclass(frozen=True, repr=False)
class Result:
    """What a command did on the target."""

    command: str
    status: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"$ {self.command}\n{self.out}{self.err}(status {self.status})"

    __repr__ = __str__  # what pytest shows of it where an assertion fails


Idle = Callable[[], object]
CUT = 124  # the status of what has come to rest without an end, as of timeout(1)
SHORT = 16384  # characters that surely fit into a command line, quoted or not
AT_REST = b"\n[cut off: it had come to rest without an end]\n"


class Target(ABC):
    """A place where subhosts run."""

    name = ""
    note = ""  # what a reader of the results has to know of it
    disposable = False  # whether each test has it for itself
    pace = 0.0  # the seconds of a small step there: see spec/waiting.py
    patience = 1.0  # how many times as long to wait as on a plain machine
    standing: set[str] | None = None  # the interfaces of every new network namespace, once known
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

    @abstractmethod
    def run(
        self, command: str, *, timeout: float = 30, input: str = "", idle: Idle | None = None
    ) -> Result:
        """Run a shell command as root; the seconds it may take are multiplied by the patience.

        At the limit it is cut off, which is NoAnswer. With `idle`, which is called before that and
        raises NoAnswer while something is still at work, a command that has come to rest without an
        end gives a result of status 124.
        """

    def whole(self, command: str) -> str:
        """A shell command with the environment that it is to have, whatever the caller's is."""
        return f"export LC_ALL=C.UTF-8 PATH={shlex.quote(self.path)}\n{command}"

    def succeed(self, command: str, *, timeout: float = 30, input: str = "") -> str:
        """The output of a command that the harness itself needs; TargetError if it fails."""
        done = self.run(command, timeout=timeout, input=input)
        if done.status:
            raise TargetError(str(done))
        return done.out

    def put(self, path: str, text: str | bytes, mode: int = 0o644) -> None:
        """Write a file, its folder made if it is missing.

        A short text is written by the shell itself: on an emulated machine each program takes long.
        """
        where, folder = shlex.quote(path), shlex.quote(posixpath.dirname(path))
        place = f"[ -d {folder} ] || mkdir -p {folder} || exit"
        place += f"\n[ ! -e {where} ] && [ ! -L {where} ] || rm -f {where} || exit\numask 022\n"
        fill, data = "base64 -d", ""
        if isinstance(text, str) and len(text) <= SHORT and text.isascii() and "\0" not in text:
            fill = f"printf %s {shlex.quote(text)}"
        else:
            data = base64.b64encode(text.encode() if isinstance(text, str) else text).decode()
        bits = "" if mode == 0o644 else f" && chmod {mode:o} {where}"
        self.succeed(f"{place}{fill} > {where}{bits}", input=data)

    def read(self, path: str) -> str:
        """A file's text; empty if it is not there."""
        return self.run(f"cat {shlex.quote(path)}").out

    @cached_property
    def host(self) -> Any:
        """testinfra's view of the target: its commands have a time limit here, as all others."""
        from testinfra.backend.base import BaseBackend
        from testinfra.host import Host

        target = self

        class Backend(BaseBackend):  # type: ignore[misc]
            NAME = "spec"

            def run(self, command: str, *args: str, **_: Any) -> Any:
                done = target.run(self.get_command(command, *args))
                out, err = done.out.encode(), done.err.encode()
                return self.result(done.status, self.encode(done.command), out, err)

        return Host(Backend(self.name))

    def install(self, what: Path) -> bool:
        """Install a .deb, or lay a folder over the root; False where that is not for a test to do,
        on a machine that is not the spec's own."""
        return False

    def place(self, folder: Path) -> str:
        """Where the target has a folder of commands of this machine."""
        return str(folder)

    def freeze(self) -> None:  # noqa: B027
        """What is there now is what every test starts from."""

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """One test's time on the target."""
        yield

    def close(self) -> None:  # noqa: B027  most have nothing to take down
        """Take the target down."""


KEPT = ("HOME", "LOGNAME", "PATH", "TERM", "USER")  # of the environment


class Process(Target):
    """A target that a process of this machine reaches."""

    @property
    def environment(self) -> dict[str, str]:
        """That of the process: nothing that helps the spec may help what is tested."""
        return {name: os.environ[name] for name in KEPT if name in os.environ}

    @abstractmethod
    def argv(self, command: str) -> list[str]:
        """The command of this machine that runs a shell command on the target."""

    def run(
        self, command: str, *, timeout: float = 30, input: str = "", idle: Idle | None = None
    ) -> Result:
        """See Target.run."""
        limit = timeout * self.patience
        with subprocess.Popen(
            self.argv(self.whole(command)),
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(input.encode(), limit)
                status = process.returncode
            except subprocess.TimeoutExpired:
                try:
                    if not idle:
                        raise NoAnswer(f"no answer in {limit:.0f} s: {command}") from None
                    idle()
                    status = -1 if process.poll() is None else process.returncode
                finally:
                    if process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)
                try:
                    out, err = process.communicate(timeout=5)
                except subprocess.TimeoutExpired as held:  # by what left the process group
                    out, err = held.output or b"", held.stderr or b""
                if status < 0:
                    status, err = CUT, err + AT_REST
        return Result(command, status, out.decode(errors="replace"), err.decode(errors="replace"))


class Host(Process):
    """This machine as it is: for machines made to be thrown away."""

    name = "host"

    def argv(self, command: str) -> list[str]:
        return ["/bin/sh", "-c", command]


class Ssh(Process):
    """Any machine that root can log in to, over one shared connection."""

    @property
    def environment(self) -> dict[str, str]:
        """All, for ssh itself, which hands none of it on."""
        return dict(os.environ)

    def __init__(self, url: str) -> None:
        self.name = url
        place, _, port = url.removeprefix("ssh://").partition(":")
        self.folder = tempfile.mkdtemp(prefix="spec-ssh-")
        self.ssh = ["ssh", "-o", "BatchMode=yes", "-o", "ControlMaster=auto"]
        self.ssh += ["-o", f"ControlPath={self.folder}/socket", "-o", "ControlPersist=60"]
        self.ssh += [*(["-p", port] if port else []), place]  # else as ssh's configuration says

    def argv(self, command: str) -> list[str]:
        return [*self.ssh, "sh", "-c", shlex.quote(command)]

    def run(
        self, command: str, *, timeout: float = 30, input: str = "", idle: Idle | None = None
    ) -> Result:
        done = super().run(command, timeout=timeout, input=input, idle=idle)
        if done.status == 255:  # ssh's own, unless the command's
            raise TargetError(f"{self.name}: {done.err.strip() or done}")
        return done

    def close(self) -> None:
        subprocess.run(
            [*self.ssh[:-1], "-O", "exit", self.ssh[-1]], check=False, stderr=subprocess.DEVNULL
        )
        os.rmdir(self.folder)


PLACE = "/opt/implementation"
OWN = ("/run", "/tmp", "/opt", "/srv")  # what the sandbox has of its own
SANDBOX = r"""
set -e
mount --make-rprivate /
umount -l /sys/fs/cgroup 2>/dev/null || :
mount -t sysfs sysfs /sys  # of this network namespace, and with no cgroups in it
for place in {own}; do
    mount -t tmpfs -o mode=1777 spec /mnt
    for kept in {kept}; do
        case $kept in "$place"/*)
            mkdir -p "/mnt${{kept#$place}}"
            mount --rbind "$kept" "/mnt${{kept#$place}}"
        esac
    done
    mount --rbind /mnt "$place"
    umount -l /mnt
done
mount -t tmpfs spec /mnt
[ ! -d /etc/network ] || cp -a /etc/network/. /mnt/
printf 'auto lo\niface lo inet loopback\n' > /mnt/interfaces
mkdir -p /etc/network /run/network /run/lock /run/netns /opt/subhost
mount --bind /mnt /etc/network
umount /mnt
mount -o remount,bind,ro /  # whatever an implementation does, this machine's files stay
mount --make-rshared /  # as systemd does
ip link set lo up
echo ready
sleep infinity &
while :; do wait; done  # reaps orphans
"""


class Here(Process):
    """The sandbox on this machine. Needs root and kept, the folders that stay visible in it."""

    name = "here"

    def __init__(self, kept: list[Path]) -> None:
        if os.geteuid() != 0:
            raise TargetError("the target here makes namespaces: run the spec as root")
        script = SANDBOX.format(own=" ".join(OWN), kept=shlex.join(map(str, kept)))
        # It ends with this process, however that ends.
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--net",
            "--ipc",
            "--uts",
        ]
        command += ["--pid", "--fork", "--kill-child=KILL", "--mount-proc", "sh", "-c", script]
        self.sandbox = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.sandbox.stdout
        said = []
        for line in self.sandbox.stdout:
            if line == "ready\n":
                break
            said.append(line.strip())
        else:
            raise TargetError(f"the sandbox cannot be made: {' '.join(said)}")
        children = Path(f"/proc/{self.sandbox.pid}/task/{self.sandbox.pid}/children")
        self.enter = ["nsenter", "--target", children.read_text().split()[0]]
        # With its root: in a chroot(2) the mount namespace's is that of the machine around it.
        self.enter += ["--mount", "--root", "--net", "--ipc", "--uts", "--pid", "--wd=/"]

    def argv(self, command: str) -> list[str]:
        if self.sandbox.poll() is not None:
            raise TargetError("the sandbox has ended")
        return [*self.enter, "/bin/sh", "-c", command]

    def place(self, folder: Path) -> str:
        """Blanks in the path of a checkout are not what is tested: it is mounted on another."""
        if " " not in str(folder):
            return str(folder)
        self.succeed(f"mkdir -p {PLACE} && mount --bind {shlex.quote(str(folder))} {PLACE}")
        return PLACE

    def close(self) -> None:
        self.sandbox.kill()
        self.sandbox.communicate()
