"""What is to be put into a machine is looked at before one starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vm.conftest import LocalMachine
from vm import booted, cli, software
from vm.errors import RequestError

ROOT = Path(__file__).parents[2]
CHANGES = """\
Format: 1.8
Checksums-Sha256:
 0f343b0931126a20f133d67c2b018a3b0f343b0931126a20f133d67c2b018a3b 12 thing_1_all.deb
Files:
 8b1a9953c4611296a827abf8c47804d7 12 admin optional thing_1_all.deb
 8b1a9953c4611296a827abf8c47804d7 99 admin optional thing_1.dsc
 8b1a9953c4611296a827abf8c47804d7 12 admin optional other_1_amd64.deb
"""


def tree(folder: Path, *files: str) -> Path:
    """A folder with executable files in it."""
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return folder


def package(folder: Path, architecture: str = "all", name: str = "thing_1.deb") -> Path:
    """A package with the command /usr/bin/thing."""
    content = tree(folder / "content", "usr/bin/thing")
    (content / "DEBIAN").mkdir(exist_ok=True)
    (content / "DEBIAN/control").write_text(
        f"Package: thing\nVersion: 1\nArchitecture: {architecture}\n"
        "Maintainer: Nobody <nobody@example.org>\nDescription: nothing\n"
    )
    file = folder / name
    subprocess.run(["dpkg-deb", "--build", content, file], check=True, capture_output=True)
    return file


@pytest.mark.parametrize("name", ["thing_1.deb", "-a b'c é.deb", "no-suffix"])
def test_packages_and_folders_are_taken(tmp_path: Path, name: str) -> None:
    software.look(package(tmp_path, "amd64", name), commands=["thing"])
    software.look(
        tree(tmp_path / "tree", "usr/sbin/thing", "bin/other"), commands=["thing", "other"]
    )
    software.look(tree(tmp_path / "data", "etc/file"))


def refused(what: Path, *commands: str) -> str:
    """The one line that says why."""
    with pytest.raises(RequestError) as caught:
        software.look(what, commands=commands)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{what}: ")
    return line


def test_what_cannot_be_installed_is_one_line(tmp_path: Path) -> None:
    assert "no such file or folder" in refused(tmp_path / "missing.deb")
    (tmp_path / "text.deb").write_text("not a package")
    assert "neither a .deb that is whole nor a folder" in refused(tmp_path / "text.deb")
    (tmp_path / "empty.deb").touch()
    assert "neither a .deb that is whole nor a folder" in refused(tmp_path / "empty.deb")
    (tmp_path / "thing.changes").write_text(CHANGES)
    assert "give a package: thing_1_all.deb other_1_amd64.deb" in refused(
        tmp_path / "thing.changes"
    )
    assert "a package for arm64, but machines are amd64" in refused(package(tmp_path, "arm64"))
    whole = package(tmp_path).read_bytes()
    (tmp_path / "cut.deb").write_bytes(whole[:-40])
    assert "neither a .deb that is whole" in refused(tmp_path / "cut.deb")
    assert "no command absent in usr/bin" in refused(package(tmp_path), "thing", "absent")


def test_a_folder_that_brings_nothing_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty/usr/bin").mkdir(parents=True)
    assert "an empty folder" in refused(tmp_path / "empty")
    assert "no command thing in usr/bin" in refused(tree(tmp_path / "flat", "thing"), "thing")
    (tmp_path / "debs").mkdir()
    (tmp_path / "debs/a_1_all.deb").touch()
    assert "a folder of packages: give one of a_1_all.deb" in refused(tmp_path / "debs")


def test_an_empty_word_is_no_path(capsys: pytest.CaptureFixture[str]) -> None:
    """As of a variable that is not set: not all of the current folder is laid over the root."""
    assert cli.main(["up", "--install", ""]) == 2
    assert "an empty word is no path" in capsys.readouterr().err


def test_it_is_looked_at_before_a_machine_starts(
    own_folders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the command and by the spec: no image is looked for and no mirror asked."""
    monkeypatch.setattr(booted.Qemu, "up", lambda self, wanted, say: 1 / 0)
    assert cli.main(["up", "--install", str(tmp_path / "missing.deb")]) == 1
    assert capsys.readouterr().err == f"vm: {tmp_path}/missing.deb: no such file or folder\n"
    words = ["-m", "spec", "run", "--target", "vm://sid", "--implementation", str(tmp_path)]
    tree(tmp_path, "opt/file")
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert f"ERROR: {tmp_path}: has no command overlay-boot in usr/bin" in done.stderr
    assert done.returncode == 4 and not list(own_folders.glob("*/[!.b]*"))


def inside(folder: Path) -> Path:
    """Where in a folder a file lies that is to come to the same path as the folder in the machine,
    which is this one: so nothing else is touched."""
    return folder / "made" / str(folder).removeprefix("/") / "to"


def test_a_folder_is_readable_in_the_machine_whatever_the_umask(
    local: LocalMachine, tmp_path: Path
) -> None:
    """What was staged under umask 077 is for all to read there, as installed software is."""
    before = os.umask(0o077)
    try:
        tree(inside(tmp_path), "usr/bin/command").joinpath("usr/lib").mkdir()
        (inside(tmp_path) / "usr/lib/data").touch()
        (inside(tmp_path) / "usr/bin/command").chmod(0o700)
    finally:
        os.umask(before)
    software.install(local, tmp_path / "made")
    modes = {name: (tmp_path / "to/usr" / name).stat().st_mode & 0o777 for name in MODES}
    assert modes == MODES


MODES = {"bin": 0o755, "bin/command": 0o755, "lib": 0o755, "lib/data": 0o644}


@pytest.mark.parametrize("name", ["module.py", "a b'c é.py"])
def test_modules_of_python_are_compiled_as_dpkg_does(
    local: LocalMachine, tmp_path: Path, name: str
) -> None:
    """Else each machine made of that one compiles them when they are used first."""
    (tree(inside(tmp_path), name) / name).write_text("x = 1\n")
    software.install(local, tmp_path / "made")
    (made,) = (tmp_path / "to/__pycache__").iterdir()
    assert made.name.startswith(name.removesuffix("py")) and made.suffix == ".pyc"


def test_a_module_that_cannot_be_compiled_is_left_to_who_imports_it(
    local: LocalMachine, tmp_path: Path
) -> None:
    (tree(inside(tmp_path), "module.py") / "module.py").write_text("x = \n")
    software.install(local, tmp_path / "made")
    assert (tmp_path / "to/module.py").exists()
