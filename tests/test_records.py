"""What is read of a record, a cable or a cgroup just while it changes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from overlay_boot import cgroup
from overlay_boot.records import NotARecord, Record

from .conftest import needs_root

ROWS = "0000000007 {} 1\nname=a\0conf=/a.conf\0log=/log\0root_kind=bind\0since=1\0start=\0".format(
    "9" * 20
)
ROWS += "ifdown=\0keeper=6\0cables=a0/3/2\0.\0"
GOING = """
import os, sys
from overlay_boot.records import Link, interface_index
last = f"q{int(sys.argv[1]) - 1}"
link = Link(last, interface_index(last), 0)
assert link.index and link.exists()
os.close(int(sys.argv[2]))
while link.exists():
    pass
sys.exit(os.path.exists(f"/sys/class/net/{last}") and "it can be seen still")
"""


def read(data: str) -> Record:
    """A record of that text."""
    fd = os.memfd_create("record")
    os.write(fd, data.encode())
    record = Record("a", fd)
    try:
        record.read()
    finally:
        os.close(fd)
    return record


def test_one_that_is_being_written_is_read() -> None:
    """A boot writes a longer one over it, of which only the end is met."""
    record = read("0000000000 00000000000000000000 0\nname=a\0holds=1:2\0.\0ables=a0/3/2\0.\0")
    assert (record.pid, record.holds) == (0, ["1:2"])
    assert read("0000000000 00000000000000000000 0\nname=a\0holds=1:2 3:4\0up").holds == [
        "1:2",
        "3:4",
    ]


@pytest.mark.parametrize(
    "text", ["", "text\n", "1 2\n", ROWS[:-2], ROWS.replace("since=1", "since=x")]
)
def test_anything_else_is_none(text: str) -> None:
    """Least of all one of a subhost that runs of which the end is missing."""
    assert [link.index for link in read(ROWS).cables] == [3]
    with pytest.raises(NotARecord):
        read(text)


@needs_root
def test_a_cable_is_there_until_nobody_sees_it(tmp_path: Path) -> None:
    """The kernel forgets its index first: overlay-stop came back while /sys had it (stop-waits)."""
    count = 150
    links = "".join(f"link add q{n} type veth peer name p{n} netns $!\n" for n in range(count))
    script = f"""
    mount -t sysfs none /sys
    mkfifo {tmp_path}/end
    unshare --net cat {tmp_path}/end & exec 9> {tmp_path}/end
    while [ "$(readlink /proc/$!/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do :; done
    echo "{links}" | ip -batch -
    exec {sys.executable} -c '{GOING}' {count} 9
    """
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-ec", script],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@needs_root
def test_a_cgroup_that_goes_while_it_is_read_has_nothing() -> None:
    """overlay-list beside a subhost that ends: the kernel says ENODEV then."""
    folder = Path(cgroup.wanted(f"t{os.getpid()}"))
    if not folder.name:
        pytest.skip("no cgroup v2 can be made here")
    folder.mkdir()
    fd = os.open(folder / "cgroup.procs", os.O_RDONLY)
    try:
        folder.rmdir()
        assert cgroup._lines(f"/proc/self/fd/{fd}") == []
    finally:
        os.close(fd)
