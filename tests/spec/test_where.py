"""spec where, and the page that a run is held to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spec.__main__ import main
from spec.catalogue import collect
from spec.clauses import FOLDER, PageError, clauses
from spec.installed import page_of
from spec.where import code, where
from tests.spec.test_installed import package


def test_where_shows_sentence_tests_and_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["spec", "where", "root-overlay", "netns-name"])
    assert main() == 0
    said = capsys.readouterr().out
    assert clauses()["root-overlay"].sentence in said.replace("\n    ", " ")
    assert re.search(r"^spec/overlay-boot\.8\.adoc:\d+: overlay-boot\.8, ROOT", said, re.MULTILINE)
    places = re.findall(
        r"^(spec/test_\w+\.py|overlay_boot/\w+\.py):(\d+): (.*)", said, re.MULTILINE
    )
    assert {file.partition("/")[0] for file, _, _ in places} == {"spec", "overlay_boot"}
    for file, line, text in places:
        lines = (FOLDER.parent / file).read_text().splitlines()[int(line) - 1 :]
        assert text in lines[0] or f"def {text.partition('[')[0]}" in "\n".join(lines[:8]), text


UNTIED = {  # what nothing of ours keeps: examples, advice, Debian's own, what the kernel sees to
    *("live-apart", "log-default-1-6", "start-daemons", "hooks-callable", "kernel-undone"),
    *("kernel-nested", "inside-open", "example-copy", "example-copy-root", "example-copy-go"),
    *(
        "example-tiny",
        "example-tiny-dummy",
        "example-mta",
        "example-mta-root",
        "example-mta-cable",
    ),
    *("example-mta-services", "diskfile-whole", "diskfile-second", "diskfile-subtree"),
    *("diskfile-upper", "go-setup", "runtime-share-example"),
}


def test_where_has_code_for_nearly_every_clause() -> None:
    without = {name for name in clauses() if not code(name)[0]}
    assert without == UNTIED
    assert not [line for name in clauses() for line in code(name)[1]]


def test_where_tells_a_fault_that_no_longer_fits(tmp_path: Path) -> None:
    (tmp_path / "overlay_boot").mkdir()
    places, gone = code("root-overlay", tmp_path)
    assert places == [] and gone and "no longer fits" in gone[0]


def test_an_unknown_clause_is_one_line_with_what_is_near() -> None:
    with pytest.raises(PageError, match="^no man page has the clause netns-nam; near: netns-name"):
        where(["netns-nam"], collect())
    for name, near in (
        ("stop-", "near: stop-.* and [0-9]+ more$"),
        ("GO-SHELL", "near: go-"),
        ("", "the command list has them all"),
    ):
        with pytest.raises(PageError, match=near):
            where([name], collect())


def test_where_shows_the_line_that_keeps_it() -> None:
    """Also where a fault of many lines changes a later one, or none of those that are there."""
    for name, line in (
        ("go-descriptors", "close"),
        ("ns-shared", "unshare(CLONE_NEWNS"),
        ("init-config", '"CONFIG": conf'),
        ("work", "subhost.work"),
    ):
        assert any(line in place for place in code(name)[0]), code(name)


def test_the_page_follows_from_the_package(tmp_path: Path) -> None:
    """Whatever its file is called."""
    assert page_of(package(tmp_path)) == "1.6"
    assert page_of(None) == page_of(tmp_path) == "ours"
    (tmp_path / "broken.deb").write_text("x")
    with pytest.raises(PageError, match="broken.deb: no package of Debian"):
        page_of(tmp_path / "broken.deb")
