"""Machines through Vagrant and libvirt, from a box made of the same image (or from VAGRANT_BOX).

Each command of Vagrant starts Ruby and takes seconds, so Vagrant only starts, freezes, restores and
ends; commands go over one shared ssh connection. Everything lies in the harness' own folders:
VAGRANT_HOME and a storage pool in the cache (the box is uploaded there once), the rest in the run
folder. The provider is always libvirt, whatever VAGRANT_DEFAULT_PROVIDER says.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shlex
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from vm import box, folders, image, processes
from vm.errors import CommandTimeout, HostError, MachineError, VmError
from vm.libvirt import Libvirt, virsh
from vm.machine import Input, Machine, Result, Sink
from vm.options import Provider, Wanted
from vm.processes import Say

PROJECT = """\
Vagrant.configure("2") do |config|
  config.vm.box = "{box}"
  {url}
  config.vm.synced_folder ".", "/vagrant", disabled: true
  config.vm.provider :libvirt do |libvirt|
    libvirt.default_prefix = "{prefix}"
    libvirt.storage_pool_name = "{pool}"
  end
end
"""
#: Runs a command as Machine.run promises: a plain environment, the group killed past the limit, and
#: the output handed on when the command itself has ended, whoever else still holds it.
REMOTE = """\
d=$(mktemp -d) && cd / && {{
env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root USER=root \
LOGNAME=root SHELL=/bin/sh LANG=C.UTF-8 TERM=dumb \
timeout -s KILL {limit} /bin/sh -c {command} > "$d/out" 2> "$d/err"; }} 2> /dev/null
s=$?; cat "$d/out"; cat "$d/err" >&2; rm -r "$d"; exit $s"""
#: Lets those who may log in as the user of a box log in as root.
ROOTS_KEYS = """\
[ "$(id -u)" = 0 ] || sudo -n install -D -m 600 \
"$(getent passwd "$(id -u)" | cut -d : -f 6)/.ssh/authorized_keys" /root/.ssh/authorized_keys"""
#: Feeds standard input to the kernel's random numbers and has them made anew, as vm/agent.c does.
RESEED = """\
import fcntl, struct, sys
seed = sys.stdin.buffer.read()
with open("/dev/urandom", "wb") as random:
    fcntl.ioctl(random, 0x40085203, struct.pack("ii", 8 * len(seed), len(seed)) + seed)
    fcntl.ioctl(random, 0x5207)
"""
#: Seconds for ssh to reach a machine, and beyond a command's own for it to come back.
REACHED, GRACE = 15, 45.0


class Vagrant(Provider):
    """Machines through Vagrant and libvirt; VAGRANT_BOX names another box than the image's."""

    can: frozenset[str] = frozenset()

    def up(self, wanted: Wanted, say: Say) -> Machine:
        """See Provider.up."""
        return VagrantMachine.up(wanted.suite, flavour=wanted.flavour, say=say)

    def prepare(self, wanted: Wanted, say: Say) -> None:
        """See Provider.prepare."""
        if "VAGRANT_BOX" not in os.environ:
            image.build(wanted.suite, wanted.flavour, say=say)


