"""Machines in QEMU: direct kernel boot, a command channel without a network, frozen states.

A snapshot is the memory file, the disk and QEMU's own device state. Memory is a file that QEMU maps
shared, so saving a state does not copy it; a clone maps the same file privately, so any number of
them start from it at once and share what they do not change. The machine that was frozen goes on
from a copy of its memory.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from vm import diagnosis, folders, processes
from vm.channel import Channel
from vm.errors import HostError, MachineError, RequestError
from vm.image import Image
from vm.machine import Input, Machine, Result, Sink
from vm.processes import uninterrupted
from vm.qmp import QMP
from vm.shape import Shape

CAPABILITIES = [
    {"capability": "x-ignore-shared", "state": True},
    {"capability": "events", "state": True},
]


@dataclass(frozen=True)
class Frozen:
    """A machine's whole state in a folder: `state`, disk.qcow2, frozen.json; and its memory."""

    folder: Path

    @property
    def about(self) -> dict[str, Any]:
        """What frozen.json holds."""
        value: dict[str, Any] = json.loads((self.folder / "frozen.json").read_text())
        return value

    @property
    def memory(self) -> Path:
        """The memory file, which may lie elsewhere."""
        return self.folder / str(self.about["memory"])

    def start(
        self, name: str, *, private: bool = True, detached: bool = False, network: bool = False
    ) -> QemuMachine:
        """A machine that goes on from here. A private one is faster and cannot be frozen."""
        shape = Shape(**self.about["shape"] | {"network": network})
        machine = QemuMachine.make(name, shape, detached=detached)
        try:
            machine.snapshots[""] = self
            machine._thaw(self, private=private)
        except BaseException:
            machine.close()
            raise
        return machine


