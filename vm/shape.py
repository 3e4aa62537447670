"""What a machine is made of, and the QEMU command line that says so."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from vm.processes import run

PROGRAM = "qemu-system-x86_64"
SMALL_INIT = "/usr/local/sbin/vm-init"
CMDLINE = (
    "root=/dev/vda rw console=ttyS0 net.ifnames=0 panic=-1 loglevel=4 systemd.show_status=false"
)

#: Emulated, a processor may be held up for long, and a kernel that sees its clock lag rewrites its own
#: code for that: a moment at which another emulated processor can run into the breakpoint and panic.
TCG_CMDLINE = "tsc=reliable"


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
        parts = (asdict(replace(self, network=False)), _host(), Path(__file__).read_text())
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    def command(
        self, folder: Path, disk: Path, memory: Path, fds: dict[str, int], *, private: bool
    ) -> list[str]:
        """The command line. `fds` are the listening sockets of the control and command channels.

        A private machine does not write to its memory file.
        """
        tcg = self.accelerator == "tcg"
        share = "off" if private else "on"
        restrict = "off" if self.network else "on"
        folder, disk, memory = (Path(str(p).replace(",", ",,")) for p in (folder, disk, memory))
        ram = f"memory-backend-file,id=ram,size={self.memory}M,mem-path={memory},share={share}"
        sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=allow"
        options = [
            ("-name", folder.name),
            ("-machine", "q35,memory-backend=ram,sata=off,smbus=off"),
            ("-accel", "tcg,thread=multi" if tcg else self.accelerator),
            ("-cpu", "max" if tcg else "host"),
            ("-smp", str(self.cpus)),
            ("-m", f"{self.memory}M"),
            ("-object", ram),
            ("-display", "none"),
            ("-rtc", "base=utc"),
            ("-sandbox", sandbox),
            ("-chardev", f"file,id=console,path={folder}/console.log,append=on"),
            ("-serial", "chardev:console"),
            *(("-chardev", f"socket,id={n},fd={fd},server=on,wait=off") for n, fd in fds.items()),
            ("-mon", "chardev=qmp,mode=control"),
            ("-drive", f"if=none,id=disk,format=qcow2,file={disk},cache=unsafe"),
            ("-device", "virtio-blk-pci,drive=disk"),
            ("-netdev", f"user,id=net,restrict={restrict}"),
            ("-device", "virtio-net-pci,netdev=net,romfile="),
            ("-object", "rng-random,id=rng,filename=/dev/urandom"),
            ("-device", "virtio-rng-pci,rng=rng"),
            ("-device", "virtio-serial-pci"),
            ("-device", "virtserialport,chardev=agent,name=vm.agent"),
        ]
        flags = ["-nodefaults", "-no-user-config", "-no-reboot"]
        return [PROGRAM, *flags, *(word for pair in options for word in pair)]

    def boot(self) -> list[str]:
        """What the command line has in addition for a cold start."""
        words = CMDLINE if self.accelerator != "tcg" else f"{CMDLINE} {TCG_CMDLINE}"
        words += "" if self.init == "systemd" else f" init={SMALL_INIT}"
        return ["-kernel", self.kernel, "-initrd", self.initrd, "-append", words]


@cache
def _host() -> str:
    """QEMU's version and the processor's name."""
    model = re.search(r"model name.*", Path("/proc/cpuinfo").read_text())
    return f"{run(PROGRAM, PROGRAM, '--version')}{model and model[0]}"
