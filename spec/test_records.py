"""Records that are lost, what is no record, and what has one of the names that a record tells."""

from __future__ import annotations

import pytest

from spec.clauses import clause
from spec.errors import one_line
from spec.subhost import TINY, Subhost


@clause("files-records-lost")
@pytest.mark.parametrize("left", ["", "touch", "mkfifo", "mkdir"])
@pytest.mark.parametrize("command", ["stop", "go", "list"])
def test_a_record_that_was_removed_by_hand(subhost: Subhost, command: str, left: str) -> None:
    """A subhost whose record was removed is listed, entered and stopped all the same, whatever
    has the record's place."""
    subhost.boot("CABLES= =")
    pid = subhost.pid1()
    record = f"/run/overlay-boot/{subhost.name}"
    subhost.on_host(f"rm {record}; {left or ':'} {record}")
    if command == "go":
        assert subhost.inside("echo in") == "in\n"
    if command == "list":
        assert f"{subhost.name} " in subhost.on_host("overlay-list").out
    done = subhost.on_host(f"overlay-stop {subhost.name}")
    subhost.on_host(f"rm -d {record}")
    assert done.status == 0 and subhost.gone(pid), done


@clause("files-records-odd")
@pytest.mark.parametrize("odd", ["empty", "text", "binary", "pipe", "folder", "link"])
def test_what_is_no_record_is_told_of_and_hides_nobody(subhost: Subhost, odd: str) -> None:
    """overlay-list names what is no record, overlay-stop refuses it, each in one line, and both
    do their work."""
    subhost.boot()
    path = f"/run/overlay-boot/{subhost.name}odd"
    make = {
        "empty": f": > {path}",
        "text": f"echo hello > {path}",
        "binary": f"head -c 70000 /dev/urandom > {path}",
        "pipe": f"mkfifo {path}",
        "folder": f"mkdir {path}",
        "link": f"ln -s /etc/passwd {path}",
    }[odd]
    try:
        subhost.prepare_host(make)
        done = subhost.on_host("overlay-list", timeout=10)
        one_line(done, 0, path)
        assert f"{subhost.name} " in done.out, done
        done = subhost.on_host(f"overlay-stop {subhost.name}odd", timeout=10)
        one_line(done, (1, 3), f"{subhost.name}odd")
        done = subhost.on_host(f"overlay-stop {subhost.name}")
        assert done.status == 0, done
    finally:
        subhost.on_host(f"rm -rf {path}")


@clause("stop-leftovers-own")
def test_a_name_that_is_somebody_elses_by_now(subhost: Subhost) -> None:
    """A bridge that was made after a crash, with the name of the lost cable, stays."""
    subhost.boot("CABLES= =")
    name = f"{subhost.name}0"
    subhost.crash()
    try:
        subhost.prepare_host(
            f"for i in $(seq 100); do [ -e /sys/class/net/{name} ] || break; sleep 0.1; done; "
            f"ip link add {name} type bridge"
        )
        assert subhost.on_host(f"overlay-stop {subhost.name}").status == 3
        assert subhost.target.run(f"ip -d link show {name} | grep -w bridge").out
        assert not subhost.host.file(f"/run/overlay-boot/{subhost.name}").exists
    finally:
        subhost.on_host(f"ip link delete {name}")


@clause("end-own")
def test_a_keeper_leaves_its_successors_alone(subhost: Subhost) -> None:
    """A subhost whose record and name were removed by hand, and which ends when another one
    has its NAME, takes nothing of that one's away."""
    name = subhost.name
    subhost.boot()
    first = subhost.pid1()
    subhost.on_host(f"rm /run/overlay-boot/{name} /run/netns/{name}")
    subhost.on_host(f"cd {subhost.folder} && mkdir other && cd other && mkdir root work live")
    conf = subhost.put(
        f"other/{name}.conf", f"BASE= .\nLOWER= {TINY}\nSTART= none\nLOG= {subhost.log}\n", 0o644
    )
    done = subhost.on_host(f"overlay-boot {conf} < /dev/null")
    assert done.status == 0, done
    second = subhost.pid1()
    assert first not in (0, second)
    subhost.on_host(f"kill -9 {first}")
    assert subhost.wait(f"[ ! -e /proc/{first} ]")
    assert not subhost.wait(f"[ ! -e /run/overlay-boot/{name} ] || [ ! -e /run/netns/{name} ]", 1)
    assert subhost.pid1() == second
    assert subhost.on_host(f"overlay-stop {name}").status == 0
