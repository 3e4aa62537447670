"""README.md typed word for word into a machine that has never seen the project.

The Debian package that `make deb` has left, or DEB, is there already, as after README's "Install". No
machine has a network, so what README installs by apt is in the image.
"""

from __future__ import annotations

import re
import shlex

import pytest

from tests.vm.test_machine_start import LIMIT, ROOT, SUITE, package
from vm import cli, software, start
from vm.machine import Machine
from vm.qemu import QemuMachine

pytestmark = pytest.mark.vm
#: What the commands print, in the order in which they are typed.
PRINTED = [
    ("overlay-boot --check", "BASE=/opt/subhost/web\n.*A boot would"),
    ("overlay-boot --wait /opt/subhost/web", "web: running"),
    ("curl http://10.9.0.2/", "Welcome to nginx"),
    ("overlay-list", r"web +[0-9]+ .*overlay .* web0 +/opt/subhost/web/web.conf"),
    ("overlay-go web ip address", "inet 10.9.0.2/24"),
    ("curl http://10.9.0.2/", "hello from web"),
    ("overlay-diff web", "added.*/var/www/html/index.html|/etc/network/interfaces"),
    ("overlay-go db ping", " 0% packet loss"),
    ("systemctl status", r"active \(running\)"),
]
#: A machine beyond the main host, which knows nothing of 10.9.0.0/24.
OUTSIDE = """
ip netns add outside
ip link add outside0 type veth peer name eth0 netns outside
ip address add 203.0.113.1/24 dev outside0; ip link set outside0 up
ip -n outside address add 203.0.113.2/24 dev eth0; ip -n outside link set eth0 up
"""


def typed(heading: str) -> list[tuple[str, str]]:
    """The commands of one of README's sections, each with what is typed for it to read."""
    section = re.split(r"(?m)^## ", (ROOT / "README.md").read_text())
    (text,) = (part for part in section if part.startswith(f"{heading}\n"))
    lines = iter(re.findall(r"(?m)^    (.*)$", text))
    commands = []
    for line in lines:
        assert line.startswith("# "), line
        given = ""
        if line.startswith("# cat >"):
            while (more := next(lines)) != "^D":
                given += more + "\n"
        commands.append((line[2:], given))
    assert commands
    return commands


def type_in(machine: Machine, heading: str, printed: list[tuple[str, str]]) -> None:
    """Type a section's commands; what is printed goes from `printed` as it is seen."""
    for command, given in typed(heading):
        done = machine.succeed(
            f"bash -c {shlex.quote(command)}", input=given.encode(), timeout=LIMIT
        )
        if printed and command.startswith(printed[0][0]):
            _, wanted = printed.pop(0)
            assert re.search(wanted, done.out, re.DOTALL), done


@pytest.fixture
def fresh(own_run: object) -> object:
    """A machine with the package, and nothing that was ever set up."""
    with start.up(SUITE, flavour="services", say=cli.say) as machine:
        assert isinstance(machine, QemuMachine)
        software.install(machine, package())
        yield machine


def test_readme_as_it_is_typed(fresh: QemuMachine) -> None:
    """To a web server in a subhost that answers, from outside as well, and comes back after a
    reboot; in the end nothing of it is left."""
    printed = list(PRINTED)
    type_in(fresh, "Your first subhost: a web server", printed)
    type_in(fresh, "Recipes", printed)
    type_in(fresh, "Start at boot", printed)
    assert not printed
    fresh.wait_until("curl -s http://10.9.0.2/", timeout=LIMIT)  # its services are being started
    fresh.succeed(OUTSIDE)
    fresh.succeed("overlay-go web ping -c 1 203.0.113.2", timeout=LIMIT)
    ask = "ip netns exec outside curl -s http://203.0.113.1:8080/"
    assert fresh.succeed(ask, timeout=LIMIT).out == "hello from web"
    fresh.reboot(timeout=LIMIT)
    fresh.wait_until("curl -s http://10.9.0.2/ | grep hello", timeout=LIMIT)
    type_in(fresh, "Remove a subhost", [])
    assert fresh.run("ls /opt/subhost/web /tmp/overlay-web.log").out == ""
    assert "web" not in fresh.succeed("overlay-list").out
