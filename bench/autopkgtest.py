"""autopkgtest-virt-qemu(1) on the same image, measured in turn with this harness.

It needs a kernel with 9p (the flavour `generic`), a login prompt on the serial console and root's
shell on another: two units that are added to the image here. QEMU is called through a script that
starts the kernel directly, as this harness does, leaves KVM alone where that does not work, and
restricts the network.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

from vm import image
from vm.errors import CommandFailed, HostError, MachineError
from vm.processes import Say
from vm.qemu import QemuMachine
from vm.shape import PROGRAM, Shape

PREPARE = """
rm -f /etc/systemd/system/serial-getty@ttyS0.service
cat > /etc/systemd/system/root-shell.service << 'EOF'
[Service]
ExecStart=/bin/sh
StandardInput=tty
StandardOutput=tty
StandardError=tty
TTYPath=/dev/hvc1
Restart=always
[Install]
WantedBy=multi-user.target
EOF
systemctl enable serial-getty@ttyS0.service root-shell.service
sync
"""
WRAPPER = """#!/bin/sh
for word; do
    shift
    case $word in
        -enable-kvm) {kvm} ;;
        user) set -- "$@" user,restrict=on ;;
        *) set -- "$@" "$word" ;;
    esac
done
exec {program} "$@" -accel {accel} {boot}
"""


class Testbed:
    """One autopkgtest-virt-qemu, spoken to as autopkgtest does."""

    def __init__(self, folder: Path, shape: Shape, disk: Path) -> None:
        """Nothing runs yet but the server; `disk` is not written to."""
        wrapper = folder / PROGRAM
        tcg = shape.accelerator == "tcg"
        wrapper.write_text(
            WRAPPER.format(
                kvm=":" if tcg else 'set -- "$@" "$word"',
                program=shutil.which(PROGRAM),
                accel="tcg,thread=multi" if tcg else shape.accelerator,
                boot=shlex.join(shape.boot()),
            )
        )
        wrapper.chmod(0o755)
        command = ["autopkgtest-virt-qemu", "--boot=none", f"--qemu-command={wrapper}"]
        command += [f"--cpus={shape.cpus}", f"--ram-size={shape.memory}", "--timeout-reboot=300"]
        command += [f"--overlay-dir={folder}", "--qemu-options=-machine q35 -cpu max", str(disk)]
        self._log = (folder / "log").open("w+")
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self._read("start")

    def ask(self, request: str) -> str:
        """A command of the server's protocol; what it answers. Raises MachineError."""
        assert self._server.stdin
        self._server.stdin.write(f"{request}\n")
        self._server.stdin.flush()
        return self._read(request)

    def run(self, *command: str) -> None:
        """A command in the machine that is open."""
        words = [unquote(word) for word in self.ask("print-execute-command").split(",")]
        subprocess.run([*words, *command], check=True, stdin=subprocess.DEVNULL)

    def close(self) -> None:
        """End the machine and the server."""
        with suppress(MachineError):
            self.ask("quit")
        self._server.wait()
        self._log.close()

    def _read(self, request: str) -> str:
        assert self._server.stdout
        word, _, rest = self._server.stdout.readline().strip().partition(" ")
        if word != "ok":
            self._log.seek(0)
            said = " ".join(self._log.read().split()[-40:])
            raise MachineError(f"autopkgtest-virt-qemu: {request}: {word} {rest} {said}")
        return rest


@contextmanager
def testbed(suite: str, accelerator: str, say: Say) -> Iterator[tuple[Testbed, Shape]]:
    """A server on the suite's image, with the two units. Raises VmError."""
    if not shutil.which("autopkgtest-virt-qemu"):
        raise HostError("autopkgtest-virt-qemu is missing: apt-get install autopkgtest")
    source = image.build(suite, "generic", say=say)
    shape = Shape(str(source.kernel), str(source.initrd), accelerator)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        with QemuMachine.boot(source, shape, "bench") as machine:
            try:
                machine.succeed(PREPARE)
            except CommandFailed as error:
                raise MachineError(str(error)) from error
            state = machine.freeze(folder / "state", folder / "state/ram")
        bed = Testbed(folder, shape, state.folder / "disk.qcow2")
        try:
            yield bed, shape
        finally:
            bed.close()
