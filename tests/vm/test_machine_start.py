"""Subhosts at machine start, by systemd and by sysvinit, of the Debian package that was built last.

DEB= names another package. What a machine needs beside Debian's own image is installed and frozen
once; each test has a fresh machine of that state.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm import archive, cli, software, start
from vm.machine import Machine
from vm.qemu import QemuMachine

pytestmark = pytest.mark.vm
ROOT = Path(__file__).parent.parent.parent
SUITE = os.environ.get("SUITE", "trixie")
LIMIT = 300  # seconds for whatever starts and stops, under emulation and beside other work
WEB, BAD = "/opt/subhost/web/web.conf", "/opt/subhost/bad/bad.conf"
UNIT, BAD_UNIT = "subhosts@opt-subhost-web-web.conf", "subhosts@opt-subhost-bad-bad.conf"
#: A service that takes its time to stop and writes down what it did, and a broken configuration.
SUBHOSTS = f"""
cd /opt; mkdir -p subhost/web/root subhost/web/work subhost/web/live /srv/web
mkdir -p subhost/bad/root subhost/bad/work subhost/bad/live
cat > /usr/local/bin/service-of-web <<'END'
#!/bin/sh
case $1 in
start) setsid sleep 100000 </dev/null >/dev/null 2>&1 & echo started >> /srv/web/trace ;;
stop) sleep 3; echo stopped >> /srv/web/trace ;;
esac
END
chmod +x /usr/local/bin/service-of-web
printf 'BASE= .\\nSTART= /usr/local/bin/service-of-web\\nSHARE= /srv/web\\nCABLES= br0=\\n' > {WEB}
printf 'BASE= .\\nSTART= none\\nCABLES= nobridge=\\n' > {BAD}
printf 'auto br0\\niface br0 inet manual\\n  bridge_ports none\\n' \\
    >> /etc/network/interfaces
