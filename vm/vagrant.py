"""Machines through Vagrant and libvirt, from a box made of the same image (or from VAGRANT_BOX).

Each command of Vagrant starts Ruby and takes seconds, so Vagrant only starts, freezes, restores and
ends; commands go over one shared ssh connection. Everything lies in the harness' own folders:
VAGRANT_HOME and a storage pool in the cache (the box is uploaded there once), the rest in the run
folder.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

from vm import box, folders, image
from vm.image import Say
from vm.libvirt import Libvirt, virsh
from vm.machine import CommandTimeout, Machine, MachineError, Result

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
GRACE = 30.0


class VagrantMachine(Machine):
    """A machine that Vagrant runs. Make one with `up`."""

    def __init__(self, folder: Path, lock: folders.Lock, libvirt: Libvirt) -> None:
        """Only what is known of it; nothing runs yet."""
        import vagrant

        module: Any = vagrant  # it has no types

        self.folder, self.name = folder, folder.name
        self._lock: folders.Lock | None = lock
        self._libvirt = libvirt
        environment = {
            "VAGRANT_HOME": str(folders.cache() / "vagrant/home"),
            "VAGRANT_DEFAULT_PROVIDER": "libvirt",
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "VAGRANT_CWD": str(folder),
        }
        log: Any = module.make_file_cm(str(folder / "vagrant.log"))
        self._vagrant = module.Vagrant(
            root=str(folder), out_cm=log, err_cm=log, env=os.environ | environment
        )

    @classmethod
    def up(cls, suite: str, *, flavour: str = "plain", say: Say = print) -> Self:
        """Start a machine from the suite's box. Raises MachineError."""
        if not shutil.which("vagrant"):
            raise MachineError("vagrant is missing: make vm-setup PROVIDER=vagrant")
        folders.sweep()
        named = os.environ.get("VAGRANT_BOX")
        if named:
            url, name = "", named
        else:
            source = image.build(suite, flavour, say=say)
            file = box.pack(source, folders.cache() / "boxes", say=say)
            url, name = f'config.vm.box_url = "file://{file}"', file.stem
        folder, lock = folders.claim(folders.run(), f"vagrant-{suite}")
        try:
            libvirt = Libvirt(folder)
            machine = cls(folder, lock, libvirt)
        except BaseException:
            folders.remove(folder)
            lock.release()
            raise
        try:
            prefix = _mine() + folder.name
            text = PROJECT.format(box=name, url=url, prefix=prefix, pool=_pool())
            (folder / "Vagrantfile").write_text(text)
            say("machine: vagrant up")
            machine._call("up", provider="libvirt")
            pid = Path(f"/run/libvirt/qemu/{machine.domain}.pid")
            if pid.exists():
                folders.record(folder / "pid", int(pid.read_text()))
            (folder / "ssh_config").write_text(machine._vagrant.ssh_config())
        except BaseException:
            machine.close()
            raise
        return machine

    @property
    def domain(self) -> str:
        """libvirt's name for it."""
        return f"{_mine()}{self.name}default"

    def run(self, command: str, *, timeout: float = 60, input: bytes = b"") -> Result:
        """See Machine.run."""
        result = self._ssh(command, timeout, input)
        if result.status == 255 and not self._ssh("true", GRACE).ok:
            raise MachineError(f"{self.name} is gone: {result.err}")
        if result.status == 137 and result.seconds >= timeout:
            raise CommandTimeout(f"still running after {timeout:g} s, killed:\n{result}", result)
        return result

    def _ssh(self, command: str, timeout: float, input: bytes = b"") -> Result:
        """A command, or status 255 when the machine cannot be reached."""
        remote = REMOTE.format(limit=timeout, command=shlex.quote(command))
        begin = time.monotonic()
        try:
            done = subprocess.run(
                [*self.ssh_command(), remote],
                input=input,
                capture_output=True,
                timeout=timeout + GRACE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise MachineError(f"{self.name} hangs: no answer while it ran {command!r}") from None
        seconds = time.monotonic() - begin
        return Result(command, done.returncode, done.stdout, done.stderr, seconds)

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
        while (now := self._ssh(ask, 20)).out in ("", before):
            if time.monotonic() > deadline:
                raise MachineError(
                    f"{self.name}: not back {timeout:g} s after a reboot: {now.err}"
                )

    def close(self) -> None:
        """See Machine.close."""
        if self._lock is None:
            return
        self._leave()
        try:
            if (self.folder / ".vagrant").exists():
                self._call("destroy")
        finally:
            folders.kill_recorded(self.folder / "pid")  # where libvirt could not
            folders.remove(self.folder)
            _clear_libvirt()
            self._libvirt.close()
            self._lock.release()
            self._lock = None

    def ssh_command(self) -> list[str]:
        """ssh by the configuration that Vagrant gave once, over one shared connection."""
        shared = {"ControlMaster": "auto", "ControlPath": self.folder / "ssh"}
        options = {**shared, "ControlPersist": "60", "LogLevel": "ERROR"}
        flags = [flag for name, value in options.items() for flag in ("-o", f"{name}={value}")]
        return ["ssh", "-F", str(self.folder / "ssh_config"), *flags, "default"]

    def console(self) -> str:
        """What Vagrant said; libvirt does not keep the serial console."""
        log = self.folder / "vagrant.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def _call(self, method: str, *arguments: Any, **named: Any) -> None:
        """A command of Vagrant; its last words when it fails."""
        try:
            getattr(self._vagrant, method)(*arguments, **named)
        except subprocess.CalledProcessError as error:
            said = [line for line in self.console().splitlines() if not line.startswith("\tfrom")]
            last = "\n  ".join(said[-12:])
            raise MachineError(f"{self.name}: vagrant {method} failed:\n  {last}") from error

    def _leave(self) -> None:
        """End the shared ssh connection."""
        if (self.folder / "ssh").exists():
            command = self.ssh_command()
            subprocess.run(
                [*command[:-1], "-O", "exit", "default"], capture_output=True, check=False
            )

    def _refresh(self) -> None:
        """The clock and fresh entropy after a restore."""
        seed = os.urandom(64)
        self.succeed(f"cat > /dev/urandom; date -s @{time.time():.3f} > /dev/null", input=seed)


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
        raise MachineError(f"libvirt takes no storage pool at {folder}: {made.stderr.strip()}")
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
