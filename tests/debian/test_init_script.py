"""/etc/init.d/subhosts and the generator, with commands that only write down what they are told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
COMMANDS = {
    "overlay-boot": 'sleep "${1##*sleep-}" 2>/dev/null; echo "boot $1" >> DIR/calls;'
    ' case $1 in *bad*) echo "no bridge" >&2; exit 1;; esac',
    "overlay-stop": 'echo "stop $1" >> DIR/calls; case $1 in gone) exit 3;; bad) exit 1;; esac',
    "overlay-list": "[ ! -s DIR/running ] || { echo NAME PID CONFIGURATION; cat DIR/running; }",
    "logger": ":",
    "systemctl": 'echo "systemctl $*" >> DIR/calls',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the commands, a script that uses them, and a list of subhosts."""
    for name, body in COMMANDS.items():
        (tmp_path / name).write_text("#!/bin/sh\n" + body.replace("DIR", str(tmp_path)) + "\n")
        (tmp_path / name).chmod(0o755)
    text = (ROOT / "contrib/sysvinit/subhosts").read_text()
    for old, new in {
        "PATH=/usr/sbin": f"PATH={tmp_path}:/usr/sbin",
        "/etc/subhosts.conf\n": f"{tmp_path}/list\n",
        "[ -x /usr/sbin/overlay-boot ] || exit 0": "",
        "/run/systemd/system": f"{tmp_path}/systemd",
    }.items():
        assert old in text
        text = text.replace(old, new, 1)
    (tmp_path / "script").write_text(text)
    (tmp_path / "calls").touch()
    return tmp_path


def script(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the script."""
    command = ["sh", str(folder / "script"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def calls(folder: Path) -> list[str]:
    """What the commands were told, sorted, since all of them run at the same time."""
    return sorted((folder / "calls").read_text().splitlines())


def test_start_takes_each_word_of_the_list(folder: Path) -> None:
    """One that cannot start is told of, and is no hindrance to the others."""
    (folder / "list").write_text("# a /no\n\n/a.conf /bad.conf\n\t/c.conf\n/d.conf # not this\n")
    done = script(folder, "start")
    assert calls(folder) == ["boot /a.conf", "boot /bad.conf", "boot /c.conf"]
    assert done.returncode == 1
    assert "/bad.conf failed: no bridge" in done.stdout + done.stderr


def test_start_leaves_alone_what_runs(folder: Path) -> None:
    (folder / "list").write_text("/a.conf /b.conf\n")
    (folder / "running").write_text("a 1 /a.conf\n")
    assert script(folder, "start").returncode == 0
    assert calls(folder) == ["boot /b.conf"]


def test_start_waits_for_none_before_the_next(folder: Path) -> None:
    (folder / "list").write_text("/sleep-2\n/quick.conf\n")
    assert script(folder, "start").returncode == 0
    assert (folder / "calls").read_text() == "boot /quick.conf\nboot /sleep-2\n"


def test_no_list_is_nothing_to_start(folder: Path) -> None:
    assert script(folder, "start").returncode == 0
    assert calls(folder) == []


def test_stop_stops_all_that_run(folder: Path) -> None:
    """One that has ended meanwhile is no failure."""
    (folder / "running").write_text("a 1 /a.conf\ngone 2 /gone.conf\n")
    assert script(folder, "stop").returncode == 0
    assert calls(folder) == ["stop a", "stop gone"]
    (folder / "running").write_text("bad 1 /bad.conf\nb 1 /b.conf\n")
    assert script(folder, "stop").returncode == 1
    assert calls(folder)[-2:] == ["stop bad", "stop gone"] and "stop b" in calls(folder)


def test_status_and_mistakes(folder: Path) -> None:
    assert script(folder, "status").returncode == 3
    (folder / "running").write_text("a 1 /a.conf\n")
    assert script(folder, "status").returncode == 0
    assert script(folder).returncode == 2
    assert script(folder, "frobnicate").returncode == 2


def test_systemd_is_asked_where_it_runs(folder: Path) -> None:
    (folder / "systemd").mkdir()
    script(folder, "restart")
    assert calls(folder) == ["systemctl restart subhosts.service"]


def test_generator(tmp_path: Path) -> None:
    """An instance for each path, by its escaped name."""
    escape = tmp_path / "systemd-escape"
    escape.write_text('#!/bin/sh\necho "$2" | sed "s,^/,,; s,/,-,g"\n')
    escape.chmod(0o755)
    (tmp_path / "list").write_text("# /no\n/opt/a.conf /opt/b.conf\n")
    text = (ROOT / "contrib/systemd/subhosts-generator").read_text()
    text = text.replace("=/etc/subhosts.conf", f"={tmp_path}/list")
    out = tmp_path / "normal"
    command = ["sh", "-c", text, "generator", str(out)]
    subprocess.run(command, check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    links = {
        link.name: str(link.readlink()) for link in (out / "subhosts.service.wants").iterdir()
    }
    unit = "/usr/lib/systemd/system/subhosts@.service"
    assert links == {f"subhosts@opt-{name}.conf.service": unit for name in "ab"}
