"""overlay-diff: what is the subhost's own, and what of it has gone stale (overlay-diff(8))."""

from __future__ import annotations

import json
import os
import shlex
from contextlib import ExitStack, suppress

from overlay_boot import OverlayBootError, explain
from overlay_boot.cli import STATUSES, UsageError, err, need_root, out, split
from overlay_boot.difference import Difference, Subject, find_subject
from overlay_boot.layers import Change, Layers
from overlay_boot.linux import open_in_root
from overlay_boot.records import FOLDER, Record, identity, lost, records
from overlay_boot.running import FolderLock
from overlay_boot.waiting import Waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

USAGE = f"""\
Usage: overlay-diff [--json] NAME|CONF [PATH]
       overlay-diff --drop PATH NAME|CONF
Show what a subhost has of its own: what it adds, changes and deletes of LOWER,
what of that has gone stale, and what its packages are; see overlay-diff(8).

  --json       print one object
  --drop PATH  remove the subhost's own copy of a file, so that LOWER's shows
  --help       print this
  --version    print the version

{STATUSES},
and no configuration file of that name"""

AT_ONCE = 1000  # lines that are written together


def run(arguments: list[str]) -> int:
    """The command. Raises OverlayBootError."""
    drop, arguments = _value_of("--drop", arguments)
    flags, words = split(arguments, "--json")
    if flags and drop is not None:
        raise UsageError("--json and --drop exclude each other")
    if not 1 <= len(words) <= (2 if drop is None else 1):
        more = ", and at most a path in it" if drop is None else ""
        raise UsageError(f"expected a name or configuration file of a subhost{more}")
    names = _names(drop if drop is not None else "".join(words[1:]) or "/")
    need_root("overlay-diff", arguments if drop is None else ["--drop", drop, *arguments])
    subject = find_subject(words[0])
    if drop is not None:
        _drop(subject, names)
        return 0
    with ExitStack() as stack:
        difference = Difference(subject, names, stack)
        report = _as_json if flags else _as_text
        report(difference)
        for path, why in difference.layers.problems:
            err(f"overlay-diff: {quoted(path)} cannot be read: {why}")
        return 1 if difference.layers.problems else 0


