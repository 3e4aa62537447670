"""overlay-diff: what a subhost has of its own, and dropping it again. See test_diff_packages.py for
what goes stale."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import Any

import pytest

from spec.clauses import clause
from spec.errors import one_line
from spec.subhost import Subhost

FILES = """
mkdir -p lower/srv/gone lower/srv/anew/both lower/srv/plain lower/srv/old
for name in a b c gone/x anew/kept anew/lost anew/both/deep plain/p old/o; do
    echo $name > lower/srv/$name
done
ln -s a lower/srv/link
"""


@dataclass(frozen=True)
class Line:
    """What is printed on one path."""

    change: str
    size: str
    note: str


def lines(said: str) -> dict[str, Line]:
    """The lines on paths, by path, of what overlay-diff printed."""
    found: dict[str, Line] = {}
    for line in said.partition("\n\n")[0].splitlines():
        match = re.fullmatch(r"(\w+) +(\S+)  (.*?)(?:  \((.*)\))?", line)
        assert match and match[3] not in found, line
        found[match[3]] = Line(match[1], match[2], match[4] or "")
    return found


def tables(said: str) -> list[list[list[str]]]:
    """The words of the tables that follow."""
    return [[line.split() for line in part.splitlines()] for part in said.split("\n\n")[1:]]


def prepared(subhost: Subhost) -> str:
    """A LOWER with some files in it, as the configuration's text."""
    lower = subhost.fill("lower")
    subhost.prepare_host(f"cd {subhost.folder} && {FILES}")
    return f"LOWER= {lower}"


def diff(subhost: Subhost, words: str = "") -> str:
    """What overlay-diff prints of a subhost given by its configuration."""
    __tracebackhide__ = True
    done = subhost.on_host(f"overlay-diff {subhost.conf} {words}")
    assert done.status == 0, done
    return done.out


def as_json(subhost: Subhost, words: str = "") -> dict[str, Any]:
    """The same as an object, its changes by path."""
    found: dict[str, Any] = json.loads(diff(subhost, f"{words} --json"))
    found["changes"] = {change["path"]: change for change in found["changes"]}
    return found


CHANGES = """
cd /srv; echo 12345678 > new; mkdir folder; echo x > folder/y
echo more >> a; : >> b; chmod 600 c; rm -r gone; chmod 700 plain; ln -sf b link
rm -r anew; mkdir -p anew/both; echo other > anew/kept; echo deeper > anew/both/deep
"""


@clause("diff", "diff-added", "diff-changed", "diff-copied", "diff-deleted", "diff-running",
        "diff-status-0")  # fmt: skip
def test_what_the_subhost_did(subhost: Subhost) -> None:
    """Each path that the subhost made, changed or removed has its line, and no other has one."""
    subhost.boot(prepared(subhost))
    before = diff(subhost, "/srv")
    assert before == "", before
    subhost.inside(CHANGES)
    for who in (subhost.name, subhost.conf):
        done = subhost.on_host(f"overlay-diff {who} /srv")
        assert done.status == 0, done
        found = lines(done.out)
        words = {path: line.change for path, line in found.items()}
        assert words == {
            "/srv/new": "added",
            "/srv/folder/": "added",
            "/srv/folder/y": "added",
            "/srv/a": "changed",
            "/srv/b": "copied",
            "/srv/c": "changed",
            "/srv/link": "changed",
            "/srv/gone/": "deleted",
            "/srv/plain/": "changed",
            "/srv/anew/": "replaced",
            "/srv/anew/kept": "changed",
            "/srv/anew/lost": "deleted",
            "/srv/anew/both/deep": "changed",
        }, done
        assert found["/srv/new"].size == "9", done


@clause("diff-replaced")
def test_a_folder_made_anew(subhost: Subhost) -> None:
    """Of an opaque folder overlay-diff shows what only LOWER has, and what both have alike."""
    subhost.boot(prepared(subhost))
    subhost.inside("cd /srv; mv anew/kept k; rm -r anew; mkdir anew; mv k anew/kept")
    words = {path: line.change for path, line in lines(diff(subhost, "/srv/anew")).items()}
    assert words == {
        "/srv/anew/": "replaced",
        "/srv/anew/kept": "copied",
        "/srv/anew/lost": "deleted",
        "/srv/anew/both/": "deleted",
    }


@clause("diff-moved")
def test_a_moved_folder(subhost: Subhost) -> None:
    """overlay-diff compares what a moved folder has with the path of LOWER that it came from."""
    subhost.write(prepared(subhost))
    script = 'import os; os.setxattr("root/srv/new", "trusted.overlay.redirect", b"/srv/old")'
    subhost.prepare_host(
        f"cd {subhost.folder} && mkdir -p root/srv/new && cp -a lower/srv/old/o root/srv/new/ && "
        f"echo z > root/srv/new/z && python3 -c {shlex.quote(script)}"
    )
    found = lines(diff(subhost))
    assert found["/srv/new/"].change == "moved" and "/srv/old" in found["/srv/new/"].note, found
    assert (found["/srv/new/o"].change, found["/srv/new/z"].change) == ("copied", "added")
    assert as_json(subhost)["changes"]["/srv/new"]["from"] == "/srv/old"


