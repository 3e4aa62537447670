"""What a dpkg database says, below LOWER or UPPER (dpkg(1), FILES; overlay-diff(8)).

A list of files, info/PACKAGE.list, is written when its package is unpacked: its time is that of the
package's last upgrade.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from dataclasses import dataclass

from overlay_boot.layers import is_whiteout, open_if_there, status_of
from overlay_boot.tree import at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

FOLDER = "var/lib/dpkg"


@dataclass(slots=True)
class Package:
    """What the two databases say of a package; an empty version where it is not installed."""

    name: str
    state: str
    here: str
    below: str


class Database:
    """The database below an open root, which need not have one. Of UPPER only its own files count,
    and no link of the subhost's is followed (`links`)."""

    def __init__(self, root: int, links: bool = False) -> None:
        self.root = root
        self.links = links
        self.open = ExitStack()
        self.info = self._info()
        self.versions = self._versions()
        """The packages that are installed, or half so; none where there is no database."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open.close()

    def _info(self) -> int | None:
        flags = os.O_PATH | os.O_DIRECTORY
        info = open_if_there(self.root, f"{FOLDER}/info", flags, self.links)
        if info is not None:
            self.open.callback(os.close, info)
        return info

    def lines(self, path: str) -> Iterator[str]:
        """The lines of a file of the database; none where it has none."""
        flags = os.O_RDONLY | os.O_NONBLOCK
        fd = open_if_there(self.root, f"{FOLDER}/{path}", flags, self.links)
        if fd is None:
            return
        with open(fd, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                for line in file:
                    yield line.rstrip("\n")

    def _versions(self) -> dict[str, str]:
        found: dict[str, str] = {}
        fields: dict[str, str] = {}
        for line in self.lines("status"):
            field, colon, value = line.partition(":")
            if colon and field in _FIELDS:
                fields[field] = value.strip().replace("\0", "")
            elif not line:
                _enter(fields, found)
                fields = {}
        _enter(fields, found)
        return found

    def list_status(self, package: str) -> os.stat_result | None:
        """The status of a package's list of files."""
        return status_of(f"{package}.list", self.info)

    def owners(self) -> dict[str, str]:
        """The package of each file that one of the lists has. Paths below a link of the root's own
        folder, such as /lib, stand where that leads; diverted ones, where their files are."""
        links = {
            name: os.readlink(name, dir_fd=self.root).strip("/")
            for name in os.listdir(at(self.root))
            if stat.S_ISLNK(os.lstat(name, dir_fd=self.root).st_mode)
        }
        diverted = self._diversions()
        found: dict[str, str] = {}
        for package in self.versions:
            plain = package.partition(":")[0]
            for path in self.lines(f"info/{package}.list"):
                to, by = diverted.get(path, (path, plain))
                path = path if by == plain else to
                top, slash, rest = path[1:].partition("/")
                found[f"/{links[top]}/{rest}" if slash and top in links else path] = package
        return found

    def _diversions(self) -> dict[str, tuple[str, str]]:
        """Where each diverted file is, and the package whose own is not diverted."""
        lines = self.lines("diversions")
        return {path: (to, by) for path, to, by in zip(lines, lines, lines, strict=False)}


LONGEST = 250  # bytes of a package's name, so that NAME.list is a file's name
_FIELDS = ("Package", "Status", "Architecture", "Multi-Arch", "Version")


def _enter(fields: dict[str, str], found: dict[str, str]) -> None:
    state = fields.get("Status", "").rpartition(" ")[2]
    if "Package" not in fields or state in ("", "not-installed", "config-files"):
        return
    name = fields["Package"]
    if fields.get("Multi-Arch") == "same":  # as its files in info are named
        name += f":{fields.get('Architecture', '')}"
    if "/" not in name and len(os.fsencode(name)) <= LONGEST:  # or else it has no list of files
        found[name] = fields.get("Version", "")


def has_own(upper: Database, package: str) -> bool:
    """Whether UPPER has a package by itself, from a dpkg that ran in the subhost."""
    status = upper.list_status(package)
    return status is not None and stat.S_ISREG(status.st_mode)


def compare(upper: Database, lower: Database) -> Iterator[Package]:
    """What UPPER's database and LOWER's say differently, by package."""
    for name in sorted({*upper.versions, *lower.versions}):
        here, below = upper.versions.get(name, ""), lower.versions.get(name, "")
        if here == below:
            continue
        own = has_own(upper, name)
        if here and below:
            state = "own-version" if own else "changed-below"
        elif here:
            state = "installed-here" if own else "removed-below"
        else:
            status = upper.list_status(name)
            gone = status is not None and (own or is_whiteout(status))
            state = "removed-here" if gone else "installed-below"
        yield Package(name, state, here, below)