ifup br0
"""
#: sysvinit in systemd's place; the harness' agent is one of init's own processes.
SYSVINIT = ("sysvinit-core", "sysv-rc", "insserv", "startpar", "initscripts")
REPLACE_SYSTEMD = """
dpkg --remove --force-depends --force-remove-protected systemd-sysv libpam-systemd
dpkg --install --force-depends --force-unsafe-io /root/sysvinit/*.deb
echo 'vm:12345:respawn:/usr/local/sbin/vm-agent </dev/null >/dev/null 2>&1' >> /etc/inittab
sync
"""


def package() -> Path:
    """The package to install: DEB, else the newest that `make deb` or `make deb-check` has left."""
    built = (ROOT / "dist").glob("overlay-boot-python_*_amd64.deb")
    given = [Path(os.environ["DEB"])] if "DEB" in os.environ else sorted(built)
    assert given, "no package in dist/: make deb"
    return max(given, key=lambda file: file.stat().st_mtime)


def clones(machine: QemuMachine) -> Iterator[QemuMachine]:
    """A fresh copy of a frozen machine."""
    with machine.clone("ready") as clone:
        yield clone


@pytest.fixture(scope="module")
def with_systemd(own_run: Path) -> Iterator[QemuMachine]:
    """A machine with the package and two subhosts."""
    with start.up(SUITE, say=cli.say) as machine:
        assert isinstance(machine, QemuMachine)
        software.install(machine, package())
        machine.succeed(SUBHOSTS)
        machine.snapshot("ready")
        yield machine


@pytest.fixture(scope="module")
def with_sysvinit(own_run: Path) -> Iterator[QemuMachine]:
    """The same where sysvinit is the init."""
    with start.up(SUITE, cold=True, say=cli.say) as machine:
        assert isinstance(machine, QemuMachine)
        for name in SYSVINIT:
            file = archive.fetch(name, SUITE, say=cli.say)
            machine.copy_in(file, f"/root/sysvinit/{file.name}")
        software.install(machine, package())
        machine.succeed(SUBHOSTS + REPLACE_SYSTEMD, timeout=LIMIT * 4)
        machine.reboot(timeout=LIMIT)
        assert machine.succeed("cat /proc/1/comm").out == "init"
        machine.snapshot("ready")
        yield machine


@pytest.fixture
def systemd(with_systemd: QemuMachine) -> Iterator[QemuMachine]:
    """A fresh machine with systemd."""
    yield from clones(with_systemd)


@pytest.fixture
def sysvinit(with_sysvinit: QemuMachine) -> Iterator[QemuMachine]:
    """A fresh machine with sysvinit."""
    yield from clones(with_sysvinit)


def pid_1(machine: Machine) -> str:
    """The pid of web's pid 1, as the main host sees it."""
    script = "readlink /run/netns/web | cut -d / -f 3"
    return machine.succeed(script).out


def trace(machine: Machine) -> list[str]:
    """What web's service has done so far."""
    return machine.succeed("cat /srv/web/trace").out.split()


def wait_for_service(machine: Machine, starts: int = 1) -> None:
    """Until the service inside has been started that often, and web is listed."""
    machine.wait_until(f"test $(grep -c started /srv/web/trace) = {starts}", timeout=LIMIT)
    assert "web" in machine.succeed("overlay-list").out


def assert_nothing_left(machine: Machine) -> None:
    """No process, mount, cable, name or record of web is there."""
    assert machine.run("pgrep -lx '[.]reaper|overlay-keeper|sleep'").out == ""
    assert machine.run("grep /opt/subhost /proc/self/mountinfo").out == ""
    assert machine.run("ls -A /run/netns /sys/class/net | grep web").out == ""
    assert machine.succeed("overlay-list").err == "no subhost is running"


def systemctl(machine: Machine, *words: str) -> str:
    """systemctl, expecting success."""
    return machine.succeed(f"systemctl {' '.join(words)}", timeout=LIMIT).out


class TestSystemd:
    """The instances of subhosts@.service."""

    def test_start_and_stop(self, systemd: QemuMachine) -> None:
        systemctl(systemd, "start", UNIT)
        assert systemctl(systemd, "is-active", UNIT) == "active"
        assert "web" in systemd.succeed("overlay-list").out
        wait_for_service(systemd)
        shown = systemctl(systemd, "status --no-pager --full", UNIT)
        assert ".reaper" in shown and "sleep 100000" in shown
        main = systemctl(systemd, "show --property=MainPID --value", UNIT)
        assert systemd.succeed(f"cat /proc/{main}/comm").out == "overlay-keeper"
        systemctl(systemd, "stop", UNIT)
        assert trace(systemd) == ["started", "stopped"]
        assert systemd.run(f"systemctl is-active {UNIT}").out == "inactive"
        assert_nothing_left(systemd)

    def test_start_fails_with_the_reason(self, systemd: QemuMachine) -> None:
        failed = systemd.fail(f"systemctl start {BAD_UNIT}", timeout=LIMIT)
        assert BAD_UNIT in failed.err
        assert systemd.run(f"systemctl is-active {BAD_UNIT}").out == "failed"
        shown = systemd.run(f"systemctl status --no-pager --full {BAD_UNIT}").out
        assert "nobridge is not there" in shown

    def test_unit_ends_with_the_subhost(self, systemd: QemuMachine) -> None:
        """Stopped by overlay-stop, behind systemd's back: the unit is as it would be otherwise."""
        systemctl(systemd, "start", UNIT)
        wait_for_service(systemd)
        systemd.succeed("overlay-stop web", timeout=LIMIT)
        ended = f'test "$(systemctl is-active {UNIT})" = inactive'
        systemd.wait_until(ended, timeout=LIMIT)
        assert trace(systemd) == ["started", "stopped"]
        assert_nothing_left(systemd)

    @pytest.mark.parametrize("victim", ["pid 1", "keeper"])
    def test_crash_and_restart(self, systemd: QemuMachine, victim: str) -> None:
        folder = f"/etc/systemd/system/{UNIT}.service.d"
        drop_in = "[Service]\\nRestart=always\\nRestartSec=1\\n"
        systemd.succeed(f"mkdir {folder}; printf '{drop_in}' > {folder}/restart.conf")
        systemctl(systemd, "daemon-reload")
        systemctl(systemd, "start", UNIT)
        wait_for_service(systemd)
        first = pid_1(systemd)
        main = systemctl(systemd, "show --property=MainPID --value", UNIT)
        systemd.succeed(f"kill -9 {first if victim == 'pid 1' else main}")
        wait_for_service(systemd, 2)
        assert pid_1(systemd) != first
        assert systemctl(systemd, "is-active", UNIT) == "active"
        systemd.fail(f"test -e /proc/{first}")
        systemctl(systemd, "stop", UNIT)
        assert_nothing_left(systemd)

    def test_crash_without_restart_leaves_nothing(self, systemd: QemuMachine) -> None:
        systemctl(systemd, "start", UNIT)
        wait_for_service(systemd)
        systemd.succeed(f"kill -9 {pid_1(systemd)}")
        ended = f'case "$(systemctl is-active {UNIT})" in inactive | failed) ;; *) false;; esac'
        systemd.wait_until(ended, timeout=LIMIT)
        assert_nothing_left(systemd)

    def test_reboot(self, systemd: QemuMachine) -> None:
        """Both ways to start at boot; the stop scripts run to their end at shutdown."""
        systemctl(systemd, "enable --now", UNIT)
        wait_for_service(systemd)
        systemd.succeed("cp -r /opt/subhost/bad /opt/subhost/listed")
        systemd.succeed("printf 'BASE= listed\\nSTART= none\\n' > /opt/subhost/listed.conf")
        systemd.succeed(f"echo '{BAD} /opt/subhost/listed.conf' >> /etc/subhosts.conf")
        systemd.reboot(timeout=LIMIT * 2)
        systemd.wait_until("systemctl is-system-running --wait | grep -q .", timeout=LIMIT)
        wait_for_service(systemd, 2)
        assert trace(systemd) == ["started", "stopped", "started"]
        systemd.wait_until("overlay-list | grep -q listed", timeout=LIMIT)
        assert systemd.run(f"systemctl is-active {BAD_UNIT}").out == "failed"
        assert systemctl(systemd, "is-active subhosts.service") == "active"
        systemd.succeed("ip -o link show master br0 | grep web0@")
        systemctl(systemd, "stop subhosts.service")
        assert trace(systemd)[-1] == "stopped"
        assert_nothing_left(systemd)

    @pytest.mark.parametrize("terminal", [[], ["-tt"]])
    def test_started_from_ssh(self, systemd: QemuMachine, terminal: list[str]) -> None:
        """A subhost that was started by hand goes on when the session has ended."""
        systemd.wait_until("ss -ltn | grep -q :22", timeout=LIMIT)
        command = [*systemd.ssh_command(), *terminal, f"overlay-boot {WEB}"]
        subprocess.run(command, check=True, timeout=LIMIT, stdin=subprocess.DEVNULL)
        wait_for_service(systemd)
        time.sleep(2)
        assert "web" in systemd.succeed("overlay-list").out
        systemd.succeed(f"test -e /proc/{pid_1(systemd)}")
        systemd.succeed("pgrep -fx 'sleep 100000'")


class TestSysvinit:
    """/etc/init.d/subhosts."""

    def list_them(self, machine: Machine) -> None:
        """Put a good, a broken and another good one into the list."""
        machine.succeed("cp -r /opt/subhost/bad /opt/subhost/last")
        machine.succeed("printf 'BASE= last\\nSTART= none\\n' > /opt/subhost/last.conf")
        machine.succeed(
            f"printf '{WEB}\\n{BAD}\\n/opt/subhost/last.conf\\n' >> /etc/subhosts.conf"
        )

    def test_start_status_restart_stop(self, sysvinit: QemuMachine) -> None:
        self.list_them(sysvinit)
        assert sysvinit.run("service subhosts status", timeout=LIMIT).status == 3
        begun = sysvinit.fail("service subhosts start", timeout=LIMIT)
        assert "nobridge is not there" in str(begun)
        wait_for_service(sysvinit)
        names = "overlay-list | awk 'NR > 1 { print $1 }'"
        assert sysvinit.succeed(names).out.split() == ["last", "web"]
        assert "web" in sysvinit.succeed("service subhosts status", timeout=LIMIT).out
        first = pid_1(sysvinit)
        sysvinit.run("service subhosts start", timeout=LIMIT)
        assert pid_1(sysvinit) == first
        sysvinit.run("service subhosts restart", timeout=LIMIT)
        wait_for_service(sysvinit, 2)
        assert trace(sysvinit) == ["started", "stopped", "started"]
        sysvinit.succeed("service subhosts stop", timeout=LIMIT)
        assert trace(sysvinit)[-1] == "stopped"
        assert_nothing_left(sysvinit)

    def test_all_are_started_at_the_same_time(self, sysvinit: QemuMachine) -> None:
        """A boot that takes long, here for a hook of its own, holds up no other."""
        sysvinit.succeed("printf '#!/bin/sh\\nsleep 20\\n' > /root/slow; chmod +x /root/slow")
        sysvinit.succeed("cp -r /opt/subhost/bad /opt/subhost/slow")
        slow = "BASE= slow\\nSTART= none\\nPREMOUNT= /root/slow\\n"
        sysvinit.succeed(f"printf '{slow}' > /opt/subhost/slow.conf")
        sysvinit.succeed(f"printf '/opt/subhost/slow.conf\\n{WEB}\\n' >> /etc/subhosts.conf")
        sysvinit.succeed("service subhosts start >/root/out 2>&1 & sleep 15")
        assert "web" in sysvinit.succeed("overlay-list").out
        assert "slow" not in sysvinit.succeed("overlay-list").out
        sysvinit.wait_until("overlay-list | grep -q slow", timeout=LIMIT)

    def test_reboot(self, sysvinit: QemuMachine) -> None:
        self.list_them(sysvinit)
        sysvinit.run("service subhosts start", timeout=LIMIT)
        wait_for_service(sysvinit)
        sysvinit.reboot(timeout=LIMIT * 2)
        wait_for_service(sysvinit, 2)
        assert trace(sysvinit) == ["started", "stopped", "started"]
        sysvinit.wait_until("overlay-list | grep -q last", timeout=LIMIT)
        sysvinit.succeed("service subhosts stop", timeout=LIMIT)
        assert_nothing_left(sysvinit)

    def test_crash(self, sysvinit: QemuMachine) -> None:
        """Nothing stale is in the way of the next start."""
        sysvinit.succeed(f"echo {WEB} >> /etc/subhosts.conf")
        sysvinit.succeed("service subhosts start", timeout=LIMIT)
        wait_for_service(sysvinit)
        sysvinit.succeed(f"kill -9 {pid_1(sysvinit)}")
        sysvinit.wait_until("test ! -e /run/netns/web", timeout=LIMIT)
        assert_nothing_left(sysvinit)
        sysvinit.succeed("service subhosts start", timeout=LIMIT)
        wait_for_service(sysvinit, 2)
