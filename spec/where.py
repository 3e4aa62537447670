"""One walk from a sentence to its tests and to the code that keeps it.

The code is known by the deliberate faults of tests/mutants/faults.toml: each changes the place that
keeps some clauses. `make mutants` refuses a fault whose place is no longer there.
"""

from __future__ import annotations

import inspect
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from spec.catalogue import Catalogue
from spec.clauses import FOLDER, Clause, PageError, clauses

SOURCE = FOLDER.parent
FAULTS = SOURCE / "tests/mutants/faults.toml"


def where(names: list[str], found: Catalogue) -> list[str]:
    """Lines on each clause. Raises PageError for an id that no page has."""
    lines: list[str] = []
    for name in names:
        if name not in clauses():
            near = [known for known in clauses() if name in known or known in name]
            hint = f"; near: {', '.join(near[:6])}" if near else "; see spec list"
            raise PageError(f"no man page has the clause {name}{hint}")
        lines += ["", *about(clauses()[name], found)]
    return lines[1:]


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
def _faults() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads(FAULTS.read_text(encoding="utf-8"))["fault"]
    return found


def code(clause: str, source: Path = SOURCE) -> tuple[list[str], list[str]]:
    """The places that keep a clause, and the faults that no longer fit; none without the tree."""
    if not FAULTS.exists():
        return [], ["the code is shown where the source tree is"]
    places: list[str] = []
    gone: list[str] = []
    for fault in _faults():
        if clause not in fault["clauses"]:
            continue
        for edit in fault.get("edits") or [fault]:
            file = edit["file"]
            path = next(
                (p for p in (source / file, source / "overlay_boot" / file) if p.exists()), None
            )
            text = path.read_text(encoding="utf-8") if path else ""
            wanted = edit.get("find", "")
            if path is None or wanted not in text:
                gone.append(f"{file}: the fault {fault['name']!r} no longer fits")
                continue
            number = text.count("\n", 0, text.index(wanted) + len(wanted) - len(wanted.lstrip()))
            row = f"{path.relative_to(source)}:{number + 1}: {text.splitlines()[number].strip()}"
            if row not in places:
                places.append(row)
    return places, gone
