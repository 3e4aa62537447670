"""One walk from a sentence to its tests and to the code that keeps it.

The code is known by the deliberate faults of tests/mutants/faults.toml: each changes the place that
keeps some clauses. `make mutants` refuses a fault whose place is no longer there.
"""

from __future__ import annotations

import inspect
import tomllib
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from os.path import commonprefix
from pathlib import Path
from typing import Any

from spec.catalogue import Catalogue
from spec.clauses import FOLDER, Clause, PageError, clauses

SOURCE = FOLDER.parent
HINTS = 6  # names, at most, that a wrong one may stand for
FAULTS = SOURCE / "tests/mutants/faults.toml"


def where(names: list[str], found: Catalogue) -> list[str]:
    """Lines on each clause. Raises PageError for an id that no page has."""
    lines: list[str] = []
    for name in names:
        if name not in clauses():
            raise PageError(
                f"no man page has the clause {name or repr(name)}{_hint(name.lower())}"
            )
        lines += ["", *about(clauses()[name], found)]
    return lines[1:]


def _hint(name: str) -> str:
    """What else may be meant."""
    begins = [known for known in clauses() if name and known.startswith(name)]
    has = [known for known in clauses() if name and known not in begins and name in known]
    near = begins + has or get_close_matches(name, clauses())
    more = f" and {len(near) - HINTS} more" if len(near) > HINTS else ""
    return (
        f"; near: {', '.join(near[:HINTS])}{more}" if near else "; the command list has them all"
    )


def about(clause: Clause, found: Catalogue) -> list[str]:
    """The sentence, its tests and its code, each with the place to open."""
    lines = [
        f"{clause.id} ({clause.level}, since {clause.since}; in force on {', '.join(clause.pages)})",
        f"spec/{clause.page}.adoc:{clause.line}: {clause.place}",
        *(f"    {line}" for line in clause.sentence.splitlines()),
    ]
    if clause.untested:
        lines.append(f"not tested: {clause.untested}")
    for test in found.of(clause.id):
        lines += _test(test)
    places, gone = code(clause.id)
    lines += places or ["no fault names the code that keeps it"] * (not gone)
    return lines + gone


def _test(name: str) -> list[str]:
    file, _, test = name.partition("::")
    function = getattr(import_module(f"spec.{file.removesuffix('.py')}"), test.partition("[")[0])
    line = inspect.getsourcelines(function)[1]
    return [f"spec/{file}:{line}: {test}", f"    {' '.join((function.__doc__ or '').split())}"]


@cache
def faults() -> list[dict[str, Any]]:
    """The rows of faults.toml."""
    found: list[dict[str, Any]] = tomllib.loads(FAULTS.read_text(encoding="utf-8"))["fault"]
    return found


def edits_of(fault: dict[str, Any]) -> list[dict[str, str]]:
    """What a fault changes: file, find, replace; or file alone, to be taken away."""
    keys = ("file", "find", "replace")
    return fault.get("edits") or [{key: fault[key] for key in keys if key in fault}]


def place(root: Path, name: str) -> Path:
    """The file of that name in the source tree, or in its package."""
    here = root / name
    return here if here.exists() else root / "overlay_boot" / name


def misfit(edit: dict[str, str], source: Path = SOURCE) -> str:
    """Why an edit does not fit the sources any longer; empty if it does."""
    path = place(source, edit["file"])
    if not path.exists():
        return f"{edit['file']} is not there"
    count = path.read_text(encoding="utf-8").count(edit.get("find", ""))
    if "find" in edit and count != 1:
        return f"{edit['file']} has {count} times: {edit['find']!r}"
    return ""


def code(clause: str, source: Path = SOURCE) -> tuple[list[str], list[str]]:
    """The places that keep a clause, and the faults that no longer fit; none without the tree.

    The place of an edit is the first line that it changes, unless the fault says that it lies
    elsewhere: `keeps`, texts each after the name of a file.
    """
    if not FAULTS.exists():
        return [], ["the code is shown where the source tree is"]
    places: list[str] = []
    gone: list[str] = []
    for fault in (fault for fault in faults() if clause in fault["clauses"]):
        for edit in places_of(fault):
            if why := misfit(edit, source):
                gone.append(f"the fault {fault['name']!r} no longer fits: {why}")
                continue
            path = place(source, edit["file"])
            text = path.read_text(encoding="utf-8")
            wanted = edit.get("find", "")
            number = text.count("\n", 0, text.index(wanted) + _difference(edit))
            row = f"{path.relative_to(source)}:{number + 1}: {text.splitlines()[number].strip()}"
            if row not in places:
                places.append(row)
    return places, gone


def places_of(fault: dict[str, Any]) -> list[dict[str, str]]:
    """Where to look for what a fault is about: its edits, or what stands for them."""
    pairs = (each.split(": ", 1) for each in fault.get("keeps", []))
    return [{"file": file, "find": text} for file, text in pairs] or edits_of(fault)


def _difference(edit: dict[str, str]) -> int:
    """How far into what an edit finds the first of its changes lies, in a line that is not blank."""
    before, after = edit.get("find", ""), edit.get("replace", "")
    same = len(commonprefix([before, after])) if after else 0
    rest = before[same:].lstrip()
    return len(before) - len(rest) if rest else max(len(before.rstrip()) - 1, 0)