def _value_of(option: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """An option's value, and the arguments without both. Raises UsageError."""
    for number, word in enumerate(arguments):
        if word == "--":
            break
        before, after = arguments[:number], arguments[number + 1 :]
        if word.startswith(f"{option}="):
            return word.partition("=")[2], before + after
        if word == option:
            if not after:
                raise UsageError(f"{option} takes a path in the subhost")
            return after[0], before + after[1:]
    return None, arguments


def _names(path: str) -> list[str]:
    """The names in a path, which starts from the subhost's root."""
    names = [name for name in path.split("/") if name not in ("", ".")]
    if not path.startswith("/") or ".." in names:
        raise UsageError(
            f"{path!r} is no path from the subhost's root: start it with /, without .."
        )
    return names


# --- telling


KINDS = ("added", "changed", "copied", "deleted", "replaced", "moved", "stale")
UNITS = " KMGTPE"


def quoted(text: str) -> str:
    """A text that cannot do anything to a terminal or be taken for two, as a shell would read it:
    as it is where that is plain, else in quotes."""
    if text.isprintable():
        return shlex.quote(text)
    shown = ""
    for character in text:
        if character in "\\'":
            shown += f"\\{character}"
        elif character.isprintable():
            shown += character
        else:
            shown += "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
    return f"$'{shown}'"


def size_of(number: int) -> str:
    """Bytes for people: 512, 1.5K, 20M."""
    if number < 1000:
        return str(number)
    value, power = float(number), 0
    while value >= 1000:
        value, power = value / 1024, power + 1
    return f"{value:.1f}{UNITS[power]}" if value < 9.95 else f"{value:.0f}{UNITS[power]}"


class Lines:
    """Lines on their way to standard output, many at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """One more."""
        self.lines.append(line)
        if len(self.lines) == AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write them. Raises OSError."""
        if self.lines:
            out("\n".join(self.lines))
        self.lines = []


def _note(change: Change, stale: str, version: str) -> str:
    """What is to be said of a change behind its path, in brackets."""
    notes = [change.note] if change.note else []
    if change.change == "moved":
        notes.append(f"from {quoted(change.source)}")
    if stale:
        notes.append(f"{stale} {version} came since" if version else "LOWER's came since")
    return f"  ({', '.join(notes)})" if notes else ""


def _as_text(difference: Difference) -> None:
    lines = Lines()
    for change, stale in difference.changes():
        path = change.path
        if change.kind == "folder" and path != "/":
            path += "/"
        word = "stale" if stale else change.change
        size = size_of(change.size) if change.kind == "file" and word != "deleted" else "-"
        note = _note(change, stale, difference.lower.versions.get(stale, ""))
        lines.add(f"{word:8}  {size:>6}  {quoted(path)}{note}")
    if difference.folders:
        lines.add("")
        _add_table(lines, _sums(difference.folders), str.rjust)
    packages = [
        [package.state, quoted(package.name), package.here or "-", package.below or "-"]
        for package in difference.packages()
    ]
    if packages:
        lines.add("")
        head = ["PACKAGES", "NAME", "HERE", "LOWER"]
        _add_table(lines, [head, *packages], str.ljust)
    lines.flush()
    if not difference.folders:
        err(f"{difference.subject.name}: nothing of its own there")


def _sums(folders: dict[str, dict[str, int]]) -> list[list[str]]:
    rows = [["FOLDER", *(kind.upper() for kind in KINDS), "SIZE"]]
    total: dict[str, int] = {}
    for folder, sums in sorted(folders.items()):
        rows.append(_row(quoted(folder), sums))
        for key, count in sums.items():
            total[key] = total.get(key, 0) + count
    return [*rows, _row("in all", total)]


def _row(name: str, sums: dict[str, int]) -> list[str]:
    counts = [str(sums.get(kind, 0)) for kind in KINDS]
    return [name, *counts, size_of(sums.get("size", 0))]


def _add_table(lines: Lines, rows: list[list[str]], justify: Callable[[str, int], str]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *map(justify, row[1:], widths[1:])]
        lines.add("  ".join(cells).rstrip())


def _as_json(difference: Difference) -> None:
    """One object, of which the long part is never whole in memory."""
    lines, subject = Lines(), difference.subject
    head = {"name": subject.name, "upper": subject.upper, "lower": subject.lower}
    lines.add(f'{json.dumps(head)[:-1]},\n"changes": [')
    comma = ""
    for change, stale in difference.changes():
        row: dict[str, Any] = {
            "path": change.path,
            "change": change.change,
            "type": change.kind,
            "size": change.size,
            "stale": bool(stale),
            "package": stale if stale in difference.lower.versions else None,
            "from": change.source or None,
            "note": change.note or None,
        }
        lines.add(comma + json.dumps(row))
        comma = ","
    sums = {
        folder: {key: counts.get(key, 0) for key in (*KINDS, "size")}
        for folder, counts in sorted(difference.folders.items())
    }
    packages = [
        {"package": each.name, "state": each.state, "here": each.here or None,
         "lower": each.below or None}
        for each in difference.packages()
    ]  # fmt: skip
    lines.add(f'],\n"folders": {json.dumps(sums)},\n"packages": {json.dumps(packages)}}}')
    lines.flush()


# --- dropping


def _drop(subject: Subject, names: list[str]) -> None:
    """Remove UPPER's own file at a path, where LOWER's shows then. Raises OverlayBootError."""
    os.makedirs(FOLDER, 0o700, exist_ok=True)
    with FolderLock(Waiter()):  # no boot can take UPPER meanwhile
        user = _user(identity(subject.upper))
        if user:
            raise OverlayBootError(f"{user} is running: stop it first with overlay-stop {user}")
        with Layers(subject.upper, subject.lower, subject.holds) as layers:
            path = "/" + "/".join(names)
            found = next(layers.changes(names), None)
            why = layers.problems[0][1] if layers.problems else _not_to_drop(found, path)
            if why:
                raise OverlayBootError(f"{quoted(path)}: {why}")
            folder = "/".join(names[:-1]) or "."
            try:
                flags = os.O_PATH | os.O_DIRECTORY
                parent = open_in_root(layers.upper, folder, flags, links=False)
                with suppress(FileNotFoundError):
                    os.unlink(names[-1], dir_fd=parent)
                os.close(parent)
            except OSError as error:
                raise OverlayBootError(f"{quoted(path)}: {explain(error)}") from error


def _user(upper: str) -> str:
    """The subhost that has this UPPER, of all that run or are being started; empty if none."""
    for record in (*records(), *lost()):
        if record.holds[:1] == [upper] and _is_up(record):
            return record.name
    return ""


def _is_up(record: Record) -> bool:
    return record.alive() or not record.pid and not record.lock()


def _not_to_drop(found: Change | None, path: str) -> str:
    """What keeps a file from being dropped; empty when nothing does."""
    if found is None or found.path != path:
        return "UPPER has no file of its own there: give a path that overlay-diff shows"
    if found.change == "deleted":
        return "" if found.shown else "it is not there since its folder was replaced as a whole"
    if found.kind == "folder":
        return "it is a folder: drop the files in it"
    return "" if found.shown else "LOWER has none there, so it would be lost: it is not dropped"
