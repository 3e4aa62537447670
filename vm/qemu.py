"""Machines in QEMU: direct kernel boot, a command channel without a network, frozen states.

A snapshot is the memory file, the disk and QEMU's own device state. Memory is a file that QEMU maps
shared, so saving a state does not copy it; a clone maps the same file privately, so any number of
them start from it at once and share what they do not change. The machine that was frozen goes on
from a copy of its memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from vm import folders
from vm.channel import Channel
from vm.image import Image
from vm.machine import Machine, MachineError, Result
from vm.qmp import QMP

PROGRAM = "qemu-system-x86_64"
SMALL_INIT = "/usr/local/sbin/vm-init"
CMDLINE = "root=/dev/vda rw console=ttyS0 net.ifnames=0 panic=-1 loglevel=4 systemd.show_status=false"
CAPABILITIES = [
    {"capability": "x-ignore-shared", "state": True},
    {"capability": "events", "state": True},
]


@dataclass(frozen=True)
class Shape:
    """What a machine is made of; a state restores only into the same shape."""

    kernel: str
    initrd: str
    accelerator: str
    memory: int = 512  # MiB
    cpus: int = 2
    init: str = "systemd"
    network: bool = False  # whether the guest reaches beyond this machine

    @property
    def key(self) -> str:
        """A name for this shape on this machine: of QEMU, the processor and all the rest."""
        version = subprocess.run([PROGRAM, "--version"], capture_output=True, check=True).stdout
        model = re.search(r"model name.*", Path("/proc/cpuinfo").read_text())
        parts = (asdict(self), version.decode(), model and model[0])
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Frozen:
    """A machine's whole state in a folder: `state`, `disk.qcow2`, shape.json; and its memory."""

    folder: Path
    memory: Path

    @property
    def shape(self) -> Shape:
        """The shape that it restores into."""
        return Shape(**json.loads((self.folder / "shape.json").read_text()))

    def start(self, name: str, *, private: bool = True, detached: bool = False) -> QemuMachine:
        """A machine that goes on from here. A private one is faster and cannot be frozen."""
        machine = QemuMachine(name, self.shape, detached=detached)
        try:
            machine.snapshots[""] = self
            machine._thaw(self, private=private)
        except BaseException:
            machine.close()
            raise
        return machine


