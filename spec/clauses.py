"""The promises of the man pages: each is marked where it stands, this reads the marks.

A mark is AsciiDoc's inline `[#id.ROLE.ROLE...]#a sentence#`, or `[#id.ROLE...]` above a listing.
Its roles are, in any order:

- the level: must, should, default, example, or decision (one of this project's own);
- the version of the page that promises it first: v1-2, v1-6, or ours;
- only-1-6 or not-1-6 where version 1.6 of the page contradicts the others;
- ref-PARAGRAPH: the paragraphs of the reference page 1.2 that it restates (spec/reference.py);
- dN: the decisions that it comes from.

`,untested="why"` after the roles tells why no test can show the promise. AsciiDoc ignores it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

FOLDER = Path(__file__).parent
LEVELS = ("must", "default", "should", "example", "decision")
VERSIONS = {"v1-2": "1.2", "v1-6": "1.6", "ours": "ours"}
PAGES = tuple(VERSIONS.values())
NEEDS_TEST = ("must", "default", "example", "decision")

_MARK = re.compile(
    r"""\[\#(?P<id>[a-z0-9-]+) (?P<roles>(?:\.[a-z0-9-]+)*) (?:,untested="(?P<untested>[^"]+)")?\]
    (?:\#(?P<text>\S.*?)\#(?!\w) | \n----\n(?P<block>.*?)\n----$)
    | ^(?P<depth>={2,3})\ (?P<heading>[^\n]+)$
    | ^(?P<term>[*_][^\n]*?)::""",
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)


class PageError(Exception):
    """A mark in a man page, or an id somewhere else, that cannot be right."""


@dataclass(frozen=True)
class Clause:
    """One promise of a man page."""

    id: str
    level: str
    since: str
    sentence: str
    page: str
    section: str
    topic: str
    line: int
    refs: tuple[str, ...]
    decisions: tuple[str, ...]
    pages: tuple[str, ...]
    """The versions of the page in which it is in force, of 1.2, 1.6 and ours."""
    untested: str | None

    @property
    def place(self) -> str:
        """Where it stands, for people: page, section and topic."""
        return f"{self.page}, {self.section}" + (f", {self.topic}" if self.topic else "")


def plain(text: str) -> str:
    """AsciiDoc's inline markup taken out of a sentence, on one line."""
    pieces = text.replace("{hash}", "#").split("`")
    pieces[::2] = [re.sub(r"(?<!\w)([*_])(.+?)\1(?!\w)", r"\2", piece) for piece in pieces[::2]]
    return " ".join("".join(pieces).split())


def parse(source: str, page: str) -> list[Clause]:
    """The clauses of one page's AsciiDoc source. Raises PageError for a bad mark."""
    section = topic = ""
    found = []
    for match in _MARK.finditer(source):
        if match["depth"] == "==":
            section, topic = match["heading"], ""
        elif match["depth"]:
            topic = match["heading"]
        elif match["term"]:
            topic = plain(match["term"])
        else:
            line = source.count("\n", 0, match.start()) + 1
            try:
                found.append(_clause(match, page, section, topic, line))
            except ValueError as error:
                raise PageError(f"{page}.adoc:{line}: {match['id']}: {error}") from None
    marks = set(re.findall(r"^(?!//).*?\[#([a-z0-9-]+)", source, re.MULTILINE))
    if lost := marks - {clause.id for clause in found}:
        raise PageError(f"{page}.adoc: mark without a sentence: {', '.join(sorted(lost))}")
    return found


def _clause(match: re.Match[str], page: str, section: str, topic: str, line: int) -> Clause:
    roles = match["roles"].split(".")[1:]
    levels = [role for role in roles if role in LEVELS]
    since = [VERSIONS[role] for role in roles if role in VERSIONS]
    if len(levels) != 1 or len(since) != 1:
        raise ValueError("exactly one level and one version are wanted")
    pages = [name for name in PAGES if PAGES.index(since[0]) <= PAGES.index(name)]
    if "only-1-6" in roles:
        pages = ["1.6"]
    elif "not-1-6" in roles:
        pages.remove("1.6")
    refs = tuple(role[4:] for role in roles if role.startswith("ref-"))
    decisions = tuple(role.upper() for role in roles if re.fullmatch(r"d\d+", role))
    known = len(levels + since + list(refs + decisions)) + (
        len({"only-1-6", "not-1-6"} & {*roles})
    )
    if known != len(roles):
        raise ValueError(f"unknown role among {', '.join(roles)}")
    return Clause(
        id=match["id"],
        level=levels[0],
        since=since[0],
        sentence=plain(match["text"]) if match["text"] else match["block"],
        page=page,
        section=section,
        topic=topic,
        line=line,
        refs=refs,
        decisions=decisions,
        pages=tuple(pages),
        untested=match["untested"],
    )


@cache
def clauses() -> dict[str, Clause]:
    """All clauses of all pages by id, in the pages' order; overlay-boot(8) comes first."""
    found: dict[str, Clause] = {}
    for file in sorted(FOLDER.glob("*.8.adoc")):
        for clause in parse(file.read_text(encoding="utf-8"), file.name.removesuffix(".adoc")):
            if clause.id in found:
                raise PageError(f"{file.name}:{clause.line}: {clause.id} is used twice")
            found[clause.id] = clause
    return found


def in_force(page: str) -> dict[str, Clause]:
    """The clauses that a version of the page promises: 1.2, 1.6 or ours (which has them all)."""
    return {clause.id: clause for clause in clauses().values() if page in clause.pages}


def clause(*ids: str) -> pytest.MarkDecorator:
    """Mark a test with the clauses that it checks: @clause("netns-name")."""
    import pytest

    return pytest.mark.clause(*ids)
