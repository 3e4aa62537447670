"""docs/reliability.md, of which several long trials write a part each."""

from __future__ import annotations

import re
from pathlib import Path

PARTS = ("Random lives and races", "Load and a bad day", "Hostile files")
"""The headings of the parts that stand behind what `make torture` writes, in this order."""


def parts(page: Path) -> dict[str, str]:
    """The parts that a page has, each with its heading."""
    text = page.read_text() if page.exists() else ""
    pieces = re.split(rf"(?m)^(?=## (?:{'|'.join(PARTS)})$)", text)
    return {piece.partition("\n")[0].removeprefix("## "): piece for piece in pieces[1:]}


def put(page: Path, heading: str, text: str) -> None:
    """Write one part, in the place of an earlier one; with the heading "" what stands before."""
    kept = parts(page) | {heading: text.strip("\n")}
    if heading:
        whole = page.read_text() if page.exists() else ""
        kept[""] = re.split(rf"(?m)^## (?:{'|'.join(PARTS)})$", whole)[0]
    ordered = [kept[name].strip("\n") for name in ("", *PARTS) if name in kept]
    page.write_text("\n\n".join(ordered) + "\n")