@clause("diff-copied")
def test_what_makes_a_copy_another(subhost: Subhost) -> None:
    """overlay-diff calls a file with the same contents changed if its time, owner or an
    extended attribute differs."""
    subhost.write(prepared(subhost))
    script = 'import os; os.setxattr("root/srv/c", "trusted.other", b"y")'
    subhost.prepare_host(
        f"cd {subhost.folder} && mkdir root/srv && cp -a lower/srv/[abc] lower/srv/link root/srv/ "
        f"&& touch -d @1 root/srv/a && chown 7 root/srv/b && python3 -c {shlex.quote(script)}"
    )
    words = {path: line.change for path, line in lines(diff(subhost)).items()}
    assert words == {
        "/srv/a": "changed",
        "/srv/b": "changed",
        "/srv/c": "changed",
        "/srv/link": "copied",
    }


@clause("diff-stopped", "diff-running", "diff-untouched")
def test_running_or_stopped_it_is_the_same(subhost: Subhost) -> None:
    """A running subhost is looked at as it was booted, whatever its configuration says by then;
    a stopped one is looked at by its configuration. Looking changes no file."""
    text = prepared(subhost)
    subhost.boot(text)
    subhost.inside(CHANGES)
    subhost.write(f"{text}\nUPPER= elsewhere")
    subhost.prepare_host(f"mkdir {subhost.folder}/elsewhere")
    look = f"cd {subhost.folder} && find root lower -printf '%p %i %C@\\n' | sort | sha256sum"
    before = subhost.prepare_host(look)
    running = diff(subhost)
    subhost.stop()
    subhost.write(text)
    assert diff(subhost) == running and "replaced" in running
    assert subhost.prepare_host(look) == before


@clause("diff-no-command", "diff-status-2")
@pytest.mark.parametrize("variable", ["UPPER", "LOWER", "BASE"])
def test_no_command_is_run(subhost: Subhost, variable: str) -> None:
    """overlay-diff runs no ! command: a stopped subhost whose UPPER, LOWER or BASE is one is
    refused in one line that names the variable; a running one is shown."""
    trace = f"{subhost.folder}/trace"
    value = {"UPPER": "root", "LOWER": subhost.fill("lower"), "BASE": subhost.folder}[variable]
    subhost.write(f"{variable}=!echo x >> {trace}; echo {value}\nNAME=!echo x >> {trace}; echo n")
    done = subhost.on_host(f"overlay-diff {subhost.conf}")
    one_line(done, 2, variable)
    assert not subhost.host.file(trace).exists
    subhost.boot(f"{variable}=!echo x >> {trace}; echo {value}")
    assert "/.reaper" in diff(subhost)
    assert subhost.target.read(trace) == "x\n"


@clause("diff-path")
def test_a_part_of_it(subhost: Subhost) -> None:
    """overlay-diff can be asked for a folder, for a file, for what lies in a folder that is
    gone as a whole, and for what is not there."""
    subhost.boot(prepared(subhost))
    subhost.inside(CHANGES)
    for path, wanted in {
        "/srv/anew/both": {"/srv/anew/both/deep"},
        "/srv/folder/": {"/srv/folder/", "/srv/folder/y"},
        "//srv/./a": {"/srv/a"},
        "/srv/anew/lost": {"/srv/anew/lost"},
        "/srv/gone/x": {"/srv/gone/"},
        "/srv/ne": set(),
        "/srv/a/b": set(),
    }.items():
        assert set(lines(diff(subhost, path))) == wanted, path


@clause("diff-mounts")
def test_what_is_mounted_on_the_two(subhost: Subhost) -> None:
    """overlay-diff leaves out what is mounted on a folder of LOWER or UPPER."""
    subhost.boot(prepared(subhost))
    subhost.inside("echo more >> /srv/a; echo more >> /srv/plain/p; echo x > /srv/old/new")
    before = diff(subhost)
    points = f"{subhost.folder}/lower/srv/plain {subhost.folder}/root/srv/old"
    subhost.prepare_host(f"for point in {points}; do mount -t tmpfs other $point; done")
    try:
        subhost.prepare_host(f"for point in {points}; do echo y > $point/other; done")
        assert diff(subhost) == before
    finally:
        subhost.target.run(f"umount {points}")


@clause("diff-quoted")
def test_odd_names(subhost: Subhost) -> None:
    """An odd name is a line of printable characters, which a shell reads back as it was."""
    names = ["sp ace", "new\nadded       9  etc", "esc\x1b[31m", "it's", "back\\slash", "é", "x (y)",
             "\u202ereversed", "$HOME", "tab\t"]  # fmt: skip
    subhost.write(prepared(subhost))
    folder = f"{subhost.folder}/root/odd"
    made = shlex.join(f"{folder}/{name}" for name in names)
    subhost.prepare_host(f"mkdir {folder}; touch {made} {folder}/$(printf '\\377\\033')")
    said = diff(subhost, "/odd").partition("\n\n")[0]
    assert said.isprintable() or set(filter(lambda c: not c.isprintable(), said)) == {"\n"}
    found = lines(said)
    assert len(found) == len(names) + 2 and "/odd/" in found, said
    shell = "; ".join(f"printf '%s\\0' {path}" for path in found)
    read = subhost.prepare_host(f"bash -c {shlex.quote(shell)} | sort -z | sha256sum")
    listed = (
        f"cd {subhost.folder}/root && find odd ! -type d -printf '/%p\\0' -o -printf '/odd/\\0'"
    )
    assert read == subhost.prepare_host(f"{{ {listed}; }} | sort -z | sha256sum"), said


