"""`python -m vm` and the cache, as far as no machine is needed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vm import archive, booted, cache, cli, folders, image, recipe
from vm.errors import HostError, MachineError, RequestError
from vm.image import Image

RUNNING = '{"detached": true, "memory": "/nowhere", "shape": {}}'


@pytest.fixture(autouse=True)
def surroundings(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that is not asked, and some QEMU."""
    monkeypatch.setenv("MIRROR", "http://mirror.example/debian")
    monkeypatch.setattr("vm.shape._host", lambda: "some QEMU")


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of error output."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vm: ")
    return line


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        (["run", "nobody", "true"], cli.BROKEN, "not found"),
        (["ssh", "nobody"], cli.BROKEN, "not found"),
        (["destroy"], 1, "--all"),
        (["destroy", "nobody"], 1, "not found"),
        (["fetch", "../missing.deb"], 1, "neither a file that is there nor the name of a package"),
        (["fetch", "a/b"], 1, "neither a file that is there nor the name of a package"),
    ],
)
def test_errors_are_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], status: int, why: str
) -> None:
    assert cli.main(words) == status
    assert why in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["name"], "a command is missing"),
        (["name", "--"], "a command is missing"),
        (["name", "--timeout", "5"], "a command is missing"),
        ([], "required"),
        (["--timeout", "nan", "name", "true"], "invalid seconds value: 'nan'"),
        (["--timeout", "-1", "name", "true"], "invalid seconds value: '-1'"),
        (["name", "--timeout", "soon", "true"], "invalid seconds value: 'soon'"),
        (["name", "--what", "true"], "--what"),
    ],
)
def test_mistakes_of_run_are_not_the_commands(
    capsys: pytest.CaptureFixture[str], words: list[str], why: str
) -> None:
    """Its status is none that the command could have had."""
    assert cli.main(["run", *words]) == cli.BROKEN
    assert why in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "timeout", "input", "command"),
    [
        (["name", "ls", "-l", "--timeout"], 600, False, ["ls", "-l", "--timeout"]),
        (["--timeout", "5", "name", "-i", "cat", "-i"], 5, True, ["cat", "-i"]),
        (["-i", "name", "--timeout", "inf", "cat"], math.inf, True, ["cat"]),
        (["name", "--", "--odd", "-i"], 600, False, ["--odd", "-i"]),
        (["name", "-i", "--", "--", "x"], 600, True, ["--", "x"]),
        (["-i", "name", "sh", "-c", "x", "--", "-i"], 600, True, ["sh", "-c", "x", "--", "-i"]),
    ],
)
def test_options_of_run_stand_before_or_after_the_name(
    words: list[str], timeout: float, input: bool, command: list[str]
) -> None:
    options = cli.parse(["run", *words])
    assert (options.timeout, options.input, options.command) == (timeout, input, command)


def test_a_fault_of_the_harness_is_not_the_commands_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "pick", lambda name: 1 / 0)
    assert cli.main(["run", "name", "true"]) == cli.BROKEN
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MachineError("broke")])
def test_errors_of_the_system_are_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(image, "build", fail)
    assert cli.main(["build"]) == 1
    assert str(error) in one_line(capsys)


