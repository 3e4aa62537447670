"""Known failures of an implementation: spec/expectations/NAME-VERSION.toml.

[[expect]]
clause = "runtime-share"      # or: test = "test_share.py::test_runtime"
reason = "it looks for LIVE in the subhost, where it is called /"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spec.clauses import FOLDER, PageError, clauses


@dataclass(frozen=True)
class Expectations:
    """Reasons for known failures, by clause id and by test id (relative to spec/)."""

    clauses: dict[str, str] = field(default_factory=dict)
    tests: dict[str, str] = field(default_factory=dict)

    def reason(self, test: str, ids: list[str]) -> str | None:
        """Why this test of these clauses is known to fail; None if it is not."""
        return self.tests.get(test) or next(
            (self.clauses[name] for name in ids if name in self.clauses), None
        )


def load(file: Path) -> Expectations:
    """Read one file. Raises PageError for what it cannot mean."""
    try:
        entries = tomllib.loads(file.read_text())["expect"]
    except (OSError, KeyError, ValueError) as error:
        raise PageError(f"{file}: no list of [[expect]]: {error}") from None
    known: dict[str, dict[str, str]] = {"clause": {}, "test": {}}
    for entry in entries:
        kinds = [kind for kind in known if kind in entry]
        if len(kinds) != 1 or set(entry) != {*kinds, "reason"} or not entry["reason"].strip():
            raise PageError(f"{file}: {entry}: wanted are clause or test, and a reason")
        known[kinds[0]][entry[kinds[0]]] = entry["reason"]
    if unknown := known["clause"].keys() - clauses().keys():
        raise PageError(f"{file}: no such clause: {', '.join(sorted(unknown))}")
    return Expectations(known["clause"], known["test"])


def known(about: Mapping[str, str], given: Path | None = None) -> Expectations:
    """What is known of an implementation (its name and version), or what a given file says."""
    file = given or find(about.get("name", ""), about.get("version", ""))
    return load(file) if file else Expectations()


def find(name: str, version: str, folder: Path = FOLDER / "expectations") -> Path | None:
    """The most exact file for an implementation: NAME-1.6.4-1, NAME-1.6.4, NAME-1.6, ... NAME."""
    stem = f"{name}-{version}" if version else name
    while stem:
        if (file := folder / f"{stem}.toml").exists():
            return file
        cut = max(stem.rfind("-"), stem.rfind("."))
        stem = stem[: max(cut, 0)]
    return None