class QemuMachine(Machine):
    """A machine in a QEMU process of its own. Make one with `boot`, `Frozen.start` or `attach`."""

    can_clone = True

    def __init__(self, name: str, shape: Shape, *, detached: bool = False) -> None:
        """Only the folders: `detached` leaves the machine running when this process ends."""
        self.shape = shape
        self.snapshots: dict[str, Frozen] = {}
        self.folder, lock = folders.claim(folders.run(), name)
        self.name = self.folder.name
        memory = folders.memory() / self.name
        memory.mkdir(mode=0o700, exist_ok=True)  # the same folder where memory lies with the rest
        self.memory = memory / "ram"
        self._locks = [lock]
        if memory != self.folder:
            self._locks.append(folders.Lock(memory / "lock"))
        self._detached = detached
        self._process: subprocess.Popen[bytes] | None = None
        self._qmp: QMP | None = None
        self._channel: Channel | None = None
        self._private = False
        self._port: int | None = None
        self._write_json("machine.json", asdict(shape) | {"memory_file": str(self.memory)})

    @classmethod
    def boot(
        cls, image: Image, shape: Shape, name: str, *, detached: bool = False, timeout: float = 120
    ) -> QemuMachine:
        """Start a machine from an image; returns when commands run in it."""
        machine = cls(name, shape, detached=detached)
        try:
            machine._overlay(image.disk)
            machine._launch()
            machine._hello(timeout)
        except BaseException:
            machine.close()
            raise
        return machine

    # What every machine does

    def run(self, command: str, *, timeout: float = 60, input: bytes = b"") -> Result:
        """See Machine.run."""
        if self._channel is None:
            raise MachineError(f"{self.name} is closed")
        try:
            return self._channel.run(command, timeout=timeout, input=input)
        except MachineError as error:
            raise self._broken(error) from error

    def snapshot(self, name: str) -> None:
        """Freeze memory, devices and disk; the machine goes on from a copy of them."""
        memory = self.memory.with_name(f"{name}.ram")
        folder = self.folder / "snapshots" / name
        if folder.exists():
            raise MachineError(f"{self.name} has a snapshot {name!r} already")
        self.snapshots[name] = self.freeze(folder, memory)
        self.restore(name)

    def freeze(self, folder: Path, memory: Path) -> Frozen:
        """End the machine and keep its state in a new folder, its memory in that file."""
        if self._private or self._qmp is None:
            raise MachineError(f"{self.name} runs on another's memory: freeze that other machine")
        folder.mkdir(parents=True, mode=0o700)
        self._qmp.execute("migrate-set-capabilities", capabilities=CAPABILITIES)
        with (folder / "state").open("wb") as state:
            self._qmp.execute("getfd", fd=state.fileno(), fdname="state")
        self._qmp.execute("migrate", uri="fd:state")
        self._qmp.wait("MIGRATION", status="completed", timeout=30)
        self._end()
        shutil.move(self.memory, memory)
        (self.folder / "disk.qcow2").rename(folder / "disk.qcow2")
        shape = json.dumps(asdict(self.shape), indent=2)
        (folder / "shape.json").write_text(shape + "\n")
        return Frozen(folder, memory)

    def restore(self, name: str) -> None:
        """Put the machine back, in well under a second."""
        if name not in self.snapshots:
            raise MachineError(f"{self.name} has no snapshot {name!r}")
        self._end()
        self._thaw(self.snapshots[name], private=False)

    def clone(self, name: str) -> QemuMachine:
        """A further machine from this one's snapshot, which has to stay as long as that runs."""
        if name not in self.snapshots:
            raise MachineError(f"{self.name} has no snapshot {name!r}")
        return self.snapshots[name].start(self.name.rpartition("-")[0])

    def reboot(self, *, timeout: float = 120) -> None:
        """Shut the guest down in an orderly way and boot from its disk."""
        self.run("(sync; systemctl reboot || busybox reboot -f) >/dev/null 2>&1 &")
        self._wait_for_end(timeout)
        self._end()
        self._launch()
        self._hello(timeout)

    def close(self) -> None:
        """End QEMU and remove the machine's folders, snapshots included."""
        self._end()
        for folder in {self.folder, self.memory.parent}:
            folders.remove(folder)
        for lock in self._locks:
            lock.release()
        self._locks = []

    def console(self) -> str:
        """All that the guest wrote to its serial console."""
        file = self.folder / "console.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def ssh_command(self) -> list[str]:
        """ssh as root with a key of this machine's own, by a forward on 127.0.0.1."""
        key = self.folder / "id_ed25519"
        if not key.exists():
            make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", str(key)]
            subprocess.run(make, check=True)
            public = key.with_suffix(".pub").read_bytes()
            self.succeed("cat >> /root/.ssh/authorized_keys", input=public)
        options = {
            "IdentityFile": key,
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": Path(self.shape.kernel).with_name("known_hosts"),
            "StrictHostKeyChecking": "yes",
            "HostKeyAlias": "disposable",
            "ControlMaster": "auto",
            "ControlPath": self.folder / "ssh",
            "ControlPersist": "60",
            "LogLevel": "ERROR",
        }
        flags = [flag for name, value in options.items() for flag in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "none", "-p", str(self.ssh_port()), *flags, "root@127.0.0.1"]

    def ssh_port(self) -> int:
        """The port on 127.0.0.1 that leads to the guest's sshd, opened when first asked for."""
        listing = self._monitor("info usernet")
        if "HOST_FORWARD" not in listing:
            self._monitor("hostfwd_add net tcp:127.0.0.1:0-:22")
            listing = self._monitor("info usernet")
        match = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", listing)
        if not match:
            raise MachineError(f"{self.name}: no port on 127.0.0.1 could be had for ssh")
        return int(match[1])

    # QEMU itself

    def _monitor(self, line: str) -> str:
        if self._qmp is None:
            raise MachineError(f"{self.name} is closed")
        return str(self._qmp.execute("human-monitor-command", command_line=line))

    def _thaw(self, frozen: Frozen, *, private: bool) -> None:
        """Go on from a frozen state."""
        if private:
            memory = frozen.memory
        else:
            memory = self.memory
            subprocess.run(["cp", "--sparse=auto", frozen.memory, memory], check=True)
            self._overlay(frozen.folder / "disk.qcow2")
        disk = frozen.folder / "disk.qcow2" if private else self.folder / "disk.qcow2"
        self._private = private
        self._launch(memory=memory, disk=disk, incoming=True)
        assert self._qmp is not None
        self._qmp.execute("migrate-set-capabilities", capabilities=CAPABILITIES)
        with (frozen.folder / "state").open("rb") as state:
            self._qmp.execute("getfd", fd=state.fileno(), fdname="state")
        self._qmp.execute("migrate-incoming", uri="fd:state")
        self._hello(30, set_clock=True)

    def _overlay(self, backing: Path) -> None:
        """The machine's own disk: what it writes on top of another."""
        disk = self.folder / "disk.qcow2"
        disk.unlink(missing_ok=True)
        make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]
        subprocess.run([*make, str(backing), str(disk)], check=True)

    def _launch(
        self, memory: Path | None = None, disk: Path | None = None, *, incoming: bool = False
    ) -> None:
        """Start QEMU; its sockets are open before it is, so that connecting never has to wait."""
        listening = {name: self._listen(name) for name in ("qmp", "agent")}
        fds = [listener.fileno() for listener in listening.values()]
        if self._detached:
            fds += [lock.fd for lock in self._locks]
        command = self._command(
            memory or self.memory,
            disk or self.folder / "disk.qcow2",
            {name: listener.fileno() for name, listener in listening.items()},
        )
        command += ["-incoming", "defer"] if incoming else self._boot_arguments()
        with (self.folder / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=fds,
                env=os.environ | {"TMPDIR": str(self.folder)},
                start_new_session=True,
            )
        folders.record(self.folder / "pid", self._process.pid)
        for listener in listening.values():
            listener.close()
        try:
            self._qmp = QMP(self._connect("qmp"))
            self._channel = Channel(self._connect("agent"))
        except MachineError as error:
            raise self._broken(error) from error

    def _boot_arguments(self) -> list[str]:
        init = "" if self.shape.init == "systemd" else f" init={SMALL_INIT}"
        kernel = ["-kernel", self.shape.kernel, "-initrd", self.shape.initrd]
        return [*kernel, "-append", CMDLINE + init]

    def _command(self, memory: Path, disk: Path, fds: dict[str, int]) -> list[str]:
        shape = self.shape
        share = "off" if self._private else "on"
        snapshot = "on" if self._private else "off"
        accelerator = "tcg,thread=multi" if shape.accelerator == "tcg" else shape.accelerator
        restrict = "off" if shape.network else "on"
        options = {
            "-name": self.name,
            "-machine": "q35,memory-backend=ram",
            "-accel": accelerator,
            "-cpu": "max" if shape.accelerator == "tcg" else "host",
            "-smp": str(shape.cpus),
            "-m": f"{shape.memory}M",
            "-object": f"memory-backend-file,id=ram,size={shape.memory}M,"
            f"mem-path={memory},share={share}",
            "-display": "none",
            "-rtc": "base=utc",
            "-sandbox": "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=allow",
            "-serial": "chardev:console",
            "-mon": "chardev=qmp,mode=control",
            "-netdev": f"user,id=net,restrict={restrict}",
            "-drive": f"if=none,id=disk,format=qcow2,file={disk},snapshot={snapshot},cache=unsafe",
        }
        repeated = [
            ("-chardev", f"file,id=console,path={self.folder}/console.log,append=on"),
            *(
                ("-chardev", f"socket,id={name},fd={fd},server=on,wait=off")
                for name, fd in fds.items()
            ),
            ("-object", "rng-random,id=rng,filename=/dev/urandom"),
            ("-device", "virtio-blk-pci,drive=disk"),
            ("-device", "virtio-net-pci,netdev=net,romfile="),
            ("-device", "virtio-rng-pci,rng=rng"),
            ("-device", "virtio-serial-pci"),
            ("-device", "virtserialport,chardev=agent,name=vm.agent"),
        ]
        pairs = [*options.items(), *repeated]
        flags = ["-nodefaults", "-no-user-config", "-no-reboot"]
        return [PROGRAM, *flags, *(word for pair in pairs for word in pair)]

    def _listen(self, name: str) -> socket.socket:
        path = self.folder / name
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(8)
        return listener

    def _connect(self, name: str) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(self.folder / name))
        except OSError as error:
            connection.close()
            raise MachineError(f"{self.name} does not run ({error.strerror})") from error
        return connection

    def _hello(self, timeout: float, *, set_clock: bool = False) -> None:
        assert self._channel is not None
        try:
            self._channel.hello(timeout=timeout, set_clock=set_clock)
        except MachineError as error:
            raise self._broken(error) from error

    def _broken(self, error: MachineError) -> MachineError:
        """The error with what QEMU and the guest said last."""
        log = self.folder / "qemu.log"
        said = log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
        last = [*said, *self.console().splitlines()[-15:]]
        return MachineError("\n  ".join([f"{self.name}: {error}", *last]))

    def _wait_for_end(self, timeout: float) -> None:
        """Wait until the guest has ended QEMU."""
        deadline = time.monotonic() + timeout
        while folders.recorded(self.folder / "pid") is not None:
            if time.monotonic() > deadline:
                raise MachineError(f"{self.name}: did not shut down within {timeout:g} s")
            time.sleep(0.02)

    def _end(self) -> None:
        """End QEMU and the connections to it."""
        for connection in (self._qmp, self._channel):
            if connection is not None:
                connection.close()
        self._qmp = self._channel = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        else:
            folders.kill_recorded(self.folder / "pid")

    def _write_json(self, name: str, value: object) -> None:
        (self.folder / name).write_text(json.dumps(value, indent=2) + "\n")
