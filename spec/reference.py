"""The reference page (version 1.2 of overlay-boot.8) paragraph by paragraph: spec/coverage.

Its text is not ours to keep here: a paragraph is known by its section, its ordinal in it and a
hash, and spec/coverage maps each to the clauses that restate it. With the text at hand (option
--reference, or the variable OVERLAY_BOOT_REFERENCE) `python -m spec coverage` makes the table
anew and `python -m spec check` compares the hashes; without it the ids alone are checked.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePath

from spec.clauses import FOLDER, clauses

TABLE = FOLDER / "coverage"
HEAD = "# paragraph of the reference page 1.2, hash, clauses: made by python -m spec coverage\n"


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", PurePath(title).stem.lower()).strip("-")


def paragraphs(text: str) -> dict[str, str]:
    """The text's paragraphs by name, as in options-share-1: section, term or example, ordinal.

    The title and its attributes are left out, as is markup that stands on lines of its own.
    """
    found: dict[str, str] = {}
    counts: dict[str, int] = {}
    section = sub = ""
    for block in re.split(r"\n(?:[ +]*\n)+", text):
        heading = re.match(r"(\w.*)\n-{4,}(?:\n|$)", block)
        if heading:
            section, sub = _slug(heading[1]), ""
            block = block[heading.end() :]
        lines = [line for line in block.splitlines() if not re.fullmatch(r"-{4,}|\*{4,}", line)]
        if lines and lines[0].startswith("=== "):
            sub = _slug(lines.pop(0)[4:])
        elif lines and (term := re.fullmatch(r"\*?(\w+)\*?::", lines[0])):
            sub = _slug(term[1])
            lines.pop(0)
        if not section or not lines:
            continue
        name = "-".join(filter(None, (section, sub)))
        counts[name] = counts.get(name, 0) + 1
        found[f"{name}-{counts[name]}"] = " ".join(" ".join(lines).split())
    return found


def digest(paragraph: str) -> str:
    """What stands for a paragraph's words in the table."""
    return hashlib.sha256(paragraph.encode()).hexdigest()[:12]


def restated() -> dict[str, list[str]]:
    """The clauses that restate each paragraph, by the marks in our pages."""
    found: dict[str, list[str]] = {}
    for clause in clauses().values():
        for name in clause.refs:
            found.setdefault(name, []).append(clause.id)
    return found


def table(text: str) -> str:
    """The coverage table for the reference text."""
    ids = restated()
    rows = [
        f"{name}\t{digest(words)}\t{' '.join(ids.get(name, []))}"
        for name, words in paragraphs(text).items()
    ]
    return HEAD + "\n".join(rows) + "\n"


def problems(reference: Path | None = None) -> list[str]:
    """What is wrong with spec/coverage, against our pages and, if it is there, the reference."""
    rows = [
        line.split("\t")
        for line in TABLE.read_text(encoding="utf-8").splitlines()
        if line[:1] != "#"
    ]
    listed = {name: ids.split() for name, _, ids in rows}
    found = [f"{name}: no clause restates this paragraph" for name in listed if not listed[name]]
    ids = restated()
    found += [
        f"{name}: no such paragraph, named by {', '.join(ids[name])}"
        for name in ids.keys() - listed
    ]
    found += [
        f"{name}: the pages' marks say {' '.join(ids.get(name, [])) or 'nothing'}"
        for name in listed
        if listed[name] and ids.get(name) != listed[name]
    ]
    if reference and (
        TABLE.read_text(encoding="utf-8") != table(reference.read_text(encoding="utf-8"))
    ):
        found.append(f"differs from {reference}: python -m spec coverage shows how")
    return found
