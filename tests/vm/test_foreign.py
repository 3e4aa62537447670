"""A subhost of another architecture: LOWER is an arm64 busybox, which qemu-user-static runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.test_machine_start import LIMIT, SUITE, package
from vm import archive, cli, software, start
from vm.machine import Machine

pytestmark = pytest.mark.vm
CONF = "/opt/subhost/arm/arm.conf"
RUNS_THEM = ("qemu-user-static", "qemu-user", "qemu-user-binfmt")  # the last two since trixie
SET_UP = f"""
cd /opt/subhost/arm
mkdir root work live
dpkg-deb -x /root/arm64/*.deb lower
cp -r --parents /etc/network lower
cd lower
for name in bin dev etc/init.d proc root run sys tmp usr/bin usr/sbin; do mkdir -p $name; done
for name in sh cat sleep echo; do ln -sf /usr/bin/busybox bin/$name; done
[ -e usr/bin/busybox ] || ln -s /bin/busybox usr/bin/busybox
printf '#!/bin/sh\\n[ $1 = stop ] || sleep 4321 < /dev/null > /dev/null 2>&1 &\\n' > etc/one
chmod +x etc/one
printf 'BASE= .\\nLOWER= lower\\nSTART= /etc/one\\nCABLES=\\n' > {CONF}
"""


@pytest.fixture
def machine(own_run: Path) -> Iterator[Machine]:
    """A machine that has the foreign root, and nothing yet that runs it."""
    with start.up(SUITE, say=cli.say) as machine:
        software.install(machine, package())
        busybox = archive.fetch("busybox-static", SUITE, architecture="arm64", say=cli.say)
        machine.copy_in(busybox, f"/root/arm64/{busybox.name}")
        machine.succeed(f"mkdir -p /opt/subhost/arm; {SET_UP}")
        yield machine


def test_a_root_of_another_architecture(machine: Machine) -> None:
    """What is needed is said; with it the subhost boots, runs a service, is entered and stops."""
    told = "qemu-user-static"
    begun = machine.fail(f"overlay-boot --wait {CONF}", timeout=LIMIT)
    assert told in begun.err and len(begun.err.splitlines()) == 1, begun
    assert machine.succeed("overlay-list").err == "no subhost is running"
    names = RUNS_THEM[: 1 if SUITE == "bookworm" else None]
    for name in names:
        file = archive.fetch(name, SUITE, say=cli.say)
        machine.copy_in(file, f"/root/qemu/{file.name}")
    machine.succeed("dpkg --install --force-depends /root/qemu/*.deb", timeout=LIMIT)
    machine.succeed("systemctl restart systemd-binfmt", timeout=LIMIT)
    assert machine.succeed("uname -m").out == "x86_64"
    machine.succeed(f"overlay-boot --wait {CONF}", timeout=LIMIT)
    inside = machine.succeed("overlay-go arm busybox uname -m; overlay-go arm cat /proc/1/comm")
    assert inside.out.split() == ["aarch64", ".reaper"]
    assert machine.run("overlay-go arm sh -c 'exit 7'").status == 7
    assert machine.succeed("overlay-stop arm", timeout=LIMIT).err == ""
