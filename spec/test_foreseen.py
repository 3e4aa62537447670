"""What can be known before a boot: told together, by --check and by the boot."""

from __future__ import annotations

import pytest

from spec.clauses import clause
from spec.errors import one_line
from spec.subhost import Subhost
from spec.targets import Result

SCRIPT = "#!/bin/sh\n"


def check(subhost: Subhost, text: str) -> Result:
    """What --check says of a configuration."""
    subhost.write(text)
    return subhost.on_host(f"overlay-boot --check {subhost.conf}")


def warned(subhost: Subhost, text: str) -> list[str]:
    """The lines on standard error, which --check and a boot that succeeds have in common."""
    said = check(subhost, text)
    assert said.status == 0, said
    booted = subhost.boot(text)
    assert said.err == booted.err
    return said.err.splitlines()


@clause("error-bridge")
@pytest.mark.parametrize("flag", ["--check", ""])
def test_a_missing_bridge_is_told_with_all_mistakes(subhost: Subhost, flag: str) -> None:
    """A missing bridge is told together with all other mistakes, with file and line, and the
    status is 2."""
    subhost.write("RAM_SIZE= much\nCABLES= nobridge= =")
    done = subhost.on_host(f"overlay-boot {flag} {subhost.conf} < /dev/null")
    assert done.status == 2, done
    lines = done.err.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{subhost.conf}:{n}" for n in (5, 6)]
    assert "nobridge" in lines[1]


@clause("error-bridge")
def test_a_command_may_create_the_bridge(subhost: Subhost) -> None:
    """Since --check runs no command it only warns of a missing bridge, and the boot finds the
    one that a command makes."""
    bridge = f"{subhost.name}br"
    made = f"[ -e /sys/class/net/{bridge} ] || ip link add {bridge} type bridge"
    text = f"RAM_SIZE= !{made}; echo 3M\nCABLES= {bridge}="
    said = check(subhost, text)
    assert said.status == 0 and said.err.startswith(f"{subhost.conf}:6: warning: "), said
    try:
        assert subhost.boot(text).err == ""
        assert bridge in subhost.on_host(f"ip link show {subhost.name}0").out
    finally:
        subhost.stop()
        subhost.prepare_host(f"ip link delete {bridge}")


@clause("warn-start", "warn-boot")
def test_services_that_are_not_there_are_told(subhost: Subhost) -> None:
    """Each service that is not there draws one warning; the boot succeeds, and the others are
    started."""
    subhost.put("root/etc/init.d/here", "#!/bin/sh\necho started > /here\n")
    subhost.put("root/etc/init.d/data", SCRIPT, 0o644)
    lines = warned(subhost, "START= nowhere here /opt/none data")
    assert [line.split(" ")[0] for line in lines] == [f"{subhost.conf}:4:"] * 3
    for line, name in zip(lines, ["nowhere", "/opt/none", "data"], strict=True):
        assert name in line and " warning: " in line
    assert subhost.target.read(f"{subhost.folder}/root/here") == "started\n"


@clause("warn-start")
@pytest.mark.parametrize(
    ("inside", "there"),
    [
        pytest.param("", True, id="in LOWER"),
        pytest.param("rm /etc/init.d/name", False, id="deleted"),
        pytest.param("rm -r /etc; mkdir -p /etc/init.d", False, id="replaced"),
        pytest.param("mv /etc/init.d /srv/own; ln -s ../srv/own /etc/init.d", True, id="linked"),
        pytest.param("rm -r /etc/init.d; ln -s /tmp /etc/init.d", False, id="linked outside"),
    ],
)
def test_services_are_looked_for_in_the_root_to_be(
    subhost: Subhost, inside: str, there: bool
) -> None:
    """A service counts as there if UPPER over LOWER will have it: deletions, replaced folders
    and links of UPPER are seen."""
    subhost.fill("lower")
    name = subhost.put("lower/etc/init.d/name", SCRIPT)
    subhost.prepare_host(f"cp {name} /tmp/name")  # of the main host
    subhost.boot("LOWER= lower")
    subhost.inside(inside or "true")
    subhost.stop()
    lines = warned(subhost, "LOWER= lower\nSTART= name")
    assert [line.split(" ")[0] for line in lines] == [f"{subhost.conf}:4:"] * (not there), lines
    subhost.on_host("rm /tmp/name")


@clause("warn-start-unit")
def test_a_service_that_has_only_a_unit_is_told_so(subhost: Subhost) -> None:
    """The warning about a service that has only a systemd unit says so."""
    subhost.put("root/usr/lib/systemd/system/unit.service", "[Unit]\n", 0o644)
    lines = warned(subhost, "START= unit none-at-all")
    assert "systemd unit" in lines[0] and "systemd" not in lines[1], lines


@clause("warn-mounts")
def test_mounts_that_the_subhost_will_not_see_are_told(subhost: Subhost) -> None:
    """Mounts of the main host below LOWER are told, unless they are shared, of the kernel's
    own kind, or where the subhost has a mount of its own."""
    lower = subhost.fill("lower")
    mounts = ["with\\ space", "shared", "srv/part", "srv/part/of", "run", "dev", "kernel"]
    made = [f"mkdir -p {lower}/{path}; mount -t tmpfs spec {lower}/{path}" for path in mounts[:-1]]
    subhost.prepare_host(
        "\n".join([*made, f"mkdir {lower}/kernel; mount -t proc spec {lower}/kernel"])
    )
    lines = warned(subhost, "LOWER= lower\nSHARE= /shared")
    text = "\n".join(lines)
    assert lines and all(line.startswith(f"{subhost.conf}:4: warning: ") for line in lines)
    assert "/with space" in text and "/srv/part" in text
    assert not [path for path in ("/shared", "/run", "/dev", "/kernel") if path in text], text
    subhost.stop()
    subhost.boot("LOWER= lower\nSHARE= /shared\nRAM_SIZE= none").err.index("/run")


@clause("conf-hash")
def test_a_hash_in_a_value_is_a_character(subhost: Subhost) -> None:
    """A LOG with a # in its path is written to the file of that whole name."""
    subhost.boot("LOG= said # not a comment")
    assert subhost.host.file(f"{subhost.folder}/said # not a comment").exists


@clause("start-hash")
def test_a_comment_is_no_service(subhost: Subhost) -> None:
    """A word of START that begins with # is refused in one line with status 2."""
    done = subhost.start("START= one # the first")
    one_line(done, 2, f"{subhost.conf}:4: ", "#")
