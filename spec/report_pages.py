"""The man pages as HTML, taken apart: asciidoctor writes well-formed XHTML, a parser reads it.

What becomes of a marked sentence is the caller's: `markup` walks the tree and hands it each one.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from markupsafe import Markup, escape

from spec.clauses import FOLDER, clauses
from spec.results import ResultsError

VOID = ("br", "col", "hr", "img")
HEADINGS = {f"h{level}": f"h{level + 1}" for level in range(1, 6)}
Opened = Callable[[str, Markup, bool], Markup]
"""What a clause becomes: its id, its sentence as HTML, whether it is a listing."""


def pages() -> dict[str, Element]:
    """The man pages by name, each as a tree below one element.

    Raises ResultsError where they cannot be rendered.
    """
    if not shutil.which("asciidoctor"):
        raise ResultsError("asciidoctor, which renders the man pages, is missing: apt install it")
    with tempfile.TemporaryDirectory(prefix="spec-html-") as folder:
        files = sorted(FOLDER.glob("*.8.adoc"))
        command = ["asciidoctor", "-s", "-b", "xhtml5", "-D", folder, *map(str, files)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise ResultsError(f"asciidoctor failed: {done.stderr.strip()}")
        return {
            file.stem: tree((Path(folder) / f"{file.stem}.html").read_text(encoding="utf-8"))
            for file in files
        }


def tree(text: str) -> Element:
    """A page's body, with its headings one level down. Raises ResultsError if it is not XHTML."""
    try:
        root = ElementTree.fromstring(f'<div class="root">{text}</div>')
    except ElementTree.ParseError as error:
        raise ResultsError(f"asciidoctor's output is not well-formed: {error}") from None
    for node in root.iter():
        node.tag = HEADINGS.get(node.tag, node.tag)
        if node.tag == "p":  # which may not hold a <details>
            node.tag = "div"
            node.set("class", "p")
    return root


def headings(page: Element) -> Iterator[tuple[str, str]]:
    """The page's sections: each heading's text, and its id."""
    for node in page.iter("h3"):
        yield "".join(node.itertext()), node.get("id", "")


def markup(node: Element, page: str, opened: Opened) -> Markup:
    """A node and all below it as HTML; ids get the page's name, clauses are `opened`."""
    name = node.get("id", "")
    inside = escape(node.text or "") + Markup("").join(
        markup(child, page, opened) + escape(child.tail or "") for child in node
    )
    if name in clauses():
        listing = node.find(".//pre")
        if listing is None:
            return opened(name, inside, False)
        return opened(name, escape("".join(listing.itertext())), True)
    given = {**node.attrib, "id": f"{page}{name}"} if name else node.attrib
    attributes = Markup("").join(
        Markup(' {}="{}"').format(key, value) for key, value in given.items()
    )
    if node.tag in VOID:
        return Markup("<{}{}>").format(Markup(node.tag), attributes)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(node.tag), attributes, inside)
