"""What reads a file or a value that somebody else has written; each takes any bytes.

A parser returns when all is as it should be: the value is good, or the documented error is told. Any
other exception is a fault of the implementation.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from unittest import mock

from overlay_boot import ConfigError, check
from overlay_boot.cables import parse_cables
from overlay_boot.check import Mistake
from overlay_boot.config import ConfigFile
from overlay_boot.dpkg import FOLDER, Database
from overlay_boot.records import NotARecord, Record
from overlay_boot.subhost import VARIABLES


class Folder:
    """A subhost's folder, made when it is needed first."""

    def __init__(self) -> None:
        self.made: tempfile.TemporaryDirectory[str] | None = None

    def __call__(self, *below: str) -> str:
        if self.made is None:
            self.made = tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm")
            for name in ("root", "work", "live"):
                os.makedirs(f"{self.made.name}/{name}/{FOLDER}/info")
        return os.path.join(self.made.name, *below)


folder = Folder()


def configuration(data: bytes) -> None:
    """A configuration is a Subhost, or a ConfigError of which each line tells the file."""
    path = folder("some.conf")
    with open(path, "wb") as file:
        file.write(data)
    try:
        made = ConfigFile(path)
        assert all(line.startswith(f"{path}:") for line in made.warnings), made.warnings
        subhost = made.check()
    except ConfigError as error:
        assert all(line.startswith(f"{path}:") for line in str(error).split("\n")), error
        return
    assert subhost.texts.keys() == VARIABLES.keys()


def cables(data: bytes) -> None:
    """CABLES is a list of cables with names that the kernel takes, or a Mistake."""
    try:
        made = parse_cables("some", os.fsdecode(data))
    except Mistake:
        return
    for cable in made:
        for name in (cable.host, cable.bridge, cable.peer):
            assert len(os.fsencode(name)) < 16 and "/" not in name, cable.__dict__
    assert len({cable.host for cable in made}) == len(made)


def record(data: bytes) -> None:
    """A record is read, or is none."""
    fd = os.memfd_create("record")
    try:
        os.write(fd, data)
        Record("/run/overlay-boot/some", fd).read()
    except NotARecord:
        pass
    finally:
        os.close(fd)


def mountinfo(data: bytes) -> None:
    """Whatever somebody has called a mount point, it is found by that name (proc(5), mountinfo)."""
    point = "/" + os.fsdecode(data.replace(b"\0", b""))
    shown = "".join(f"\\{ord(each):03o}" if each in " \t\n\\" else each for each in point)
    line = f"36 35 0:1 / {shown} rw shared:1 - tmpfs none rw\n"
    with mock.patch.object(check, "lines_of", lambda _: line.split("\n")):
        assert list(check._mounts()) == [(36, point, "tmpfs")]


def dpkg(data: bytes) -> None:
    """A package database that root in the subhost may have made up is read to its end."""
    for name in ("status", "diversions", "info/a.list"):
        with open(folder("root", FOLDER, name), "wb") as file:
            file.write(data)
    root = os.open(folder("root"), os.O_PATH)
    try:
        with Database(root) as database:
            database.owners()
    finally:
        os.close(root)


PARSERS: dict[str, Callable[[bytes], None]] = {
    parser.__name__: parser for parser in (configuration, cables, record, mountinfo, dpkg)
}
#: Words of which a file is likely to be made.
WORDS: dict[str, list[bytes]] = {
    "configuration": [f"{name}=".encode() for name in VARIABLES]
    + [b"\n", b" ", b"none", b"/", b"..", b".", b":/", b"!", b"50M", b"br0=", b"#", b"\xef\xbb\xbf"],
    "cables": [b"=", b"br0=", b"=.5", b"stable", b"02:00:00:00:00:01", b" ", b".4094", b"%"],
    "record": [
        b"0000000001 00000000000000000001\n", b"\0", b".", b"name=", b"conf=", b"log=", b"since=",
        b"root_kind=", b"start=", b"cables=", b"ifdown=", b"keeper=", b"holds=", b"cgroup=", b"1",
    ],
    "mountinfo": [b"\\", b"040", b" ", b"\n", b"\r", b"\x85", b"\xe2\x80\xa8", b" - ", b"/"],
    "dpkg": [
        b"Package: ", b"Status: install ok installed", b"Version: ", b"Multi-Arch: same", b"\n",
        b"Architecture: ", b"/", b"a", b"\r", b"\0", b"diverted",
    ],
}  # fmt: skip
