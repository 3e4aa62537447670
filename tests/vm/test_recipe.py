"""The recipe, its key, apt's mirrors, and what is said when an image cannot be made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vm import cli, folders, image, recipe
from vm.machine import MachineError

MIRROR = "http://mirror.example/debian"


@pytest.fixture(autouse=True)
def mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRROR", MIRROR)


def fake_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.delenv("MIRROR")
    program = tmp_path / "apt-get"
    program.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(lines) + "\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_same_recipe_same_key_and_any_change_another() -> None:
    plain = recipe.recipe("trixie")
    assert plain.key == recipe.recipe("trixie").key
    changed = [
        recipe.recipe("sid"),
        recipe.recipe("trixie", "mta"),
        replace(plain, packages=(*plain.packages, "one-more")),
        replace(plain, sources=("deb http://other.example/debian trixie main",)),
    ]
    assert len({plain.key, *(one.key for one in changed)}) == 5


def test_guest_files_are_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "GUEST", tmp_path)
    keys = {recipe.recipe("trixie").key}
    (tmp_path / "file").write_text("one")
    keys.add(recipe.recipe("trixie").key)
    (tmp_path / "file").write_text("two")
    keys.add(recipe.recipe("trixie").key)
    (tmp_path / "file").chmod(0o755)
    keys.add(recipe.recipe("trixie").key)
    assert len(keys) == 4


@pytest.mark.parametrize(("suite", "flavour"), [("etch", "plain"), ("trixie", "sweet")])
def test_what_is_not_known_is_named_with_what_is(suite: str, flavour: str) -> None:
    with pytest.raises(MachineError, match="take one of"):
        recipe.recipe(suite, flavour)


def test_mirrors_are_apts_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_apt(
        tmp_path,
        monkeypatch,
        "http://vendor.example/apt nodistro",
        "http://a.example/debian/ bookworm",
        "http://a.example/debian/ bookworm-updates",
        "http://s.example/debian-security/ bookworm-security",
    )
    assert list(recipe.sources("trixie")) == [
        "deb http://a.example/debian/ trixie main",
        "deb http://a.example/debian/ trixie-updates main",
        "deb http://s.example/debian-security/ trixie-security main",
    ]
    assert list(recipe.sources("sid")) == ["deb http://a.example/debian/ sid main"]


def test_no_mirror_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_apt(tmp_path, monkeypatch, "http://vendor.example/apt nodistro")
    with pytest.raises(MachineError, match="MIRROR="):
        recipe.recipe("trixie")


@pytest.mark.parametrize(
    ("log", "advice"),
    [
        ("E: Temporary failure resolving 'deb.example'", "cannot be reached"),
        ("dpkg: error: cannot write: No space left on device", "no space left"),
        ("W: GPG error: NO_PUBKEY 0E98404D386FA1D9", "debian-archive-keyring"),
        ("E: The repository 'x y Release' does not have a Release file.", "not have this suite"),
        ("E: Release file for x is expired (invalid since 1d)", "out of date"),
        ("noise\nE: something else\nI: removing tempdir", "E: something else"),
        ("", "without a word"),
    ],
)
def test_trouble_is_one_line_that_helps(log: str, advice: str) -> None:
    said = image.explain("image trixie", log)
    assert advice in said and "\n" not in said


def test_modules_come_after_what_they_need() -> None:
    text = (
        "k/ext4.ko.xz: k/jbd2.ko.xz k/crc.ko.xz\nk/jbd2.ko.xz:\nk/crc.ko.xz:\nk/virtio-blk.ko:\n"
    )
    order = image.modules(text, ("virtio_blk", "builtin", "ext4"))
    assert order == ["k/virtio-blk.ko", "k/crc.ko.xz", "k/jbd2.ko.xz", "k/ext4.ko.xz"]


@pytest.mark.vm
def test_a_failed_build_leaves_only_its_log(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real mmdebstrap, pointed at a mirror that cannot be."""
    monkeypatch.setenv("MIRROR", "http://127.0.0.1:9/debian")
    with pytest.raises(MachineError, match="cannot be reached.*log: "):
        image.build("trixie", say=lambda line: None)
    assert not image.cached()
    assert not list((folders.cache() / "building").glob("*/"))
    assert list((folders.cache() / "images").glob("*.log"))


def test_prune_keeps_what_is_current_or_in_use(own_folders: Path) -> None:
    images = folders.cache() / "images"
    for name in (recipe.recipe("trixie").key, "sid-plain-old", "sid-plain-used"):
        (images / name).mkdir(parents=True)
        (images / name / "image.json").write_text("{}" * 4000)
    machine = folders.run() / "machine"
    machine.mkdir()
    (machine / "machine.json").write_text(f'"{images}/sid-plain-used/vmlinuz"')
    assert image.prune() > 0
    assert [one.folder.name for one in image.cached()] == [
        "sid-plain-used",
        recipe.recipe("trixie").key,
    ]


def test_command_errors_are_one_line(
    own_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "nobody", "true"]) == cli.BROKEN
    assert cli.main(["destroy"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all(line.startswith("vm: ") for line in errors)
    assert cli.main(["list", "--json"]) == 0
    assert '"machines": []' in capsys.readouterr().out
