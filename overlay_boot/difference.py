"""What a subhost has of its own, given by its name or configuration, and what of it has gone stale
(overlay-diff(8))."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from dataclasses import dataclass

from overlay_boot import ConfigError, NotRunning, OverlayBootError, commands
from overlay_boot.check import Pending
from overlay_boot.config import ConfigFile
from overlay_boot.dpkg import FOLDER as DPKG
from overlay_boot.dpkg import Database, Package, compare, has_own
from overlay_boot.layers import METACOPY, Change, Layers, attribute, open_if_there
from overlay_boot.records import identity
from overlay_boot.running import find
from overlay_boot.waiting import Waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class Subject:
    """A subhost to look at, whether it runs or not."""

    name: str
    upper: str
    lower: str
    holds: list[str]
    """UPPER and WORK, by device and inode."""


def find_subject(name_or_conf: str) -> Subject:
    """A running subhost as its boot recorded it, or what a configuration file says of another.
    Raises NotRunning, ConfigError."""
    try:
        record = find(name_or_conf)
    except NotRunning as error:
        if os.path.isfile(name_or_conf):
            return _configured(name_or_conf)
        hint = "for one that is stopped give its configuration file"
        raise NotRunning(f"{error}: {hint}") from None
    if not record.upper:  # booted by a version that did not write it down
        return _configured(record.conf)
    if not os.path.exists(record.upper) or identity(record.upper) != record.holds[0]:
        raise OverlayBootError(
            f"{record.name}: {record.upper} is not the UPPER that it was booted with: "
            f"restart it, or stop it and give the configuration"
        )
    return _overlay(Subject(record.name, record.upper, record.lower, record.holds), record.conf)


def _configured(path: str) -> Subject:
    """What a configuration file says of a subhost; none of its commands is run."""
    conf = ConfigFile(path)
    subhost = conf.check()
    for variable, value in (("UPPER", subhost.upper), ("LOWER", subhost.lower)):
        if isinstance(value, Pending):
            given = conf.assigned.get(variable)
            cause = variable if given and given.is_command else "BASE"
            message = f"{cause} is what a command prints, which only a boot runs: boot it first"
            raise ConfigError(conf.at(conf.line(cause), message))
    folders = [subhost.upper] + ([] if isinstance(subhost.work, Pending) else [subhost.work])
    holds = [identity(folder) for folder in folders if os.path.isdir(folder)]
    return _overlay(Subject(subhost.name, subhost.upper, subhost.lower, holds), path)


def _overlay(subject: Subject, conf: str) -> Subject:
    if os.path.realpath(subject.upper) == os.path.realpath(subject.lower):
        raise ConfigError(f"{conf}: UPPER is LOWER, so there is nothing to compare")
    return subject


class Difference:
    """What a subhost has of its own at and below a path: to be gone through once, then to be asked
    for the sums."""

    def __init__(self, subject: Subject, names: list[str], stack: ExitStack) -> None:
        self.subject = subject
        self.names = names
        self.layers = stack.enter_context(Layers(subject.upper, subject.lower, subject.holds))
        self.lower = stack.enter_context(Database(self.layers.lower, links=True))
        self.upper = stack.enter_context(Database(self.layers.upper))
        self.folders: dict[str, dict[str, int]] = {}
        """By top folder: how many there are of each change, stale ones, and bytes."""
        self._owners: dict[str, str] | None = None
        self._newer: dict[str, bool] = {}

    def changes(self) -> Iterator[tuple[Change, str]]:
        """Each change, with LOWER's package where it is stale; "-" where LOWER has no packages."""
        for change in self.layers.changes(self.names):
            stale = self._stale(change)
            top = change.path.split("/", 2)
            inside = len(top) > 2 or change.kind == "folder"
            sums = self.folders.setdefault(f"/{top[1]}" if inside else "/", {})
            sums[change.change] = sums.get(change.change, 0) + 1
            sums["stale"] = sums.get("stale", 0) + bool(stale)
            sums["size"] = sums.get("size", 0) + change.size
            yield change, stale

    def packages(self) -> Iterator[Package]:
        """What the packages are, where all is looked at and the subhost's dpkg has written a
        database of its own."""
        if self.names or not self._has_database():
            return iter(())
        return compare(self.upper, self.lower)

    def _has_database(self) -> bool:
        flags = os.O_RDONLY | os.O_NONBLOCK
        fd = open_if_there(self.layers.upper, f"{DPKG}/status", flags)
        if fd is None:
            return False
        with open(fd, "rb"):
            return stat.S_ISREG(os.fstat(fd).st_mode) and attribute(fd, METACOPY) is None

    def _stale(self, change: Change) -> str:
        if change.change != "changed" or not change.made:
            return ""
        if not self.lower.versions:
            return "-"
        if self._owners is None:
            self._owners = self.lower.owners()
        package = self._owners.get(change.source or change.path, "")
        unpacked = self.lower.list_status(package) if package else None
        if unpacked is None or unpacked.st_mtime_ns <= change.made or self._is_newer(package):
            return ""
        return package

    def _is_newer(self, package: str) -> bool:
        """Whether the subhost has the package by itself, and no older than LOWER's."""
        if package not in self._newer:
            here, below = self.upper.versions.get(package, ""), self.lower.versions[package]
            own = bool(here) and has_own(self.upper, package)
            self._newer[package] = own and (here == below or not _is_older(here, below))
        return self._newer[package]


def _is_older(version: str, other: str) -> bool:
    """Whether a version of a package comes before another, by dpkg's own word; without a dpkg
    nothing is known, and it counts as older."""
    dpkg = commands.find("dpkg")
    if not dpkg:
        return True
    question = [dpkg, "--compare-versions", version, "lt", other]
    return commands.run(question, {}, Waiter()).status == 0
