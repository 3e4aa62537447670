"""What an image holds. Its key is a hash of this module, vm/image.py, the agent and vm/guest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vm.errors import RequestError
from vm.mirrors import Mirrors, mirrors


@dataclass(frozen=True)
class Suite:
    """A suite of Debian's, as a machine can be made of it."""

    pockets: tuple[str, ...] = ("updates", "security")
    """What its archives have beside it, by the end of the name."""


#: A new suite of Debian's is a row here.
SUITES = {"bookworm": Suite(), "trixie": Suite(), "forky": Suite(), "sid": Suite(pockets=())}
DEFAULT = "trixie"
KERNEL = "linux-image-cloud-amd64"
PACKAGES = [
    "systemd-sysv", "dbus", "udev", "kmod", "procps", "util-linux", "util-linux-extra",
    "e2fsprogs", "fdisk", "iproute2", "ifupdown", "bridge-utils", "vlan", "iputils-ping",
    "openssh-server", "rsyslog", "sudo", "python3", "python3-pyroute2", "qemu-guest-agent",
    "busybox-static", "rsync", "less",
]  # fmt: skip
MAIL = ["postfix", "dovecot-imapd", "sasl2-bin"]
SERVICES = [
    "cron", "curl", "mariadb-server", "nftables", "nginx", "openssh-client", "postgresql", *MAIL,
]  # fmt: skip
FLAVOURS = {"plain": [], "mta": MAIL, "services": SERVICES, "generic": []}
KERNELS = {"generic": "linux-image-amd64"}  # with all of Debian's modules, 9p among them
#: Start scripts for service(8) that Debian keeps in the package orphan-sysvinit-scripts, which
#: cannot be installed beside systemd.
SCRIPTS = {"mta": ["rsyslog"]}
#: What is disabled: installed, but nothing that the machine itself is to run.
DISABLED = {
    "services": ["cron", "dovecot", "mariadb", "nginx", "postfix", "postgresql", "saslauthd"]
}
#: Packages that can be installed from ARCHIVE_FOLDER, with all that they need and the image has not:
#: as they are, and of a later version, which ends with LATER and differs in nothing else.
ARCHIVE = {"services": ["redis-server", "redis-tools", "nginx", "nginx-common"]}
#: Packages that are there to be looked into: they cannot be installed.
FILES = {"services": ["orphan-sysvinit-scripts"]}
ARCHIVE_FOLDER = "/var/local/archive"
LATER = "+later1"
MEMORY = {"services": 1024}  # MiB, where it is not 512
DISK = "6G"
#: Loaded by the initrd, with what they depend on: enough to find the disk and talk to the host.
BOOT_MODULES = (
    "virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "crc32c_generic", "ext4",
)  # fmt: skip
#: Not unpacked: a good part of the size, and nothing that a program needs. Man pages stay.
EXCLUDED = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")
INIT = """\
#!/bin/busybox sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
for module in $(cat /modules); do insmod /$module; done
init=/sbin/init
for word in $(cat /proc/cmdline); do case $word in init=*) init=${word#init=};; esac; done
until mount -t ext4 -o rw /dev/vda /root 2>/dev/null; do sleep 0.01; done
umount /proc
mount -o move /dev /root/dev
exec switch_root /root $init
"""
GUEST = Path(__file__).with_name("guest")
AGENT = Path(__file__).with_name("agent.c")
MAKER = Path(__file__).with_name("image.py")


@dataclass(frozen=True)
class Recipe:
    """All that decides what an image holds."""

    suite: str
    flavour: str
    packages: tuple[str, ...]
    scripts: tuple[str, ...] = ()
    disabled: tuple[str, ...] = ()
    archive: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name of the image in the cache: the mirrors, which it keeps, are the end of it."""
        return f"{self.stem}{hashlib.sha256(repr(self.sources).encode()).hexdigest()[:4]}"

    @property
    def stem(self) -> str:
        """The name's begin, which all mirrors have in common."""
        digest = hashlib.sha256(json.dumps(asdict(replace(self, sources=()))).encode())
        files = {file.name: file for file in (Path(__file__), MAKER, AGENT)}
        files |= {str(file.relative_to(GUEST)): file for file in sorted(GUEST.rglob("*"))}
        for name, file in files.items():
            if file.is_file():
                digest.update(f"{name}\0{file.stat().st_mode & 0o100}\0".encode())
                digest.update(file.read_bytes())
        return f"{self.suite}-{self.flavour}-{digest.hexdigest()[:8]}"


def plan(suite: str, flavour: str = "plain") -> Recipe:
    """The recipe for a suite as far as no mirror is needed. Raises RequestError."""
    RequestError.unless_known("suite", suite, SUITES)
    RequestError.unless_known("flavour", flavour, FLAVOURS)
    packages = (*PACKAGES, KERNELS.get(flavour, KERNEL), *FLAVOURS[flavour])
    more = [tuple(table.get(flavour, [])) for table in (SCRIPTS, DISABLED, ARCHIVE, FILES)]
    return Recipe(suite, flavour, packages, *more)


def recipe(suite: str, flavour: str = "plain") -> Recipe:
    """The recipe for a suite, with this machine's own Debian mirrors, or MIRROR= for all."""
    return replace(plan(suite, flavour), sources=tuple(sources(suite, mirrors())))


def sources(suite: str, known: Mirrors) -> Iterator[str]:
    """apt's source lines for a suite."""
    yield f"deb {known.main} {suite} main"
    for pocket in SUITES[suite].pockets:
        if place := known.security if pocket == "security" else known.main:
            yield f"deb {place} {suite}-{pocket} main"
