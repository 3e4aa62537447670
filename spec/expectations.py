"""Known failures of an implementation: spec/expectations/NAME-VERSION.toml.

[[expect]]
clause = "runtime-share"      # or: test = "test_share.py::test_runtime"
match = "No such file"        # a regular expression that the failure's text has
reason = "it looks for LIVE in the subhost, where it is called /"

A failure that looks otherwise is none that was expected.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spec.clauses import FOLDER, PageError, clauses


@dataclass(frozen=True)
class Expectations:
    """Known failures, by clause id and by test id (relative to spec/): what to match, and why."""

    clauses: dict[str, tuple[str, str]] = field(default_factory=dict)
    tests: dict[str, tuple[str, str]] = field(default_factory=dict)

    def reason(self, test: str, ids: list[str], failure: str | None = None) -> str | None:
        """Why this test of these clauses is known to fail, in this way if one is given; None if
        it is not."""
        entries = [self.tests.get(test), *(self.clauses.get(name) for name in ids)]
        for match, reason in filter(None, entries):
            if failure is None or re.search(match, failure):
                return reason
        return None


def load(file: Path) -> Expectations:
    """Read one file. Raises PageError for what it cannot mean."""
    try:
        entries = tomllib.loads(file.read_text(encoding="utf-8"))["expect"]
    except (OSError, KeyError, ValueError) as error:
        raise PageError(f"{file}: no list of [[expect]]: {error}") from None
    known: dict[str, dict[str, tuple[str, str]]] = {"clause": {}, "test": {}}
    for entry in entries:
        kinds = [kind for kind in known if kind in entry]
        if len(kinds) != 1 or set(entry) != {*kinds, "match", "reason"} or not all(entry.values()):
            raise PageError(f"{file}: {entry}: wanted are clause or test, match, and a reason")
        known[kinds[0]][entry[kinds[0]]] = (entry["match"], entry["reason"])
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
