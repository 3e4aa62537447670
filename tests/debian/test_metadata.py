"""What the files of a release say of themselves must not differ."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import overlay_boot
from tests.debian.clone import tracked

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def field(file: str, name: str) -> list[str]:
    """The values of a field in a file of Debian's paragraphs."""
    return re.findall(rf"(?m)^{name}: *(.*)$", (ROOT / file).read_text())


def test_one_version() -> None:
    heads = re.findall(r"(?m)^## (\S+)$", (ROOT / "CHANGELOG.md").read_text())
    packaged = re.match(r"\S+ \((\S+)-\d+\)", (ROOT / "debian/changelog").read_text())
    assert packaged
    assert heads[0] == packaged[1] == PROJECT["version"] == overlay_boot.__version__


def test_one_licence() -> None:
    assert PROJECT["license"] == {"text": "GPL-2.0-or-later"}
    assert set(field("debian/copyright", "License")) == {"GPL-2+"}
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2, June 1991" in text and "END OF TERMS AND CONDITIONS" in text


def test_one_address() -> None:
    """The maintainer's address has one place, apart from who signed the changelog's entries."""
    (maintainer,) = field("debian/control", "Maintainer")
    address = re.search(r"<(.*)>", maintainer)
    assert address
    naming = {name for name in tracked() if address[1].encode() in (ROOT / name).read_bytes()}
    naming -= {"debian/changelog", "CONTRIBUTING.md"}
    assert naming == {"debian/control"}
