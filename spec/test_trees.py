"""Every kind of file at every path of UPPER, LOWER and LIVE that a command touches (trees.py).

A sample of all that there are, another one for each kind; `make load` tries them all."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from spec import trees
from spec.clauses import clause
from spec.plugin import precondition
from spec.subhost import Subhost

STEP = 31  # one of so many


@pytest.fixture
def tree(subhost: Subhost) -> Iterator[Subhost]:
    """A subhost with something outside of its root."""
    trees.prepare(subhost)
    yield subhost
    trees.clear(subhost)


@clause("trees", "trees-told")
@pytest.mark.parametrize("kind", trees.KINDS)
def test_any_kind_of_file_at_any_place(tree: Subhost, kind: str) -> None:
    """With any kind of file at any place of UPPER or LOWER, boot, overlay-go, overlay-share and
    overlay-stop come to an end, a boot that fails says why on one line, and nothing outside is
    changed."""
    mine = [each for each in trees.ALL if each[0] == kind]
    offset = list(trees.KINDS).index(kind) * 7 % STEP
    problems: list[str] = []
    tried = 0
    for each in mine[offset::STEP]:
        try:
            problems += trees.wrong(tree, *each)
            tried += 1
        except trees.NotHere:
            pass
    assert not problems, "\n".join(problems)
    if not tried:
        precondition(f"the target's file system has no file of the kind {kind!r}")


@clause("trees", "trees-told")
@pytest.mark.parametrize(
    ("kind", "place", "layer"),
    [
        ("huge", "etc/hosts", "lower"),
        ("pipe", "etc/hosts", "lower"),
        ("folder", "dev/null", "own hooks"),
        ("pipe", "etc/.hosts.new", "upper"),
    ],
)
def test_files_that_once_did_harm(tree: Subhost, kind: str, place: str, layer: str) -> None:
    """A boot succeeds though etc/hosts is huge or a pipe, dev/null a folder, or a pipe has the
    name of a file that is to be written."""
    problems = list(trees.wrong(tree, kind, place, layer, boots=True))
    assert not problems, "\n".join(problems)


@clause("trees-swapped")
@pytest.mark.parametrize(
    ("place", "layer"),
    [("etc", "upper"), ("opt/subhost", "upper"), ("srv", "plain"), ("dev", "plain")],
)
def test_folders_that_are_links_to_the_main_host_in_turn(
    tree: Subhost, place: str, layer: str
) -> None:
    """While a folder of the root and a link to the main host change places all the time, boot,
    overlay-go, overlay-share and overlay-stop change nothing outside of it."""
    enough = time.monotonic() + 5
    rounds = 0
    while rounds < 3 or time.monotonic() < enough:
        rounds += 1
        problems = list(trees.wrong(tree, "folder", place, layer, swapped="dir"))
        assert not problems, "\n".join(problems)