@clause("diff-sums")
def test_the_sums(subhost: Subhost) -> None:
    """A table counts each kind of change, and the bytes, for each folder of the root."""
    subhost.write(prepared(subhost))
    subhost.prepare_host(
        f"cd {subhost.folder}/root && mkdir -p srv/d etc && head -c 3000 /dev/zero > srv/d/f && "
        "echo x > srv/a && mknod srv/b c 0 0 && cp -a ../lower/srv/c srv/ && echo top > top"
    )
    head, *rows = tables(diff(subhost))[0]
    found = {row[0]: dict(zip(head[1:], row[-len(head) + 1 :], strict=True)) for row in rows}
    assert (
        found["/srv"] | {"ADDED": "2", "CHANGED": "1", "COPIED": "1", "DELETED": "1"}
        == (found["/srv"])
    )
    assert (found["/srv"]["SIZE"], found["/"]["ADDED"], found["/"]["SIZE"]) == ("2.9K", "1", "4")
    sums = as_json(subhost)["folders"]
    assert sums["/srv"]["size"] == 3004 and sums["/srv"]["deleted"] == 1, sums


@clause("diff-json")
def test_the_same_as_an_object(subhost: Subhost) -> None:
    """The object that --json prints has the keys of the page, and says what the lines say."""
    text = prepared(subhost)
    subhost.boot(text)
    subhost.inside(CHANGES)
    subhost.prepare_host(f"touch {subhost.folder}/root/$(printf 'odd\\377')")
    found = as_json(subhost)
    assert set(found) == {"name", "upper", "lower", "changes", "folders", "packages"}
    assert (found["name"], found["upper"]) == (subhost.name, f"{subhost.folder}/root")
    assert found["lower"] == f"{subhost.folder}/lower" and found["packages"] == []
    keys = {"path", "change", "type", "size", "stale", "package", "from", "note"}
    assert all(set(change) == keys for change in found["changes"].values())
    plain = {path for path in lines(diff(subhost)) if not path.startswith("$")}
    assert plain == {
        path + "/" * (change["type"] == "folder")
        for path, change in found["changes"].items()
        if path != "/odd\udcff"
    }
    assert "/odd\udcff" in found["changes"]
    new = found["changes"]["/srv/new"]
    assert (new["type"], new["size"], new["stale"], new["from"]) == ("file", 9, False, None)
    kinds = {path: found["changes"][path]["type"] for path in ("/srv/link", "/srv/gone")}
    assert kinds == {"/srv/link": "link", "/srv/gone": "folder"}
    assert found["folders"]["/srv"]["replaced"] == 1
    assert as_json(subhost, "/nothing") | {"changes": {}, "folders": {}} == as_json(
        subhost, "/nothing"
    )


@clause("diff-status-2", "diff-status-3")
def test_mistakes(subhost: Subhost) -> None:
    """One line tells a mistake, with status 2, and a subhost that is not there, with status 3."""
    subhost.write()
    for words, status in {
        "": 2,
        "--nonsense x": 2,
        "--drop": 2,
        f"--drop /etc --json {subhost.conf}": 2,
        f"--drop etc {subhost.conf}": 2,
        f"{subhost.conf} etc": 2,
        f"{subhost.conf} /etc/../..": 2,
        f"{subhost.conf} /etc /srv": 2,
        subhost.name: 3,
        f"{subhost.folder}/none.conf": 3,
    }.items():
        done = subhost.on_host(f"overlay-diff {words}")
        one_line(done, status)
        assert not done.out, done
    subhost.write(subhost.of_kind("bind"))
    for words in ("", "--drop /bin/sh"):
        done = subhost.on_host(f"overlay-diff {words} {subhost.conf}")
        one_line(done, 2, "UPPER")


@clause("diff-layers")
@pytest.mark.parametrize("runs", [True, False])
def test_its_own_layers_in_lower_are_left_out(subhost: Subhost, runs: bool) -> None:
    """UPPER and WORK in LOWER are left out, and what the subhost writes beside them is told."""
    lower = subhost.fill("lower")
    subhost.prepare_host(f"cd {lower} && mkdir -p s/of/root s/of/work")
    subhost.boot(f"LOWER= {lower}\nUPPER= {lower}/s/of/root\nWORK= {lower}/s/of/work")
    subhost.inside("echo x > /s/of/its-own")
    if not runs:
        subhost.stop()
    assert {path for path in lines(diff(subhost)) if path.startswith("/s")} == {"/s/of/its-own"}
