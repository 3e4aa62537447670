"""overlay-diff --drop: what of a subhost's own is given up again."""

from __future__ import annotations

import pytest

from spec.clauses import clause
from spec.errors import one_line
from spec.subhost import Subhost
from spec.test_diff import CHANGES, diff, lines, prepared


@clause("diff-drop")
def test_dropping_a_copy(subhost: Subhost) -> None:
    """A file, link or whiteout that was dropped lets LOWER's show at the next boot, and nothing
    else changes."""
    subhost.boot(prepared(subhost))
    subhost.inside(CHANGES)
    subhost.stop()
    before = set(lines(diff(subhost)))
    for path in ("/srv/a", "/srv/link", "/srv/gone"):
        done = subhost.on_host(f"overlay-diff --drop {path} {subhost.conf}")
        assert (done.status, done.out, done.err) == (0, "", ""), done
    assert before - set(lines(diff(subhost))) == {"/srv/a", "/srv/link", "/srv/gone/"}
    subhost.boot(f"LOWER= {subhost.folder}/lower")
    assert subhost.inside("cd /srv; cat a gone/x new; readlink link") == "a\ngone/x\n12345678\na\n"


@clause("diff-drop-stopped", "diff-drop-upper", "diff-status-1")
def test_nothing_is_dropped_while_it_runs(subhost: Subhost) -> None:
    """While the subhost runs nothing is dropped, by whatever name or configuration it is asked
    for: one line says so, and the file stays."""
    subhost.boot(prepared(subhost))
    subhost.inside(CHANGES)
    other = subhost.put(
        "other.conf", f"BASE= .\nLOWER= {subhost.folder}/lower\nNAME= {subhost.name}b\n", 0o644
    )
    for who in (subhost.name, subhost.conf, other):
        done = subhost.on_host(f"overlay-diff --drop /srv/a {who}")
        one_line(done, 1, subhost.name, "overlay-stop")
    assert subhost.inside("cat /srv/a") == "a\nmore\n"
    subhost.stop()
    assert subhost.on_host(f"overlay-diff --drop /srv/a {other}").status == 0


@clause("diff-drop-own", "diff-drop-folder", "diff-status-1")
@pytest.mark.parametrize(
    "path",
    ["/srv/new", "/srv/folder/y", "/srv/anew/kept", "/srv/anew/lost", "/nothing", "/srv/plain/p",
     "/srv/folder", "/srv/anew", "/srv/plain", "/"],
)  # fmt: skip
def test_what_is_not_dropped(subhost: Subhost, path: str) -> None:
    """What LOWER has not or would not show, folders, and what is not there are not dropped:
    one line says so, with status 1."""
    subhost.boot(prepared(subhost))
    subhost.inside(CHANGES)
    subhost.stop()
    before = diff(subhost)
    done = subhost.on_host(f"overlay-diff --drop {path} {subhost.conf}")
    one_line(done, 1, path)
    assert diff(subhost) == before


@clause("diff-drop-link")
def test_no_link_is_followed(subhost: Subhost) -> None:
    """overlay-diff --drop follows no link, neither onto the main host nor in UPPER; a link
    itself can be dropped."""
    subhost.write(prepared(subhost))
    victim = subhost.put("victim/a", "host\n", 0o644).removesuffix("/a")
    subhost.prepare_host(
        f"cd {subhost.folder}/root && mkdir real && echo mine > real/a && ln -s {victim} srv && "
        f"ln -s real/../../victim up && ln -s real tmp && ln -s {victim}/a a && "
        "echo a > ../lower/a && mkdir ../lower/real && echo a > ../lower/real/a"
    )
    for path in ("/srv/a", "/up/a", "/tmp/a", "/../victim/a", "/real/../../victim/a"):
        done = subhost.on_host(f"overlay-diff --drop {path} {subhost.conf}")
        one_line(done, (1, 2))
    assert subhost.target.read(f"{subhost.folder}/root/real/a") == "mine\n"
    assert subhost.on_host(f"overlay-diff --drop /a {subhost.conf}").status == 0
    assert not subhost.host.file(f"{subhost.folder}/root/a").is_symlink
    assert subhost.target.read(f"{victim}/a") == "host\n"