def test_a_reader_that_goes_away_is_no_error() -> None:
    """As with `python -m vm list | head -1`."""
    command = [sys.executable, "-m", "vm", "list"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def filled(name: str, *states: str) -> Image:
    """An image in the cache, and states of it."""
    folder = folders.own(folders.cache() / "images") / name
    for state in states:
        (folder / state).mkdir(parents=True)
        (folder / state / "ram").write_bytes(b"x" * 9000)
    folder.mkdir(exist_ok=True)
    (folder / "image.json").write_text("{}" * 4000)
    folder.with_suffix(".log").touch()
    return Image(folder)


def test_prune_keeps_what_is_current_or_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    key = recipe.recipe("trixie").key
    state = booted.kept(filled(key), booted.shape(filled(key), "tcg", "small")).name
    current, old = filled(key, state, "booted-other"), filled("sid-plain-old", "booted-x")
    used = filled("sid-plain-used", "booted-x")
    (folders.cache() / "images/sid-failed.log").touch()
    boxes = folders.own(folders.cache() / "boxes")
    for name in (f"{key}-abc.box", "sid-plain-old-abc.box", f"{key}-abc.1234"):
        (boxes / name).touch()
    (folders.cache() / "packages/sid").mkdir(parents=True)
    (folders.cache() / "vagrant").mkdir()
    building, lock = folders.claim(folders.building(), "image")
    with folders.Lock(used.lock, shared=True), lock:
        assert cli.main(["list", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)["cache"]
        listed = {Path(row["path"]).name: row for row in rows}
        assert listed[key]["current"] and not listed[key]["used"]
        assert listed["sid-plain-used"]["used"] and listed[building.name]["used"]
        assert not listed["booted-other"]["current"] and listed["booted-other"]["bytes"] > 9000
        assert cli.main(["list"]) == 0
        shown = capsys.readouterr().out
        assert all(name in shown for name in listed)
        assert cli.main(["prune"]) == 0
        assert "freed 0 MiB" in capsys.readouterr().out
        left = {one.path.name for one in cache.items()}
        assert left == {
            *(key, state, f"{key}.log", f"{key}-abc.box", f"{key}-abc.1234", "sid"),
            *(used.folder.name, "booted-x", building.name),
        }
        assert not old.folder.exists() and current.folder.exists()
        assert cli.main(["prune", "--all"]) == 0
        left = {one.path.name for one in cache.items()}
        assert left == {used.folder.name, "booted-x", building.name}


def test_what_a_build_makes_and_removes_meanwhile_does_not_hinder_list() -> None:
    tree = folders.building() / "image-x/tree"
    tree.mkdir(parents=True)
    churn = f"while :; do mkdir -p {tree}/a/b/c {tree}/d/e; rm -r {tree}/a {tree}/d; done"
    with subprocess.Popen(["sh", "-c", churn]) as process:
        try:
            for _ in range(200):
                assert [one.path.name for one in cache.items()] == ["image-x"]
        finally:
            process.kill()


def test_where_qemu_is_missing_states_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can know whether they are current; whoever wants to clear up can."""

    def missing() -> str:
        raise HostError("there is no QEMU")

    monkeypatch.setattr("vm.shape._host", missing)
    filled(recipe.recipe("trixie").key, "booted-x")
    assert cli.main(["list"]) == cli.main(["prune"]) == 0
    assert "booted-x" in {one.path.name for one in cache.items()}
    assert cli.main(["prune", "--all"]) == 0
    assert not list(cache.items())


def test_a_fresh_image_does_not_replace_one_in_use() -> None:
    used = filled(recipe.recipe("trixie").key)
    with (
        folders.Lock(used.lock, shared=True),
        pytest.raises(HostError, match="in use: end its machines first"),
    ):
        image.build("trixie", fresh=True)
    assert used.folder.exists()


def machine(name: str, pid: int) -> Path:
    """The folder of a machine that runs as that process."""
    folder, lock = folders.claim(folders.run(), name)
    lock.release()
    (folder / "machine.json").write_text(RUNNING)
    cli.processes.record(folder / "pid", pid)
    return folder


def test_a_unique_start_of_a_name_does() -> None:
    with subprocess.Popen(["sleep", "100"]) as process:
        names = [machine(name, process.pid).name for name in ("trixie", "sid")]
        assert cli.pick("tri").name == names[0] and cli.pick(names[1]).name == names[1]
        with pytest.raises(RequestError, match=f"which .*{names[1]}.*{names[0]}"):
            cli.pick("")
        process.kill()
    with pytest.raises(RequestError, match="not found .none runs"):
        cli.pick("tri")


FAKE_APT = """\\
#!/bin/sh
echo "$@" >> "$(dirname "$0")"/log
cat "$(dirname "$0")"/../cache/building/fetch-*/auth.conf >> "$(dirname "$0")"/logins
case "$*" in
*update*) cp "$(dirname "$0")"/../cache/packages/sid/sources.list "$(dirname "$0")"/seen;;
*none) echo "E: Unable to locate package none"; exit 100;;
*) touch thing_2_all.deb;;
esac
"""


def test_fetch(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By apt with folders of its own; what another mirror gave does not count, nor what this machine's
    apt prefers or runs, and a password is not kept."""
    debs = folders.own(folders.own(folders.cache() / "packages") / "sid") / "debs"
    debs.mkdir()
    (debs / "thing_9_all.deb").touch()
    (own_folders / "bin").mkdir()
    (own_folders / "bin/apt-get").write_text(FAKE_APT)
    (own_folders / "bin/apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{own_folders}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("MIRROR", "http://me:secret@mirror.example/debian")
    found = archive.fetch("thing", "sid")
    assert "login me password secret" in (own_folders / "bin/logins").read_text()
    kept = [file for file in folders.cache().rglob("*") if file.is_file()]
    assert kept and not any(b"secret" in file.read_bytes() for file in kept)
    assert found == debs / "thing_2_all.deb"
    said = (own_folders / "bin/log").read_text()
    assert "Dir::State::Lists" in said and "Dir::Etc::SourceParts=/dev/null" in said
    lines = (own_folders / "bin/seen").read_text().splitlines()
    assert lines == [f"deb [signed-by={archive.KEYRING}] http://mirror.example/debian sid main"]
    with pytest.raises(HostError, match="^package none of sid: the suite has no package of tha"):
        archive.fetch("none", "sid")
