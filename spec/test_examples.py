"""EXAMPLES, as they are printed."""

from __future__ import annotations

import pytest

from spec.clauses import clause, clauses
from spec.plugin import precondition
from spec.subhost import ROOT, Subhost
from spec.targets import Target


@pytest.fixture
def example(subhost: Subhost, request: pytest.FixtureRequest) -> Subhost:
    """The subhost with the example's own name, and a folder that is yet to be made."""
    name = request.param
    theirs = f"ls -d {ROOT}/{name} /run/netns/{name} /sys/class/net/{name}0 2> /dev/null"
    if found := subhost.target.run(theirs).out.split():
        precondition(f"the target has {', '.join(found)} of its own")
    subhost.on_host(f"rm -r {subhost.folder}")
    subhost.name, subhost.folder = name, f"{ROOT}/{name}"
    subhost.conf, subhost.log = f"{ROOT}/{name}/{name}.conf", f"/tmp/overlay-{name}.log"
    subhost.named.append(name)
    return subhost


def printed(subhost: Subhost) -> None:
    """Write the example's configuration as the page prints it, in a folder as it tells."""
    subhost.prepare_host(
        f"cd {ROOT} && mkdir {subhost.name} && cd {subhost.name} && mkdir root work live"
    )
    text = clauses()[f"example-{subhost.name}"].sentence + "\n"
    subhost.put(f"{subhost.name}.conf", text, 0o644)


@clause("example-copy", "example-copy-root", "example-copy-go")
@pytest.mark.parametrize("example", ["copy"], indirect=True)
def test_the_smallest_one(example: Subhost) -> None:
    """The commands as printed make a subhost of the main host's root, without a cable."""
    commands = clauses()["example-copy"].sentence.replace("# ", "") + "\n"
    example.prepare_host("cat > /tmp/make; bash /tmp/make; rm /tmp/make", input=commands)
    assert example.on_host(f"overlay-boot {example.conf} < /dev/null").status == 0
    assert example.up(60)
    assert example.target.read("/etc/os-release") == example.inside("cat /etc/os-release")
    assert list(example.interfaces()) == ["lo"]
    assert example.parent_of_shell() not in ("", "1")


@clause("example-tiny", "example-tiny-dummy")
@pytest.mark.parametrize("example", ["tiny"], indirect=True)
def test_tiny(example: Subhost) -> None:
    """With a root of its own in base the subhost runs dummy_service alone, and overlay-go gets
    in."""
    printed(example)
    example.fill("base")
    assert example.on_host(f"overlay-boot {example.conf} < /dev/null").status == 0
    assert example.up() and example.runs("dummy_service")
    names = set(example.inside("cat /proc/[0-9]*/comm").split())
    assert names - {"bash", "sh", "cat"} == {".reaper", "dummy_service"}
    assert sorted(example.interfaces()) == ["eth0", "lo"]
    assert example.target.run("ip -br link show tiny0").status == 0


SERVICES = clauses()["example-mta"].sentence.partition("START= ")[2].split("\n")[0].split()
PROCESSES = "rsyslogd sshd saslauthd master dovecot"  # of all but networking, in the same order


def mta_services(target: Target) -> None:
    """Only where the six services are installed, with scripts for service(8)."""
    missing = [s for s in SERVICES if not target.host.file(f"/etc/init.d/{s}").exists]
    if missing:
        precondition(f"the target has no /etc/init.d script of {', '.join(missing)}")


@clause("example-mta", "example-mta-root", "example-mta-cable", "example-mta-services")
@pytest.mark.parametrize("example", ["mta"], indirect=True)
@pytest.mark.usefixtures("interfaces")
def test_mta(example: Subhost) -> None:
    """The example is an overlay of the main host with a cable, whose six services run."""
    mta_services(example.target)
    printed(example)
    trace = example.stanza("mta0")
    example.put(
        "root/etc/network/interfaces",
        "auto lo eth0\niface lo inet loopback\niface eth0 inet static\n    address 192.0.2.2/30\n",
    )
    assert example.on_host(f"overlay-boot {example.conf} < /dev/null", timeout=120).status == 0
    assert example.up(180)
    assert example.inside("grep ' / ' /proc/mounts").split()[2] == "overlay"
    assert example.target.read("/etc/os-release") == example.inside("cat /etc/os-release")
    example.inside("echo mine > /mine")
    assert example.target.read(f"{example.folder}/root/mine") == "mine\n"
    assert example.host.file(f"{example.folder}/work/work").exists
    assert example.wait(f"[ -s {trace} ]")
    assert "192.0.2.2/30" in example.on_host("ip -n mta address show eth0").out
    said = example.inside(f"for name in {PROCESSES}; do pgrep -o -x $name || echo no $name; done")
    pids = [int(line) for line in said.splitlines()]
    assert pids == sorted(pids) and len(pids) == 5, said