class QemuMachine(Machine):
    """A machine in a QEMU process of its own. Make one with `boot`, `Frozen.start` or `attach`."""

    can = frozenset({"snapshot", "clone"})

    def __init__(
        self,
        folder: Path,
        shape: Shape,
        memory: Path,
        locks: list[folders.Lock],
        *,
        detached: bool,
    ) -> None:
        """Only what is known of it; nothing runs yet."""
        self.name = folder.name
        self.folder, self.shape, self.memory = folder, shape, memory
        self.snapshots: dict[str, Frozen] = {}
        self._locks = locks
        self._detached = detached
        self._process: subprocess.Popen[bytes] | None = None
        self._qmp: QMP | None = None
        self._channel: Channel | None = None
        self._client: folders.Lock | None = None  # held with the channel: it has one end
        self._private = False

    @classmethod
    def make(cls, name: str, shape: Shape, *, detached: bool = False) -> Self:
        """A machine's folders. A `detached` one runs on when this process ends."""
        image = Image(Path(shape.kernel).parent)
        with ExitStack() as undo:
            used = undo.enter_context(folders.Lock(image.lock, shared=True, wait=True))
            folder, lock = folders.claim(folders.run(), name)
            undo.enter_context(lock)
            undo.callback(folders.discard, folder)
            memory = folders.memory(folder.name) / "ram"
            machine = cls(folder, shape, memory, [used, lock], detached=detached)
            undo.pop_all()
        return machine

    @classmethod
    def boot(
        cls, image: Image, shape: Shape, name: str, *, detached: bool = False, timeout: float = 120
    ) -> QemuMachine:
        """Start a machine from an image; returns when commands run in it."""
        machine = cls.make(name, shape, detached=detached)
        try:
            machine._overlay(image.disk)
            machine._launch()
            machine._hello(timeout)
        except BaseException:
            machine.close()
            raise
        return machine

    @classmethod
    def attach(cls, folder: Path) -> Self:
        """Reach a detached machine that another process started, connecting when there is need.

        Commands of one process at a time run in it: another one's raise RequestError.
        """
        about = json.loads((folder / "machine.json").read_text())
        shape, memory = Shape(**about["shape"]), Path(about["memory"])
        machine = cls(folder, shape, memory, [], detached=True)
        machine._private = True  # it cannot be frozen from here
        return machine

    # What every machine does

    def _run(
        self, command: str, timeout: float, input: Input, out: Sink | None, err: Sink | None
    ) -> Result:
        channel = self._channel or self._hello(20)
        with self._explained():
            return channel.run(
                command, timeout=timeout, input=input, out=out, err=err, silent=self._look
            )

    def _look(self) -> None:
        """Raise MachineError where the guest is paused: no answer will come."""
        paused = diagnosis.paused(self._control)
        if self._qmp is not None and (self._process is None or paused is None):
            self._qmp.close()  # it has one caller at a time, and may answer late
            self._qmp = None
        if paused:
            raise MachineError("paused")

    def snapshot(self, name: str) -> None:
        """Freeze memory, devices and disk; the machine goes on from a copy of them."""
        if "snapshot" not in self.can:
            raise HostError(f"{self.name}: no state can be kept here")
        memory = self.memory.with_name(f"{name}.ram")
        folder = self.folder / "snapshots" / name
        if folder.exists():
            raise RequestError(f"{self.name} has a snapshot {name!r} already")
        self.snapshots[name] = self.freeze(folder, memory)
        self.restore(name)

    def freeze(self, folder: Path, memory: Path) -> Frozen:
        """End the machine and keep its state in a new folder, its memory in that file."""
        if self._private:
            raise RequestError(f"{self.name} runs on another's memory: freeze that other machine")
        folder.mkdir(parents=True, mode=0o700)
        self._migrate("migrate", folder / "state", "wb")
        self._end()
        _move(self.memory, memory)
        _move(self.folder / "disk.qcow2", folder / "disk.qcow2")
        kept = memory.name if memory.parent == folder else str(memory)
        about = {"memory": kept, "shape": asdict(self.shape)}
        (folder / "frozen.json").write_text(json.dumps(about, indent=2) + "\n")
        return Frozen(folder)

    def restore(self, name: str) -> None:
        """Put the machine back, in well under a second."""
        if name not in self.snapshots:
            raise RequestError(f"{self.name} has no snapshot {name!r}")
        self._end()
        self._thaw(self.snapshots[name], private=False)

    def clone(self, name: str) -> QemuMachine:
        """A further machine from this one's snapshot, which has to stay as long as that runs."""
        if name not in self.snapshots:
            raise RequestError(f"{self.name} has no snapshot {name!r}")
        return self.snapshots[name].start(self.name.rpartition("-")[0])

    def reboot(self, *, timeout: float = 120) -> None:
        """Shut the guest down in an orderly way and boot from its disk."""
        if self._process is None:
            raise RequestError(f"{self.name}: only the process that started it can boot it again")
        orderly = "if [ -d /run/systemd/system ]; then systemctl reboot; else shutdown -r now; fi"
        self.run(f"(sync; {orderly} || busybox reboot -f) >/dev/null 2>&1 &")
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise MachineError(f"{self.name}: did not shut down within {timeout:g} s") from None
        self._end()
        self._private = False
        self._launch()
        self._hello(timeout)

    def close(self) -> None:
        """End QEMU and remove the machine's folders, snapshots included."""
        with uninterrupted():
            self._end()
            folders.remove(self.memory.parent)  # first: what has no namesake is swept
            folders.remove(self.folder)
            for lock in self._locks:
                lock.release()
            self._locks = []

    def console(self) -> str:
        """All that the guest wrote to its serial console."""
        return diagnosis.console(self.folder)

    def ssh_command(self) -> list[str]:
        """ssh as root with the image's own key, by a forward on 127.0.0.1."""
        image = Image(Path(self.shape.kernel).parent)
        options = {
            "IdentityFile": image.folder / "id_ed25519",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": image.folder / "known_hosts",
            "StrictHostKeyChecking": "yes",
            "HostKeyAlias": "disposable",
            "ControlMaster": "auto",
            "ControlPath": self.folder / "ssh",
            "ControlPersist": 60,
            "LogLevel": "ERROR",
            "Port": self.ssh_port(),
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return [*processes.as_somebody(), "ssh", "-F", "none", *words, "root@127.0.0.1"]

    def ssh_port(self) -> int:
        """The port on 127.0.0.1 that leads to the guest's sshd, opened when first asked for."""
        listing = self._monitor("info usernet")
        if "HOST_FORWARD" not in listing:
            self._monitor("hostfwd_add net tcp:127.0.0.1:0-:22")
            listing = self._monitor("info usernet")
        match = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", listing)
        if not match:
            raise HostError(f"{self.name}: no port on 127.0.0.1 could be had for ssh")
        return int(match[1])

    # QEMU itself

    def _control(self) -> QMP:
        """QEMU's control channel, connected when first used."""
        if self._qmp is None:
            self._qmp = QMP(self._connect("qmp"))
        return self._qmp

    def _monitor(self, line: str) -> str:
        with self._explained():
            return str(self._control().execute("human-monitor-command", command_line=line))

    def _migrate(self, command: str, file: Path, mode: str) -> None:
        """Save the devices' state to a file, or load it."""
        with self._explained(), file.open(mode) as state:
            qmp = self._control()
            qmp.execute("migrate-set-capabilities", capabilities=CAPABILITIES)
            qmp.execute("getfd", fd=state.fileno(), fdname="state")
            qmp.execute(command, uri="fd:state")
            qmp.wait("MIGRATION", status="completed", timeout=30)

    def _thaw(self, frozen: Frozen, *, private: bool) -> None:
        """Go on from a frozen state."""
        if private:
            memory = frozen.memory
        else:
            memory = self.memory
            _copy(frozen.memory, memory)
        self._overlay(frozen.folder / "disk.qcow2")
        self._private = private
        self._launch(memory=memory, incoming=True)
        self._migrate("migrate-incoming", frozen.folder / "state", "rb")
        self._hello(30, set_clock=True)

    def _overlay(self, backing: Path) -> None:
        """The machine's own disk: what it writes on top of another."""
        disk = self.folder / "disk.qcow2"
        disk.unlink(missing_ok=True)
        make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]
        processes.run(f"{self.name}: disk", *make, backing, disk, limit=60)

    def _launch(self, memory: Path | None = None, *, incoming: bool = False) -> None:
        """Start QEMU; its sockets are open before it is, so that connecting never has to wait."""
        about = {
            "detached": self._detached,
            "memory": str(self.memory),
            "shape": asdict(self.shape),
        }
        (self.folder / "machine.json").write_text(json.dumps(about, indent=2) + "\n")
        listening = {name: self._listen(name) for name in ("qmp", "agent")}
        fds = [listener.fileno() for listener in listening.values()]
        if self._detached:
            fds += [lock.fd for lock in self._locks]
        command = self.shape.command(
            self.folder,
            self.folder / "disk.qcow2",
            memory or self.memory,
            {name: listener.fileno() for name, listener in listening.items()},
            private=self._private,
        )
        command += ["-incoming", "defer"] if incoming else self.shape.boot()
        with (self.folder / "qemu.log").open("ab") as log, uninterrupted():
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=fds,
                env=os.environ | {"TMPDIR": str(self.folder)},
                start_new_session=True,
            )
            processes.record(self.folder / "pid", self._process.pid)
        for listener in listening.values():
            listener.close()

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
            raise MachineError(f"does not run ({error.strerror})") from error
        return connection

    def _hello(self, timeout: float, *, set_clock: bool = False) -> Channel:
        """Connect to the agent and wait until it answers."""
        try:
            self._client = folders.Lock(self.folder / "client")
        except FileNotFoundError:
            raise RequestError(f"{self.name} is closed") from None
        except BlockingIOError:
            raise RequestError(f"{self.name} is busy: another command runs in it") from None
        with self._explained():
            self._channel = Channel(self._connect("agent"))
            self._channel.hello(timeout=timeout, set_clock=set_clock)
            return self._channel

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """An error in here names the machine, and what QEMU and the guest said last."""
        try:
            yield
        except MachineError as error:
            if why := diagnosis.shortage(self.folder, self.memory, self._process, self._control):
                raise HostError(f"{self.name}: {why}") from error
            said = diagnosis.last_words(self.folder, self._process)
            raise MachineError("\n  ".join([f"{self.name}: {error}", *said])) from error

    def disconnect(self) -> None:
        """Close the connections to QEMU; a detached machine runs on."""
        for connection in (self._qmp, self._channel):
            if connection is not None:
                connection.close()
        if self._client is not None:
            self._client.release()
        self._qmp = self._channel = self._client = None

    def _end(self) -> None:
        """End QEMU and the connections to it."""
        self.disconnect()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        else:
            processes.kill_recorded(self.folder / "pid")


def _copy(source: Path, target: Path) -> None:
    """Copy a large file that is mostly holes."""
    processes.run(f"copying {source}", "cp", "--sparse=always", source, target)


def _move(source: Path, target: Path) -> None:
    """Rename a file, or copy it where the target lies on another file system."""
    try:
        source.rename(target)
    except OSError:
        _copy(source, target)
        source.unlink()
