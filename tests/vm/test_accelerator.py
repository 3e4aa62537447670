"""Whether KVM is used, found with a QEMU that only plays its part."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vm import booted, folders
from vm.image import Image

QEMU = """\
#!/bin/sh
echo tried >> "$(dirname "$0")/tried"
echo '{words}' >&2
exit 1
"""
KEPT = [
    ("KVM internal error. Suberror: 1", "no KVM: KVM internal error. Suberror: 1: emulating"),
    ("qemu-system-x86_64: failed to initialize kvm", "no KVM: qemu-system-x86_64: failed to init"),
    ("", "no KVM: "),
]
SHORT = [
    ("qemu-system-x86_64: cannot set up guest memory: Cannot allocate memory", "Cannot allocate"),
    ("qemu-system-x86_64: disk: No space left on device", "No space left"),
]


@pytest.fixture
def source(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Image:
    """An image that is none, and a device that may be used."""
    monkeypatch.delenv("VM_ACCEL", raising=False)
    monkeypatch.setenv("PATH", f"{own_folders}:{os.environ['PATH']}")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path == "/dev/kvm" or access(path, mode))
    return Image(folders.own(folders.cache() / "images/trixie-plain-fake"))


def play(folder: Path, words: str) -> None:
    """Put a QEMU on the PATH that says something and ends."""
    for name, script in (
        ("qemu-system-x86_64", QEMU.format(words=words)),
        ("qemu-img", "#!/bin/sh"),
    ):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)


def tries(folder: Path) -> int:
    """How often that QEMU was started."""
    return len((folder / "tried").read_text().splitlines())


@pytest.mark.parametrize(("words", "line"), KEPT)
def test_what_kvm_said_is_said_and_kept(
    source: Image, own_folders: Path, words: str, line: str
) -> None:
    play(own_folders, words)
    said: list[str] = []
    for _ in range(2):
        assert booted.accelerator(source, say=said.append) == "tcg"
    assert line in said[0] and said[1] == said[0] and tries(own_folders) == 1
    assert not list(folders.run().glob("*/"))


@pytest.mark.parametrize(("words", "line"), SHORT)
def test_a_shortage_is_no_verdict_on_kvm(
    source: Image, own_folders: Path, words: str, line: str
) -> None:
    play(own_folders, words)
    said: list[str] = []
    for _ in range(2):
        assert booted.accelerator(source, say=said.append) == "tcg"
    assert all(line in one for one in said) and tries(own_folders) == 2


def test_the_environment_decides(source: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VM_ACCEL", "kvm")
    said: list[str] = []
    assert booted.accelerator(source, say=said.append) == "kvm"
    assert said == ["machine: kvm, as VM_ACCEL says"]


@pytest.mark.parametrize(("there", "why"), [(True, "may not be used"), (False, "is not there")])
def test_a_device_that_cannot_be_used(
    source: Image, monkeypatch: pytest.MonkeyPatch, there: bool, why: str
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda p: there if p == Path("/dev/kvm") else exists(p))
    said: list[str] = []
    assert booted.accelerator(source, say=said.append) == "tcg"
    assert why in said[0]