class VagrantMachine(Machine):
    """A machine that Vagrant runs. Make one with `up`."""

    can = frozenset({"snapshot"})

    def __init__(self, suite: str, say: Say) -> None:
        """Only its folder and libvirt; nothing runs yet. Raises VmError."""
        import vagrant

        module: Any = vagrant  # it has no types
        with ExitStack() as undo:
            used = folders.Lock(folders.cache() / "vagrant.used", shared=True, wait=True)
            undo.enter_context(used)
            self.folder, lock = folders.claim(folders.run(), f"vagrant-{suite}")
            undo.enter_context(lock)
            undo.callback(folders.discard, self.folder)
            self._locks = [used, lock]
            self._libvirt = Libvirt(self.folder, say=say)
            undo.pop_all()
        self.name, self._log = self.folder.name, self.folder / "vagrant.log"
        (self.folder / "machine.json").write_text('{"detached": false}\n')
        self._say = say
        self._errors: deque[str] = deque(maxlen=12)
        environment = {
            "VAGRANT_HOME": str(folders.cache() / "vagrant/home"),
            "VAGRANT_DEFAULT_PROVIDER": "libvirt",
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "VAGRANT_CWD": str(self.folder),
        }
        self._vagrant = module.Vagrant(
            str(self.folder),
            out_cm=self._heard,
            err_cm=partial(self._heard, errors=True),
            env=os.environ | environment,
        )
        self._command = self._vagrant._make_vagrant_command

    @classmethod
    def up(cls, suite: str, *, flavour: str = "plain", say: Say = print) -> Self:
        """Start a machine from the suite's box, or from VAGRANT_BOX. Raises VmError."""
        if not shutil.which("vagrant"):
            raise HostError("vagrant is missing: make vm-setup PROVIDER=vagrant")
        folders.sweep()
        if named := os.environ.get("VAGRANT_BOX"):
            url, name = "", named
        else:
            source = image.build(suite, flavour, say=say)
            file = box.pack(source, folders.cache() / "boxes", say=say)
            url, name = f'config.vm.box_url = "file://{file}"', file.stem
        machine = cls(suite, say)
        try:
            prefix = _mine() + machine.name
            text = PROJECT.format(box=name, url=url, prefix=prefix, pool=_pool())
            (machine.folder / "Vagrantfile").write_text(text)
            say("machine: vagrant up")
            machine._call("up", provider="libvirt")
            pid = Path(f"/run/libvirt/qemu/{machine.domain}.pid")
            if pid.exists():
                processes.record(machine.folder / "pid", int(pid.read_text()))
            (machine.folder / "ssh_config").write_text(machine._call("ssh_config"))
            machine._become_root()
        except BaseException:
            try:
                machine.close()
            except VmError as error:  # what broke first matters more
                say(f"machine: {error}")
            raise
        return machine

    def _become_root(self) -> None:
        """Log in as root from now on; the keys of another user of the box become root's."""
        done = self._ssh(ROOTS_KEYS, 60)
        if not done.ok:
            raise MachineError(f"{self.name}: its user cannot become root: {done.err}")
        self._leave()
        file = self.folder / "ssh_config"
        file.write_text(re.sub(r"(?m)^( *User ).*", r"\1root", file.read_text()))

    @property
    def domain(self) -> str:
        """libvirt's name for it."""
        return f"{_mine()}{self.name}default"

    def _run(
        self, command: str, timeout: float, input: Input, out: Sink | None, err: Sink | None
    ) -> Result:
        """All output comes at once, when the command has ended."""
        result = self._ssh(command, timeout, input)
        if out:
            out(result.stdout)
            result = replace(result, stdout=b"")
        if err:
            err(result.stderr)
            result = replace(result, stderr=b"")
        if result.status == 255 and not self._ssh("true", GRACE).ok:
            raise MachineError(f"{self.name} is gone: {result.err}")
        if result.status == 137 and result.seconds >= timeout:
            raise CommandTimeout(f"still running after {timeout:g} s, killed:\n{result}", result)
        return result

    def _ssh(
        self, command: str, timeout: float, input: Input = b"", grace: float = GRACE
    ) -> Result:
        """A command, or status 255 when the machine cannot be reached."""
        remote = REMOTE.format(limit=timeout, command=shlex.quote(command))
        begin = time.monotonic()
        done = self._limited_ssh([*self.ssh_command(), remote], timeout + grace, input)
        seconds = time.monotonic() - begin
        return Result(command, done.returncode, done.stdout, done.stderr, seconds)

    def _limited_ssh(
        self, words: list[str], limit: float, input: Input = b""
    ) -> subprocess.CompletedProcess[bytes]:
        given: dict[str, Any] = {"input": input} if isinstance(input, bytes) else {"stdin": input}
        try:
            return subprocess.run(
                words,
                **given,
                capture_output=True,
                check=False,
                timeout=None if math.isinf(limit) else limit,
            )
        except subprocess.TimeoutExpired:
            raise MachineError(f"{self.name} hangs: no answer to ssh within {limit:g} s") from None

    def snapshot(self, name: str) -> None:
        """See Machine.snapshot; libvirt keeps it inside the machine's disk."""
        self._call("snapshot_save", name)

    def restore(self, name: str) -> None:
        """See Machine.restore; takes Vagrant some seconds."""
        self._leave()
        self._call("snapshot_restore", name)
        self._refresh()

    def reboot(self, *, timeout: float = 120) -> None:
        """See Machine.reboot."""
        ask = "cat /proc/sys/kernel/random/boot_id"
        before = self.succeed(ask).out
        self.run("(sleep 0.2; systemctl reboot) >/dev/null 2>&1 &")
        self._leave()
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                if self._ssh(ask, REACHED, grace=5).out not in ("", before):
                    return
            except MachineError:  # the connection was to the machine as it went down
                self._leave()
        raise MachineError(f"{self.name}: not back {timeout:g} s after a reboot")

    def close(self) -> None:
        """See Machine.close."""
        locks, self._locks = self._locks, []
        if not locks:
            return
        with processes.uninterrupted(), ExitStack() as last:  # the last of these is done first
            for lock in locks:
                last.callback(lock.release)
            last.callback(self._libvirt.close)
            last.callback(_clear_libvirt)
            last.callback(folders.remove, self.folder)
            last.callback(processes.kill_recorded, self.folder / "pid")  # where libvirt could not
            if (self.folder / ".vagrant").exists():
                last.callback(self._call, "destroy", limit=180)
            last.callback(self._leave)

    def ssh_command(self) -> list[str]:
        """ssh by the configuration that Vagrant gave once, over one shared connection."""
        options = {
            "ControlMaster": "auto",
            "ControlPath": self.folder / "ssh",
            "ControlPersist": "60",
            "ConnectTimeout": REACHED,
            "LogLevel": "ERROR",
        }
        flags = [flag for name, value in options.items() for flag in ("-o", f"{name}={value}")]
        return ["ssh", "-F", str(self.folder / "ssh_config"), *flags, "default"]

    def console(self) -> str:
        """What Vagrant said; libvirt does not keep the serial console."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def _call(self, method: str, *arguments: Any, limit: int = 1200, **named: Any) -> Any:
        """A command of Vagrant, within `limit` seconds; its last words when it fails."""
        bound = ["setpriv", "--pdeathsig", "KILL"]  # to the process that waits for it
        limited = [*bound, "timeout", "--foreground", "-k", "10", str(limit), *bound]
        self._vagrant._make_vagrant_command = lambda words: [*limited, *self._command(words)]
        self._errors.clear()
        try:
            return getattr(self._vagrant, method)(*arguments, **named)
        except subprocess.CalledProcessError as error:
            why = f"was not done after {limit} s" if error.returncode == 124 else "failed"
            last = "\n  ".join(self._errors or self.console().splitlines()[-12:])
            raise MachineError(f"{self.name}: vagrant {method} {why}:\n  {last}") from error

    @contextmanager
    def _heard(self, errors: bool = False) -> Iterator[int]:
        """Where Vagrant writes to: its words go to the log, and the steps among them to `say`."""
        reading, writing = os.pipe()

        def hear() -> None:
            with open(reading, errors="replace") as words, self._log.open("a") as log:
                for line in words:
                    log.write(line)
                    if errors and not line.startswith("\tfrom"):
                        self._errors.append(line.rstrip())
                    if step := re.fullmatch(r"==> [^:]+: (\w.*)\.\.\.\n", line):
                        self._say(f"machine: {step[1]}")

        listener = threading.Thread(target=hear, daemon=True)
        listener.start()
        try:
            yield writing
        finally:
            os.close(writing)
            listener.join(10)

    def _leave(self) -> None:
        """End the shared ssh connection."""
        if (self.folder / "ssh").exists():
            *command, host = self.ssh_command()
            self._limited_ssh([*command, "-O", "exit", host], GRACE)

    def _refresh(self) -> None:
        """The clock and fresh entropy after a restore."""
        command = f"date -s @{time.time():.3f} > /dev/null; python3 -c {shlex.quote(RESEED)}"
        self.succeed(command, input=os.urandom(64))


def _mine() -> str:
    """What libvirt's names of this run folder's machines begin with, and nobody else's."""
    return f"disposable-{hashlib.sha256(str(folders.run()).encode()).hexdigest()[:8]}-"


def _pool() -> str:
    """The name of the storage pool, which is there and active now."""
    pool = f"{_mine()}pool"
    folder = folders.cache() / "vagrant" / pool  # libvirt's own user has to get there
    folder.mkdir(parents=True, exist_ok=True)
    _clear_libvirt()
    if virsh("pool-info", pool).returncode == 0:
        return pool
    made = virsh("pool-create-as", pool, "dir", "--target", str(folder))
    if made.returncode:
        raise HostError(f"libvirt takes no storage pool at {folder}: {made.stderr.strip()}")
    return pool


def _clear_libvirt() -> None:
    """Remove what libvirt has of machines whose folders are gone: of closed and of aborted ones.

    The pool goes with the last of them; the box stays in its folder.
    """
    used = {f"{_mine()}{folder.name}default" for folder in folders.run().glob("vagrant-*")}
    for domain in virsh("list", "--all", "--name").stdout.split():
        if domain.startswith(_mine()) and domain not in used:
            virsh("destroy", domain)
            virsh("undefine", domain, "--snapshots-metadata", "--remove-all-storage")
    if not used:
        virsh("pool-destroy", f"{_mine()}pool")
