"""Taking over from Debian's overlay-boot, giving back to it, upgrade and removal, with a subhost
that runs meanwhile. DEB= names another package than the one that was built last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.test_machine_start import LIMIT, SUITE, package
from vm import archive, cli, start
from vm.machine import Result
from vm.qemu import QemuMachine

pytestmark = pytest.mark.vm
CONF = "/opt/subhost/some.conf"
#: A subhost that both versions can start, with one process in it.
SUBHOST = f"""
mkdir -p /opt/subhost/root /opt/subhost/work /opt/subhost/live
printf '#!/bin/sh\\nsetsid sleep 100000 </dev/null >/dev/null 2>&1 &\\n' > /usr/local/bin/sleeper
chmod +x /usr/local/bin/sleeper
printf 'BASE= .\\nSTART= /usr/local/bin/sleeper\\n' > {CONF}
"""
OURS, THEIRS = "/root/ours.deb", "/root/theirs.deb"


@pytest.fixture(scope="module")
def with_files(own_run: Path) -> Iterator[QemuMachine]:
    """A machine with both packages as files, and a subhost's configuration."""
    with start.up(SUITE, say=cli.say) as machine:
        assert isinstance(machine, QemuMachine)
        machine.copy_in(package(), OURS)
        machine.copy_in(archive.fetch("overlay-boot", "sid", say=cli.say), THEIRS)
        machine.succeed(SUBHOST)
        machine.snapshot("ready")
        yield machine


@pytest.fixture
def machine(with_files: QemuMachine) -> Iterator[QemuMachine]:
    """A fresh one."""
    with with_files.clone("ready") as clone:
        yield clone


def install(machine: QemuMachine, package: str) -> None:
    """Install a package over what is there; a changed configuration file is kept."""
    machine.succeed(f"dpkg --force-confold --install {package} </dev/null", timeout=LIMIT)


def refused(machine: QemuMachine, package: str) -> Result:
    """dpkg's failure to install a package."""
    return machine.fail(f"dpkg --force-confold --install {package} </dev/null", timeout=LIMIT)


def boot(machine: QemuMachine) -> None:
    """Start the subhost, by whichever version is installed, and wait for its process."""
    machine.succeed(f"overlay-boot {CONF}", timeout=LIMIT)
    machine.wait_until("pgrep -x sleep", timeout=LIMIT)


def stop(machine: QemuMachine) -> None:
    """Stop it; Debian's version ends with a status of no meaning."""
    machine.run(f"overlay-stop {CONF}", timeout=LIMIT)
    machine.wait_until("! pgrep -x sleep", timeout=LIMIT)


def version(machine: QemuMachine, name: str) -> str:
    """The state of a package as dpkg abbreviates it: ii installed, rc removed, empty unknown."""
    query = f"dpkg-query --show --showformat '${{db:Status-Abbrev}}' {name}"
    return machine.run(query).out.strip()


def test_takeover(machine: QemuMachine) -> None:
    """Refused before anything is changed for as long as a subhost runs; the list is kept."""
    install(machine, THEIRS)
    machine.succeed(f"echo {CONF} >> /etc/subhosts.conf; cp /etc/subhosts.conf /root/list")
    boot(machine)
    failed = refused(machine, OURS)
    assert CONF in failed.err and "Nothing has been changed" in failed.err
    assert version(machine, "overlay-boot") == "ii"
    assert version(machine, "overlay-boot-python") in ("", "in", "un")
    machine.succeed(
        "pgrep -x sleep; cmp /etc/subhosts.conf /root/list; test -x /usr/sbin/overlay-go"
    )
    stop(machine)
    install(machine, OURS)
    assert version(machine, "overlay-boot-python") == "ii"
    assert version(machine, "overlay-boot") != "ii"
    machine.succeed("cmp /etc/subhosts.conf /root/list")
    machine.run("dpkg --purge overlay-boot", timeout=LIMIT)
    machine.succeed("cmp /etc/subhosts.conf /root/list; test -x /etc/init.d/subhosts")
    machine.succeed("systemctl daemon-reload; systemctl restart subhosts.service", timeout=LIMIT)
    machine.wait_until("overlay-list | grep -q some", timeout=LIMIT)


def test_giving_back(machine: QemuMachine) -> None:
    """dpkg itself refuses; who removes this package first is told what runs. The list is kept."""
    install(machine, OURS)
    machine.succeed(f"echo {CONF} >> /etc/subhosts.conf; cp /etc/subhosts.conf /root/list")
    boot(machine)
    assert "conflicts with overlay-boot" in refused(machine, THEIRS).err
    assert version(machine, "overlay-boot-python") == "ii"
    assert "some" in machine.succeed("overlay-list").out
    stop(machine)
    removed = machine.succeed("dpkg --remove overlay-boot-python", timeout=LIMIT)
    assert "go on without" not in removed.err
    install(machine, THEIRS)
    assert version(machine, "overlay-boot") == "ii"
    machine.succeed("cmp /etc/subhosts.conf /root/list")


def test_apt_takes_over(machine: QemuMachine) -> None:
    """apt removes Debian's package before this one's scripts can say anything: they tell at least
    how to end what runs, and it ends so."""
    install(machine, THEIRS)
    boot(machine)
    options = "-yq --no-install-recommends -o Dpkg::Options::=--force-confold"
    done = machine.succeed(f"apt-get install {options} {OURS} </dev/null 2>&1", timeout=LIMIT)
    assert version(machine, "overlay-boot-python") == "ii"
    told = [line for line in done.out.splitlines() if line.strip().startswith(CONF)]
    assert len(told) == 1 and "kill -9 " in told[0]
    machine.succeed(told[0][told[0].index("kill -9") :])
    machine.wait_until("! pgrep -x sleep", timeout=LIMIT)


def test_upgrade_and_removal_with_a_subhost_that_runs(machine: QemuMachine) -> None:
    """It goes on through both, and clears up when it ends, without any command."""
    install(machine, OURS)
    boot(machine)
    first = machine.succeed("pgrep -x sleep").out
    install(machine, OURS)
    assert machine.succeed("pgrep -x sleep").out == first
    assert "some" in machine.succeed("overlay-list").out
    purged = machine.succeed("dpkg --purge overlay-boot-python", timeout=LIMIT)
    assert "    some" in purged.err and "ip netns pids NAME" in purged.err
    assert machine.succeed("pgrep -x sleep").out == first
    machine.succeed("ip netns pids some | xargs kill")
    machine.wait_until("test ! -e /run/netns/some", timeout=LIMIT)
    assert machine.run("grep /opt/subhost /proc/self/mountinfo").out == ""
    machine.wait_until("! pgrep -x 'overlay-keeper|[.]reaper|sleep'", timeout=LIMIT)
    assert machine.run("ls -A /run/overlay-boot").out == ""
